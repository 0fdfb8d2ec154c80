//! `tools`, `tool_choice` and `parallel_tool_calls`: the functions that a model may call.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::json::{self, Object};

type Result<T> = std::result::Result<T, ApiError>;

/// Names that [`Tools::read`] takes.
pub const NAMES: &[&str] = &["parallel_tool_calls", "tool_choice", "tools"];
/// Whether one of the allowed functions may or must be called.
pub const ALLOWED_MODES: &[&str] = &["auto", "required"];
/// Bytes of a function's name.
pub const NAME_BYTES_MAX: usize = 128;

/// What may be called.
#[derive(Clone, Debug)]
pub struct Tools {
    /// At least one.
    pub functions: Vec<Function>,
    /// Those of the functions that may be called.
    pub callable: Vec<usize>,
    /// Whether the answer must be calls.
    pub required: bool,
    /// Whether an answer may have more than one call.
    pub parallel: bool,
}

/// A function of the client's.
#[derive(Clone, Debug)]
pub struct Function {
    pub name: String,
    pub description: Option<String>,
    /// The schema of its arguments, an object.
    pub parameters: Value,
    /// Whether a schema that can't be followed is an error, rather than followed as far as any JSON object goes.
    pub strict: bool,
}

impl Tools {
    /// Takes the parameters; `None` where nothing may be called.
    pub fn read(object: &mut Object<'_>, limits: &RequestLimits) -> Result<Option<Self>> {
        let functions = object
            .take("tools")
            .map(|raw| functions(raw, limits, "function.name", tool))
            .transpose()?;
        let choice = Choice::read(object.take("tool_choice"), limits)?;
        let parallel = object.boolean("parallel_tool_calls")?.unwrap_or(true);
        Self::new(functions.unwrap_or_default(), choice, parallel)
    }

    /// What a choice among functions comes to; `None` where nothing may be called.
    pub fn new(functions: Vec<Function>, choice: Choice, parallel: bool) -> Result<Option<Self>> {
        if functions.is_empty() {
            return match choice {
                Choice::None | Choice::Auto => Ok(None),
                Choice::Required | Choice::Named(_) | Choice::Allowed(..) => {
                    let message = "`tool_choice` needs `tools`";
                    Err(ApiError::invalid("tool_choice", "invalid_value", message))
                }
            };
        }
        // Who names a function wants that one call.
        let parallel = parallel && !matches!(choice, Choice::Named(_));
        let chosen = choice.of(&functions)?;
        Ok(chosen.map(|(callable, required)| Self {
            functions,
            callable,
            required,
            parallel,
        }))
    }

    /// The functions that may be called.
    pub fn called(&self) -> impl Iterator<Item = &Function> {
        self.callable.iter().map(|at| &self.functions[*at])
    }

    /// The functions as chat templates know them.
    pub fn template_tools(&self) -> Value {
        let tool = |function: &Function| {
            let mut fields = json!({"name": function.name});
            if let Some(description) = &function.description {
                fields["description"] = description.as_str().into();
            }
            fields["parameters"] = function.parameters.clone();
            json!({"type": "function", "function": fields})
        };
        self.functions.iter().map(tool).collect()
    }
}

/// The functions of `tools`, each read by `tool`. Refuses those that are too large together, and names that are bad or not
/// the only one of their kind; `name` is where a tool has it.
pub fn functions(
    raw: &RawValue,
    limits: &RequestLimits,
    name: &str,
    tool: impl Fn(&RawValue, &str, &RequestLimits) -> Result<Function>,
) -> Result<Vec<Function>> {
    let items = json::array(raw, "tools", limits.tools_max)?;
    let (bytes, limit) = (raw.get().len(), limits.tools_bytes_max);
    if bytes > limit {
        let message = format!("`tools` has {bytes} bytes, but the limit is {limit}");
        return Err(ApiError::invalid("tools", "out_of_range", message));
    }
    let mut functions: Vec<Function> = Vec::with_capacity(items.len());
    for (at, raw) in items.iter().enumerate() {
        let function = tool(raw, &format!("tools[{at}]"), limits)?;
        let path = format!("tools[{at}].{name}");
        check_name(&function.name, &path)?;
        if functions.iter().any(|other| other.name == function.name) {
            let message = format!("`{path}` is the name of another function in `tools`");
            return Err(ApiError::invalid(path, "invalid_value", message));
        }
        functions.push(function);
    }
    Ok(functions)
}

fn tool(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<Function> {
    let mut tool = Object::from_raw(raw, path)?;
    tool.require_choice("type", &["function"])?;
    let path = tool.path("function");
    let function = tool.require("function")?;
    tool.finish(&["type", "function"], &["cache_control"])?;
    let mut fields = Object::from_raw(function, &path)?;
    let read = Function {
        name: json::typed(fields.require("name")?, &fields.path("name"), "a string")?,
        description: fields.string("description")?,
        strict: fields.boolean("strict")?.unwrap_or(false),
        parameters: match fields.take("parameters") {
            Some(raw) => parameters(raw, &fields.path("parameters"), limits)?,
            None => json!({"type": "object", "properties": {}}),
        },
    };
    fields.finish(&["name", "description", "strict", "parameters"], &[])?;
    Ok(read)
}

fn check_name(name: &str, path: &str) -> Result<()> {
    let sane = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(sane) {
        return Ok(());
    }
    let message =
        format!("`{path}` must have 1 to {NAME_BYTES_MAX} letters, digits, underscores, dashes and dots");
    Err(ApiError::invalid(path, "invalid_value", message))
}

/// A schema of an object's.
pub fn parameters(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<Value> {
    let mut schema: Value = json::typed(raw, path, "a schema")?;
    let (bytes, limit) = (raw.get().len(), limits.format_bytes_max);
    if bytes > limit {
        let message = format!("`{path}` has {bytes} bytes, but the limit is {limit}");
        return Err(ApiError::invalid(path, "out_of_range", message));
    }
    let Some(fields) = schema.as_object_mut() else {
        let message = format!("`{path}` must be an object");
        return Err(ApiError::invalid(path, "invalid_type", message));
    };
    let kind = fields.entry("type").or_insert_with(|| "object".into());
    if kind != "object" {
        let path = format!("{path}.type");
        let message = format!("`{path}` must be \"object\": arguments have names");
        return Err(ApiError::invalid(path, "invalid_value", message));
    }
    Ok(schema)
}

/// What a client wants to be called.
pub enum Choice {
    None,
    Auto,
    Required,
    Named(String),
    /// Only some functions; whether one of them must be called.
    Allowed(Vec<String>, bool),
}

impl Choice {
    fn read(raw: Option<&RawValue>, limits: &RequestLimits) -> Result<Self> {
        const PATH: &str = "tool_choice";
        let Some(raw) = raw else {
            return Ok(Self::Auto);
        };
        if !raw.get().starts_with('{') {
            return Self::word(raw);
        }
        let mut object = Object::from_raw(raw, PATH)?;
        let kind = object.require_choice("type", &["function", "allowed_tools"])?;
        let choice = if kind == "function" {
            Self::Named(function_name(
                object.require("function")?,
                &object.path("function"),
            )?)
        } else {
            let path = object.path("allowed_tools");
            let mut allowed = Object::from_raw(object.require("allowed_tools")?, &path)?;
            let mode = allowed.require_choice("mode", ALLOWED_MODES)?;
            let path = allowed.path("tools");
            let tools = json::array(allowed.require("tools")?, &path, limits.tools_max)?;
            let name = |(at, raw): (usize, &&RawValue)| allowed_name(raw, &format!("{path}[{at}]"));
            let names = tools.iter().enumerate().map(name).collect::<Result<_>>()?;
            allowed.finish(&["mode", "tools"], &[])?;
            Self::Allowed(names, mode == "required")
        };
        object.finish(&["type", kind], &[])?;
        Ok(choice)
    }

    /// One of the words.
    pub fn word(raw: &RawValue) -> Result<Self> {
        match raw.get() {
            "\"none\"" => Ok(Self::None),
            "\"auto\"" => Ok(Self::Auto),
            "\"required\"" => Ok(Self::Required),
            _ => {
                let message = "`tool_choice` must be \"none\", \"auto\", \"required\" or an object";
                Err(ApiError::invalid("tool_choice", "invalid_value", message))
            }
        }
    }

    /// The functions that may be called, and whether one must be; `None` if none may.
    fn of(self, functions: &[Function]) -> Result<Option<(Vec<usize>, bool)>> {
        let all = || (0..functions.len()).collect();
        let find = |name: &String| {
            let found = functions.iter().position(|function| function.name == *name);
            found.ok_or_else(|| {
                let message = "`tool_choice` names a function that is not in `tools`";
                ApiError::invalid("tool_choice", "invalid_value", message)
            })
        };
        Ok(match self {
            Self::None => None,
            Self::Auto => Some((all(), false)),
            Self::Required => Some((all(), true)),
            Self::Named(name) => Some((vec![find(&name)?], true)),
            Self::Allowed(names, required) => {
                let mut callable: Vec<usize> = names.iter().map(find).collect::<Result<_>>()?;
                callable.sort_unstable();
                callable.dedup();
                if callable.is_empty() {
                    let message = "`tool_choice.allowed_tools.tools` must hold at least one function";
                    return Err(ApiError::invalid("tool_choice", "empty_array", message));
                }
                Some((callable, required))
            }
        })
    }
}

fn function_name(raw: &RawValue, path: &str) -> Result<String> {
    let mut function = Object::from_raw(raw, path)?;
    let name = json::typed(function.require("name")?, &function.path("name"), "a string")?;
    function.finish(&["name"], &[])?;
    Ok(name)
}

fn allowed_name(raw: &RawValue, path: &str) -> Result<String> {
    let mut tool = Object::from_raw(raw, path)?;
    tool.require_choice("type", &["function"])?;
    let name = function_name(tool.require("function")?, &tool.path("function"))?;
    tool.finish(&["type", "function"], &[])?;
    Ok(name)
}

/// A call that an assistant's message of the history made.
#[derive(Clone, Debug)]
pub struct PastCall {
    pub id: String,
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}

impl PastCall {
    /// The calls of a message.
    pub fn read(raw: &RawValue, path: &str, limits: &RequestLimits) -> Result<Vec<Self>> {
        let items = json::array(raw, path, limits.tools_max)?;
        let call = |(at, raw): (usize, &&RawValue)| Self::one(raw, &format!("{path}[{at}]"));
        items.iter().enumerate().map(call).collect()
    }

    fn one(raw: &RawValue, path: &str) -> Result<Self> {
        let mut call = Object::from_raw(raw, path)?;
        let id = json::typed(call.require("id")?, &call.path("id"), "a string")?;
        // Some clients leave it out.
        call.choice("type", &["function"])?;
        // Part of the deltas that clients put together.
        call.integer("index", &(0..=i64::from(u16::MAX)))?;
        let path = call.path("function");
        let mut function = Object::from_raw(call.require("function")?, &path)?;
        call.finish(&["id", "type", "index", "function"], &[])?;
        let name = json::typed(function.require("name")?, &function.path("name"), "a string")?;
        let arguments = function.string("arguments")?.unwrap_or_default();
        // What the SDKs' own parsers add.
        function.take("parsed_arguments");
        let (name_path, path) = (function.path("name"), function.path("arguments"));
        function.finish(&["name", "arguments"], &[])?;
        Self::new(id, (name, &name_path), (arguments, &path))
    }

    /// Of a name and a JSON object as text, each with where it stands.
    pub fn new(id: String, name: (String, &str), arguments: (String, &str)) -> Result<Self> {
        check_name(&name.0, name.1)?;
        Ok(Self {
            id,
            name: name.0,
            arguments: arguments_object(arguments.0, arguments.1)?,
        })
    }

    /// As chat templates know it.
    pub fn template_call(&self) -> Value {
        let function = json!({"name": self.name, "arguments": self.arguments});
        json!({"id": self.id, "type": "function", "function": function})
    }
}

/// Nothing stands for no arguments, as some models and clients have it.
fn arguments_object(arguments: String, path: &str) -> Result<String> {
    if arguments.trim().is_empty() {
        return Ok("{}".to_owned());
    }
    if let Ok(Value::Object(_)) = serde_json::from_str(&arguments) {
        return Ok(arguments);
    }
    let message = format!("`{path}` must be a JSON object");
    Err(ApiError::invalid(path, "invalid_value", message))
}
