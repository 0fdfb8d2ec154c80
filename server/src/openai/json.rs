//! A strict reader for one JSON object: every error names the field and its limit, none repeats a value.

use std::ops::RangeInclusive;

use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::http::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// Below this a double holds every whole number, and none that was written as another.
const WHOLE_END: f64 = (1_u64 << 53) as f64;

/// Refuses a body nested deeper than `depth_max` before anything is built from it, and a body that is not JSON.
///
/// Strings are skipped as JSON lexes them, so a bracket inside one does not count.
pub fn check_depth(body: &[u8], depth_max: usize) -> Result<()> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in body {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > depth_max {
            let message = format!("The JSON body is nested deeper than the limit of {depth_max} levels");
            return Err(ApiError {
                code: Some("json_too_deep"),
                ..ApiError::malformed(message)
            });
        }
    }
    Ok(())
}

/// The fields of an object, in the order they came, each taken out once.
pub struct Object<'a> {
    /// Written before each name in errors, as in `messages[3].`.
    prefix: String,
    fields: Vec<(String, &'a RawValue)>,
}

impl<'a> Object<'a> {
    /// Reads a request body.
    pub fn from_body(body: &'a [u8], depth_max: usize) -> Result<Self> {
        check_depth(body, depth_max)?;
        let fields: Fields<'a> = serde_json::from_slice(body).map_err(|error| syntax_error(body, &error))?;
        Self::unique(String::new(), fields)
    }

    /// Reads the object `raw`, found at `path`.
    pub fn from_raw(raw: &'a RawValue, path: &str) -> Result<Self> {
        let fields: Fields<'a> = serde_json::from_str(raw.get())
            .map_err(|_| ApiError::invalid(path, "invalid_type", format!("`{path}` must be an object")))?;
        Self::unique(format!("{path}."), fields)
    }

    fn unique(prefix: String, fields: Fields<'a>) -> Result<Self> {
        let mut names: Vec<&str> = fields.0.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            let path = format!("{prefix}{}", printable(pair[0]));
            return Err(ApiError::invalid(
                &path,
                "duplicate_parameter",
                format!("`{path}` is given twice"),
            ));
        }
        Ok(Self {
            prefix,
            fields: fields.0,
        })
    }

    /// The full name of a field, as errors give it.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Takes a field out. `null` counts as absent, as everywhere in OpenAI's API.
    pub fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.fields.iter().position(|(field, _)| field == name)?;
        let (_, raw) = self.fields.remove(at);
        (raw.get() != "null").then_some(raw)
    }

    /// A field, left where it is; `null` counts as absent.
    pub fn get(&self, name: &str) -> Option<&'a RawValue> {
        let found = self.fields.iter().find(|(field, _)| field == name);
        found.map(|(_, raw)| *raw).filter(|raw| raw.get() != "null")
    }

    /// Whether a field is there and not `null`.
    pub fn has(&self, name: &str) -> bool {
        let mut fields = self.fields.iter();
        fields.any(|(field, raw)| field == name && raw.get() != "null")
    }

    /// All the fields that are left, for an object whose keys are values.
    pub fn into_entries(self) -> Vec<(String, &'a RawValue)> {
        self.fields
    }

    /// Takes a field that must be there.
    pub fn require(&mut self, name: &str) -> Result<&'a RawValue> {
        self.take(name).ok_or_else(|| self.missing(name))
    }

    /// The error for a field that must be there and is not.
    pub fn missing(&self, name: &str) -> ApiError {
        let path = self.path(name);
        let message = format!("`{path}` is required");
        ApiError::invalid(path, "missing_required_parameter", message)
    }

    /// A number within `limits`.
    pub fn number(&mut self, name: &str, limits: &RangeInclusive<f64>) -> Result<Option<f64>> {
        self.take(name)
            .map(|raw| number(raw, &self.path(name), limits))
            .transpose()
    }

    /// A whole number within `limits`.
    pub fn integer(&mut self, name: &str, limits: &RangeInclusive<i64>) -> Result<Option<i64>> {
        self.take(name)
            .map(|raw| integer(raw, &self.path(name), limits))
            .transpose()
    }

    /// A count within `limits`, both at least 0.
    pub fn count(&mut self, name: &str, limits: RangeInclusive<usize>) -> Result<Option<usize>> {
        let bound = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let value = self.integer(name, &(bound(*limits.start())..=bound(*limits.end())))?;
        Ok(value.map(|n| usize::try_from(n).expect("the range starts at 0 or above")))
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        self.take(name)
            .map(|raw| typed(raw, &self.path(name), "a boolean"))
            .transpose()
    }

    /// A string.
    pub fn string(&mut self, name: &str) -> Result<Option<String>> {
        self.take(name)
            .map(|raw| typed(raw, &self.path(name), "a string"))
            .transpose()
    }

    /// A string of a short list.
    pub fn choice(&mut self, name: &str, allowed: &[&'static str]) -> Result<Option<&'static str>> {
        let Some(value) = self.string(name)? else {
            return Ok(None);
        };
        let found = allowed.iter().find(|option| **option == value);
        found.copied().map(Some).ok_or_else(|| {
            let path = self.path(name);
            let message = format!("`{path}` must be one of: {}", allowed.join(", "));
            ApiError::invalid(path, "invalid_value", message)
        })
    }

    /// As [`Object::choice`], of a field that must be there.
    pub fn require_choice(&mut self, name: &str, allowed: &[&'static str]) -> Result<&'static str> {
        self.choice(name, allowed)?.ok_or_else(|| self.missing(name))
    }

    /// Refuses what is left over: fields of `unsupported` by that name, others with the nearest of `known`.
    pub fn finish(self, known: &[&str], unsupported: &[&str]) -> Result<()> {
        let set = self.fields.iter().find(|(_, raw)| raw.get() != "null");
        let Some((name, _)) = set.or(self
            .fields
            .iter()
            .find(|(name, _)| !unsupported.contains(&name.as_str())))
        else {
            return Ok(());
        };
        let path = self.path(printable(name));
        if unsupported.contains(&name.as_str()) {
            return Err(ApiError::unsupported(path));
        }
        if known.contains(&name.as_str()) {
            let message = format!("`{path}` doesn't go with what else this request asks for");
            return Err(ApiError::invalid(path, "invalid_value", message));
        }
        let hint = nearest(name, known)
            .map(|near| format!("; did you mean `{near}`?"))
            .unwrap_or_default();
        let message = format!("`{path}` is not a known parameter{hint}");
        Err(ApiError::invalid(path, "unknown_parameter", message))
    }
}

/// The elements of an array found at `path`, at most `len_max` of them.
pub fn array<'a>(raw: &'a RawValue, path: &str, len_max: usize) -> Result<Vec<&'a RawValue>> {
    let items: Vec<&'a RawValue> = typed(raw, path, "an array")?;
    if items.len() > len_max {
        let message = format!(
            "`{path}` has {} elements, but the limit is {len_max}",
            items.len()
        );
        return Err(ApiError::invalid(path, "array_above_max_length", message));
    }
    Ok(items)
}

/// A value of the type `T`, which errors describe as `what`.
pub fn typed<'a, T: serde::Deserialize<'a>>(raw: &'a RawValue, path: &str, what: &str) -> Result<T> {
    serde_json::from_str(raw.get())
        .map_err(|_| ApiError::invalid(path, "invalid_type", format!("`{path}` must be {what}")))
}

/// A number within `limits`. `1e999` is a number to JSON, and out of every range.
pub fn number(raw: &RawValue, path: &str, limits: &RangeInclusive<f64>) -> Result<f64> {
    let (low, high) = (limits.start(), limits.end());
    let parsed = is_number(raw).then(|| raw.get().parse::<f64>().ok()).flatten();
    match parsed {
        None => {
            let message = format!("`{path}` must be a number between {low} and {high}");
            Err(ApiError::invalid(path, "invalid_type", message))
        }
        // Adding zero turns -0 into 0, so that no later code meets a negative zero.
        Some(value) if limits.contains(&value) => Ok(value + 0.0),
        Some(_) => {
            let message = format!("`{path}` must be between {low} and {high}");
            Err(ApiError::invalid(path, "out_of_range", message))
        }
    }
}

/// A whole number within `limits`. JSON has one kind of numbers: 5.0 is 5.
pub fn integer(raw: &RawValue, path: &str, limits: &RangeInclusive<i64>) -> Result<i64> {
    let (low, high) = (limits.start(), limits.end());
    let wrong = |code| {
        let message = format!("`{path}` must be an integer between {low} and {high}");
        ApiError::invalid(path, code, message)
    };
    let text = is_number(raw)
        .then(|| raw.get())
        .ok_or_else(|| wrong("invalid_type"))?;
    let parsed = if text.contains(['.', 'e', 'E']) {
        let value: f64 = text.parse().map_err(|_| wrong("invalid_type"))?;
        if value.is_finite() && value.fract() != 0.0 {
            return Err(wrong("invalid_type"));
        }
        (value.abs() < WHOLE_END).then_some(value as i64)
    } else {
        text.parse().ok()
    };
    parsed
        .filter(|value| limits.contains(value))
        .ok_or_else(|| wrong("out_of_range"))
}

fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// A name that may be told back: a client's key could be anything, its prompt included.
fn printable(name: &str) -> &str {
    let sane = name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if sane && !name.is_empty() {
        name
    } else {
        "(a name that is not an identifier)"
    }
}

/// Says where the JSON breaks, and in which parameter, without quoting it.
fn syntax_error(body: &[u8], error: &serde_json::Error) -> ApiError {
    if error.is_data() {
        return ApiError::malformed("The request body must be a JSON object");
    }
    let (line, column) = (error.line(), error.column());
    let start: usize = body
        .split_inclusive(|b| *b == b'\n')
        .take(line.saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let at = start.saturating_add(column).min(body.len());
    let inside = last_key(&body[..at]);
    let place = inside
        .as_ref()
        .map(|key| format!(" in `{key}`"))
        .unwrap_or_default();
    let message = format!(
        "The request body is not valid JSON: the error is{place} at line {line}, column {column} (NaN and Infinity \
         are no JSON numbers)"
    );
    ApiError {
        param: inside,
        ..ApiError::malformed(message)
    }
}

/// The last key of the outermost object that begins before the end of `body`.
fn last_key(body: &[u8]) -> Option<String> {
    let (mut depth, mut at) = (0_usize, 0);
    let (mut last_string, mut key) = (None, None);
    while at < body.len() {
        match body[at] {
            b'"' => {
                let begin = at + 1;
                at = begin;
                while at < body.len() && body[at] != b'"' {
                    at += if body[at] == b'\\' { 2 } else { 1 };
                }
                last_string = Some(&body[begin..at.min(body.len())]);
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b':' if depth == 1 => key = last_string,
            _ => {}
        }
        at += 1;
    }
    let key = std::str::from_utf8(key?).ok()?;
    (printable(key) == key).then(|| key.to_owned())
}

/// The known name that takes the fewest edits to reach, if that is at most a third of it.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    if name.len() > 64 {
        return None;
    }
    let (distance, near) = known.iter().map(|k| (edit_distance(name, k), *k)).min()?;
    (distance <= near.len().div_ceil(3)).then_some(near)
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<u8> = b.bytes().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// An object's fields with their values unread.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(FieldsVisitor).map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_outside_strings_only() {
        assert!(check_depth(br#"{"a":"[[[[","b":"\"[[["}"#, 1).is_ok());
        assert!(check_depth(b"[[[]]]", 3).is_ok());
        assert_eq!(
            check_depth(b"[[[[]]]]", 3).unwrap_err().code,
            Some("json_too_deep")
        );
    }

    #[test]
    fn a_syntax_error_names_the_parameter_and_quotes_nothing() {
        let body = br#"{"model":"secret","temperature": NaN}"#;
        let error = Object::from_body(body, 64).err().unwrap();
        assert_eq!(error.param.as_deref(), Some("temperature"));
        assert!(!error.message.contains("secret"));
    }

    #[test]
    fn numbers_are_strict() {
        let body = br#"{"a":1e999,"b":-0,"c":1.5,"d":9223372036854775808,"e":"1","f":-0.0}"#;
        let mut object = Object::from_body(body, 64).unwrap();
        assert_eq!(
            object.number("a", &(0.0..=2.0)).unwrap_err().code,
            Some("out_of_range")
        );
        assert_eq!(object.integer("b", &(0..=2)).unwrap(), Some(0));
        assert_eq!(
            object.integer("c", &(0..=2)).unwrap_err().code,
            Some("invalid_type")
        );
        assert_eq!(
            object.integer("d", &(0..=i64::MAX)).unwrap_err().code,
            Some("out_of_range")
        );
        assert_eq!(
            object.number("e", &(0.0..=2.0)).unwrap_err().code,
            Some("invalid_type")
        );
        assert!(
            object
                .number("f", &(0.0..=2.0))
                .unwrap()
                .unwrap()
                .is_sign_positive()
        );
    }

    /// JSON schemas have it so, and some clients write whole numbers with a point.
    #[test]
    fn a_whole_number_is_one_however_it_is_written() {
        let body = br#"{"a":5.0,"b":-0.0,"c":1.5e1,"d":5e-1,"e":1e999,"f":9007199254740993.0}"#;
        let mut object = Object::from_body(body, 64).unwrap();
        for (name, expected) in [
            ("a", Ok(5)),
            ("b", Ok(0)),
            ("c", Ok(15)),
            ("d", Err("invalid_type")),
        ] {
            let read = object.integer(name, &(-100..=100));
            assert_eq!(
                read.map(Option::unwrap).map_err(|error| error.code.unwrap()),
                expected
            );
        }
        for name in ["e", "f"] {
            let read = object.integer(name, &(i64::MIN..=i64::MAX));
            assert_eq!(read.unwrap_err().code, Some("out_of_range"));
        }
    }

    #[test]
    fn leftovers_are_named_with_the_nearest_name() {
        let object = Object::from_body(br#"{"temprature":1}"#, 64).unwrap();
        let error = object.finish(&["temperature", "top_p"], &[]).unwrap_err();
        assert_eq!(
            error.message,
            "`temprature` is not a known parameter; did you mean `temperature`?"
        );
        let object = Object::from_body(br#"{"type":"auto","name":"f"}"#, 64).unwrap();
        let error = object.finish(&["name", "type"], &[]).unwrap_err();
        assert_eq!(error.code, Some("invalid_value"), "{}", error.message);
        let twice = Object::from_body(br#"{"n":1,"n":2}"#, 64).err().unwrap();
        assert_eq!(twice.code, Some("duplicate_parameter"));
    }
}
