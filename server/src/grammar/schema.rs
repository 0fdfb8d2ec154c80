//! What is done to a JSON schema before it is compiled.

use serde_json::Value;

/// The formats that JSON Schema defines (draft 2020-12, validation, section 7.3).
const FORMATS: [&str; 19] = [
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "idn-email",
    "idn-hostname",
    "ipv4",
    "ipv6",
    "iri",
    "iri-reference",
    "json-pointer",
    "regex",
    "relative-json-pointer",
    "time",
    "uri",
    "uri-reference",
    "uri-template",
    "uuid",
];

/// Keys whose values are data, not schemas.
const DATA: [&str; 5] = ["const", "default", "enum", "example", "examples"];

/// Keys whose values have schemas under names of the author's.
const NAMED: [&str; 5] = [
    "$defs",
    "definitions",
    "dependentSchemas",
    "patternProperties",
    "properties",
];

/// Drops formats that JSON Schema does not define, such as "int64" and "password": by the specification they are
/// notes, and the compiler refuses what it does not know.
pub(super) fn drop_unknown_formats(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let unknown = |format: &Value| format.as_str().is_some_and(|format| !FORMATS.contains(&format));
            if fields.get("format").is_some_and(unknown) {
                fields.shift_remove("format");
            }
            for (key, part) in fields.iter_mut().filter(|(key, _)| !DATA.contains(&key.as_str())) {
                match part {
                    Value::Object(named) if NAMED.contains(&key.as_str()) => {
                        named.values_mut().for_each(drop_unknown_formats);
                    }
                    _ => drop_unknown_formats(part),
                }
            }
        }
        Value::Array(parts) => parts.iter_mut().for_each(drop_unknown_formats),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formats_of_others_are_notes() {
        let mut schema = json!({
            "properties": {
                "format": {"type": "integer", "format": "int64"},
                "default": {"format": "password", "enum": ["a"]},
                "day": {"format": "date", "default": {"format": "own"}},
                "list": {"items": [{"format": "password"}], "const": {"format": "kept"}}
            },
            "enum": [{"format": "kept"}]
        });
        drop_unknown_formats(&mut schema);
        let expected = json!({
            "properties": {
                "format": {"type": "integer"},
                "default": {"enum": ["a"]},
                "day": {"format": "date", "default": {"format": "own"}},
                "list": {"items": [{}], "const": {"format": "kept"}}
            },
            "enum": [{"format": "kept"}]
        });
        assert_eq!(schema, expected);
    }
}
