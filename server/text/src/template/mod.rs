//! Chat templates: messages to a prompt, as `transformers` renders them, with the client's characters told apart.
//!
//! A template is a program from the model's file and the messages are strings from a client; what comes out is one
//! string in which the tokenizer would read control tokens, whoever spelt them. So the template is rendered twice: as
//! it is, and with every character of the client that could begin or end a control token replaced by a private-use
//! one. Where the second rendering says the same as the first, its replaced characters tell exactly which were the
//! client's, and the prompt equals that of `transformers` to the letter. A template that looks at such characters (to
//! cut `</think>` out of an answer, say) makes the two differ: then only whole spellings are replaced, and the result
//! is used if it names the same control tokens as the careful rendering does; else the careful one is.

mod environment;
mod marks;
mod python;
mod time;

use minijinja::{Environment, ErrorKind, Value as JinjaValue};
use serde_json::{Map, Value};

use crate::Error;
use environment::{NAME, RAISED};
use marks::{Care, Marks, Spellings};

/// The largest template source; the longest known have some 20 kB.
const SOURCE_BYTES_MAX: usize = 128 << 10;
/// Work that any template may do: about one instruction, or 64 bytes of data, for each.
const FUEL_BASE: u64 = 400_000;
/// More work for each value in the messages, tools and documents, and for each byte of their strings.
const FUEL_PER_VALUE: u64 = 2_000;
const FUEL_PER_BYTE: u64 = 2;
/// A second of work at most.
const FUEL_MAX: u64 = 5_000_000;
/// Address space only: pages that are not used cost nothing.
const STACK_BYTES: usize = 256 << 20;
/// Names that the template's arguments of a client must not replace.
const RESERVED: [&str; 12] = [
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
];

/// A piece of a rendered prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnedSegment {
    /// Characters of a client that must not become part of a control token.
    Text(String),
    /// Everything else.
    Markup(String),
}

impl OwnedSegment {
    /// For [`crate::Tokenizer::encode`].
    pub fn as_segment(&self) -> crate::Segment<'_> {
        match self {
            Self::Text(text) => crate::Segment::Text(text),
            Self::Markup(text) => crate::Segment::Markup(text),
        }
    }

    /// The characters, whoever wrote them.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Markup(text) => text,
        }
    }
}

/// The special tokens of a vocabulary, as [`crate::Tokenizer::special_tokens`] gives them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unknown: Option<String>,
    pub padding: Option<String>,
    /// Spellings of all control tokens: what a client's text must not become.
    pub control: Vec<String>,
}

/// What a template is given.
#[derive(Clone, Debug)]
pub struct RenderInput<'a> {
    /// An array of messages (`role`, `content`, `tool_calls` …).
    pub messages: &'a Value,
    pub tools: Option<&'a Value>,
    pub documents: Option<&'a Value>,
    pub add_generation_prompt: bool,
    /// Further variables of the client (`chat_template_kwargs`).
    pub kwargs: Map<String, Value>,
    /// The time for `strftime_now`, in seconds since 1970, UTC.
    pub now_s: i64,
}

/// A chat template, parsed.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special: SpecialTokens,
    spellings: Spellings,
}

impl ChatTemplate {
    /// Parses a template's source.
    ///
    /// # Errors
    /// [`Error::Template`] for a syntax error, a source over 128 KiB or nesting over the parser's limit.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self, Error> {
        if source.len() > SOURCE_BYTES_MAX {
            let len = source.len();
            return Err(Error::Template(format!(
                "{len} bytes, the limit is {SOURCE_BYTES_MAX}"
            )));
        }
        let environment = with_deep_stack(|| environment::with_template(source))?;
        let spellings = Spellings::new(&special.control, source)?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            special,
            spellings,
        })
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders the prompt. Joined, the segments are the text that `transformers` renders.
    ///
    /// # Errors
    /// [`Error::Raised`] and [`Error::Render`] if the template fails or does too much work; [`Error::Input`] for an
    /// argument that may not be set.
    pub fn render(&self, input: &RenderInput<'_>) -> Result<Vec<OwnedSegment>, Error> {
        with_deep_stack(|| self.render_here(input))
    }

    fn render_here(&self, input: &RenderInput<'_>) -> Result<Vec<OwnedSegment>, Error> {
        if let Some(name) = RESERVED.iter().find(|name| input.kwargs.contains_key(**name)) {
            return Err(Error::Input(format!(
                "the template argument {name:?} cannot be set"
            )));
        }
        let strings = ClientInput::new(input);
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel(&strings)));
        let now_s = input.now_s;
        environment.add_function("strftime_now", move |format: &str| time::strftime(now_s, format));
        let render =
            |strings: &ClientInput| self.render_once(&environment, strings, input.add_generation_prompt);

        let plain = render(&strings)?;
        let marks = self.spellings.marks(&strings.values())?;
        let Some(careful) = strings.marked(&marks, Care::EveryBorder) else {
            return Ok(vec![OwnedSegment::Markup(plain)]);
        };
        let careful = render(&careful)?;
        if marks.unmark(&careful) == plain {
            return Ok(marks.segments(&careful));
        }
        let exact = match strings.marked(&marks, Care::WholeSpellings) {
            Some(exact) => render(&exact)?,
            None => plain,
        };
        let same = self.spellings.found(&exact) == self.spellings.found(&careful);
        Ok(marks.segments(if same { &exact } else { &careful }))
    }

    fn render_once(
        &self,
        environment: &Environment<'static>,
        strings: &ClientInput,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let mut context: Vec<(&str, JinjaValue)> = vec![
            ("messages", convert(&strings.messages)),
            ("tools", convert(&strings.tools)),
            ("documents", convert(&strings.documents)),
            ("add_generation_prompt", JinjaValue::from(add_generation_prompt)),
        ];
        let special = &self.special;
        let tokens = [
            ("bos_token", &special.bos),
            ("eos_token", &special.eos),
            ("unk_token", &special.unknown),
            ("pad_token", &special.padding),
        ];
        for (name, token) in tokens {
            context.extend(
                token
                    .as_ref()
                    .map(|token| (name, JinjaValue::from(token.as_str()))),
            );
        }
        let kwargs = strings.kwargs.as_object().into_iter().flatten();
        context.extend(kwargs.map(|(name, value)| (name.as_str(), convert(value))));
        let context = JinjaValue::from_pairs(context);
        environment
            .get_template(NAME)
            .and_then(|template| template.render(context))
            .map_err(|error| self.explain(&error))
    }

    /// An error without the client's words: what a template raises is repeated only if it stands in its source.
    fn explain(&self, error: &minijinja::Error) -> Error {
        let mut cause = Some(error as &dyn std::error::Error);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<minijinja::Error>()
                && let Some(raised) = error.detail().and_then(|detail| detail.strip_prefix(RAISED))
            {
                let own = !raised.is_empty() && self.source.contains(raised);
                let words = if own { raised } else { "it raises an exception" };
                return Error::Raised(words.to_owned());
            }
            cause = error.source();
        }
        let what = match error.kind() {
            ErrorKind::OutOfFuel => "it does more work than is allowed".to_owned(),
            kind => kind.to_string(),
        };
        Error::Render {
            line: error.line().unwrap_or(0),
            what,
        }
    }
}

/// Runs the template engine on a stack that its recursion cannot exhaust within the limits on source and work: chains
/// of operators are parsed, and nested values dropped, by functions that call themselves.
fn with_deep_stack<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("chat-template".to_owned())
            .stack_size(STACK_BYTES);
        match thread
            .spawn_scoped(scope, work)
            .map(std::thread::ScopedJoinHandle::join)
        {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::Template("the template engine panicked".to_owned())),
            Err(error) => Err(Error::Template(format!(
                "no thread for the template engine: {error}"
            ))),
        }
    })
}

/// All that a client sends, with or without marks.
struct ClientInput {
    messages: Value,
    tools: Value,
    documents: Value,
    kwargs: Value,
}

impl ClientInput {
    fn new(input: &RenderInput<'_>) -> Self {
        Self {
            messages: input.messages.clone(),
            tools: input.tools.cloned().unwrap_or_default(),
            documents: input.documents.cloned().unwrap_or_default(),
            kwargs: Value::Object(input.kwargs.clone()),
        }
    }

    fn values(&self) -> [&Value; 4] {
        [&self.messages, &self.tools, &self.documents, &self.kwargs]
    }

    /// None if there is nothing to mark.
    fn marked(&self, marks: &Marks<'_>, care: Care) -> Option<Self> {
        let mut any = false;
        let marked = Self {
            messages: marks.messages(&self.messages, care, &mut any),
            tools: marks.value(&self.tools, care, &mut any),
            documents: marks.value(&self.documents, care, &mut any),
            kwargs: marks.arguments(&self.kwargs, care, &mut any),
        };
        any.then_some(marked)
    }
}

/// JSON to the template's values; names keep their order.
fn convert(value: &Value) -> JinjaValue {
    match value {
        Value::Null => JinjaValue::from(()),
        Value::Bool(value) => JinjaValue::from(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => JinjaValue::from(number),
            (None, Some(number)) => JinjaValue::from(number),
            (None, None) => JinjaValue::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => JinjaValue::from(text.as_str()),
        Value::Array(items) => items.iter().map(convert).collect::<Vec<_>>().into(),
        Value::Object(fields) => {
            JinjaValue::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), convert(field))))
        }
    }
}

/// Work grows with what there is to write, not with what the template would like.
fn fuel(input: &ClientInput) -> u64 {
    let (mut values, mut bytes) = (0, 0);
    for value in input.values() {
        weigh(value, &mut values, &mut bytes);
    }
    FUEL_BASE
        .saturating_add(FUEL_PER_VALUE.saturating_mul(values))
        .saturating_add(FUEL_PER_BYTE.saturating_mul(bytes))
        .min(FUEL_MAX)
}

fn weigh(value: &Value, values: &mut u64, bytes: &mut u64) {
    *values += 1;
    match value {
        Value::String(text) => *bytes += text.len() as u64,
        Value::Array(items) => items.iter().for_each(|item| weigh(item, values, bytes)),
        Value::Object(fields) => fields.iter().for_each(|(name, field)| {
            *bytes += name.len() as u64;
            weigh(field, values, bytes);
        }),
        _ => {}
    }
}
