//! How a chat template speaks of functions and reasoning, found by asking it: it is rendered with calls whose names and
//! arguments are known, and what it writes around them is what the model was taught to write.

use serde_json::{Map, Value, json};

use super::calls::CallSyntax;
use super::instructions;
use super::object::ObjectScanner;
use super::reasoning::ReasoningMarkers;
use crate::{ChatTemplate, OwnedSegment, RenderInput};

/// What the template is asked with: words that no template contains.
const NAMES: [&str; 2] = ["rempart_first", "rempart_second"];
const KEY: &str = "\"rempart_key\"";
/// Identifiers of calls, of which templates of Mistral take the short kind only.
const LONG_IDS: [&str; 2] = ["call_rempart0000000000000001", "call_rempart0000000000000002"];
const SHORT_IDS: [&str; 2] = ["rempart01", "rempart02"];

/// Arguments by which templates in use turn reasoning on and off.
const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];

/// How a template wants the arguments of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArgumentsForm {
    Object,
    /// As JSON in a string, as clients send them.
    Text,
}

/// What a template does about functions itself; the rest is told as ordinary text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolSupport {
    /// It tells which functions there are, and writes calls and their results.
    Full,
    /// It writes calls and their results.
    Calls,
    Nothing,
}

/// By which argument a template takes how much to reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffortArgument {
    /// `reasoning_effort`, one of OpenAI's words.
    Effort,
    /// A switch of this name.
    Switch(&'static str),
    Nothing,
}

/// What a chat template knows of functions and reasoning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialect {
    pub calls: CallSyntax,
    pub tools: ToolSupport,
    pub arguments: ArgumentsForm,
    /// Whether identifiers of calls must be nine letters and digits.
    pub short_ids: bool,
    pub reasoning: Option<ReasoningMarkers>,
    pub effort: EffortArgument,
    takes_system: bool,
}

impl Dialect {
    /// Asks a template. `ends` are the spellings of the tokens that end an answer.
    pub fn of(template: &ChatTemplate, ends: &[String]) -> Self {
        let asked = Asked { template, ends };
        let reasoning = ReasoningMarkers::of(template.source());
        let user = [json!({"role": "user", "content": "rempart"})];
        let system = json!({"role": "system", "content": "rempart_system"});
        let with_system = asked.render(&[&[system], &user[..]].concat(), None, true);
        let tells = || asked.render(&user, Some(&tools()), true) != asked.render(&user, None, true);
        let found = asked.calls(reasoning);
        let support = match &found {
            Some(_) if tells() => ToolSupport::Full,
            Some(_) => ToolSupport::Calls,
            None => ToolSupport::Nothing,
        };
        let (calls, arguments, short_ids) =
            found.unwrap_or_else(|| (CallSyntax::generic(), ArgumentsForm::Object, false));
        Self {
            calls,
            tools: support,
            arguments,
            short_ids,
            reasoning,
            effort: effort(template.source()),
            takes_system: with_system.is_some_and(|text| text.contains("rempart_system")),
        }
    }

    /// Messages in OpenAI's form, the arguments of calls as JSON text, and tools, as the template takes them.
    pub fn conversation(&self, mut messages: Vec<Value>, tools: Option<Value>) -> (Value, Option<Value>) {
        if self.tools == ToolSupport::Nothing {
            messages = instructions::spell_out(messages, &self.calls);
        } else {
            for message in &mut messages {
                self.form(message);
            }
        }
        let tools = match tools {
            Some(tools) if self.tools != ToolSupport::Full => {
                if self.takes_system {
                    instructions::into_system(&mut messages, &tools, &self.calls);
                } else {
                    instructions::into_user(&mut messages, &tools, &self.calls);
                }
                None
            }
            tools => tools,
        };
        (Value::Array(messages), tools)
    }

    /// Gives the calls of a message their arguments as the template takes them, and identifiers of its kind.
    fn form(&self, message: &mut Value) {
        let short = |id: &mut Value| {
            if let Some(text) = id.as_str().filter(|_| self.short_ids) {
                *id = short_id(text).into();
            }
        };
        if let Some(id) = message.get_mut("tool_call_id") {
            short(id);
        }
        for call in message
            .get_mut("tool_calls")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            short(&mut call["id"]);
            let arguments = &mut call["function"]["arguments"];
            if let (ArgumentsForm::Object, Some(text)) = (self.arguments, arguments.as_str()) {
                *arguments = serde_json::from_str(text).unwrap_or_else(|_| Value::Object(Map::new()));
            }
        }
    }
}

/// The arguments of a function's call, as JSON text.
pub(super) fn arguments_of(function: &Value) -> String {
    match &function["arguments"] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// An identifier of nine letters and digits: itself, or one that the same text always gives (FNV-1a).
fn short_id(id: &str) -> String {
    if id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    let mut hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut digit = || {
        let value = (hash % 36) as u32;
        hash /= 36;
        char::from_digit(value, 36).unwrap_or('0')
    };
    (0..9).map(|_| digit()).collect()
}

fn tools() -> Value {
    let tool = |name: &str| {
        let text = json!({"type": "string", "description": "rempart"});
        let parameters = json!({"type": "object", "properties": {"rempart_key": text}, "required": []});
        json!({"type": "function", "function": {"name": name, "description": "rempart", "parameters": parameters}})
    };
    NAMES.map(tool).into_iter().collect()
}

/// A template that is being asked.
struct Asked<'a> {
    template: &'a ChatTemplate,
    ends: &'a [String],
}

impl Asked<'_> {
    /// The syntax of calls, of two in one answer where the template writes as many.
    fn calls(&self, reasoning: Option<ReasoningMarkers>) -> Option<(CallSyntax, ArgumentsForm, bool)> {
        for count in [2, 1] {
            for arguments in [ArgumentsForm::Object, ArgumentsForm::Text] {
                for ids in [LONG_IDS, SHORT_IDS] {
                    if let Some(text) = self.answer(count, arguments, ids, reasoning)
                        && let Some(calls) = self.split(&text, count, ids)
                    {
                        return Some((calls, arguments, ids == SHORT_IDS));
                    }
                }
            }
        }
        None
    }

    /// An answer of calls, as the template writes it.
    fn answer(
        &self,
        count: usize,
        form: ArgumentsForm,
        ids: [&str; 2],
        reasoning: Option<ReasoningMarkers>,
    ) -> Option<String> {
        let arguments = json!({"rempart_key": "rempart_value"});
        let arguments = match form {
            ArgumentsForm::Object => arguments,
            ArgumentsForm::Text => Value::from(arguments.to_string()),
        };
        let call = |index: usize| {
            let function = json!({"name": NAMES[index], "arguments": arguments});
            json!({"id": ids[index], "type": "function", "function": function})
        };
        let calls: Vec<Value> = (0..count).map(call).collect();
        let user = json!({"role": "user", "content": "rempart"});
        let assistant = json!({"role": "assistant", "content": "", "tool_calls": calls});
        let tools = tools();
        let prompt = self.render(std::slice::from_ref(&user), Some(&tools), true)?;
        let whole = self.render(&[user, assistant], Some(&tools), false)?;
        let prompt = reasoning.map_or(prompt.as_str(), |markers| markers.cut_from(&prompt));
        let answer = &whole[common_prefix(prompt, &whole)..];
        Some(
            reasoning
                .map_or(answer, |markers| markers.skip_in(answer))
                .to_owned(),
        )
    }

    /// Finds names and arguments in an answer.
    fn split(&self, answer: &str, count: usize, ids: [&str; 2]) -> Option<CallSyntax> {
        let (begin, middle, mut rest) = call_in(answer, NAMES[0])?;
        let mut between = None;
        if count == 2 {
            let (before, again, after) = call_in(rest, NAMES[1])?;
            between = Some(without_ids(before, ids)?);
            if without_ids(again, ids)? != without_ids(middle, ids)? {
                return None;
            }
            rest = after;
        }
        let ends = self.ends.iter().filter_map(|end| rest.find(end.as_str()));
        let end = &rest[..ends.min().unwrap_or(rest.len())];
        Some(CallSyntax::new(
            without_ids(begin, ids)?.trim_start(),
            &without_ids(middle, ids)?,
            between.as_deref(),
            without_ids(end, ids)?.trim_end(),
        ))
    }

    fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Option<String> {
        let input = RenderInput {
            messages: &messages.iter().cloned().collect(),
            tools,
            documents: None,
            add_generation_prompt,
            kwargs: Map::new(),
            now_s: 0,
        };
        let segments = self.template.render(&input).ok()?;
        Some(segments.iter().map(OwnedSegment::as_str).collect())
    }
}

/// What stands before a call's name, between it and its arguments, and after those.
fn call_in<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let (before, rest) = text.split_once(name)?;
    let start = rest[..rest.find(KEY)?].rfind('{')?;
    let (middle, object) = rest.split_at(start);
    let end = ObjectScanner::default().scan(object)?;
    let (object, after) = object.split_at(end);
    let found: Value = serde_json::from_str(object).ok()?;
    (found == json!({"rempart_key": "rempart_value"})).then_some((before, middle, after))
}

/// A text without identifiers of calls, which a model need not make up; `None` where they are more than an ornament.
fn without_ids(text: &str, ids: [&str; 2]) -> Option<String> {
    let mut text = text.to_owned();
    for id in ids {
        for ornament in [
            format!(", \"id\": \"{id}\""),
            format!("\"id\": \"{id}\", "),
            format!("[CALL_ID]{id}"),
        ] {
            text = text.replace(&ornament, "");
        }
        if text.contains(id) {
            return None;
        }
    }
    Some(text)
}

fn effort(source: &str) -> EffortArgument {
    if mentions(source, "reasoning_effort") {
        return EffortArgument::Effort;
    }
    let switch = SWITCHES.into_iter().find(|switch| mentions(source, switch));
    switch.map_or(EffortArgument::Nothing, EffortArgument::Switch)
}

/// Whether a template's source has a word of its own.
fn mentions(source: &str, word: &str) -> bool {
    let of_word = |character: char| character.is_alphanumeric() || character == '_';
    source.match_indices(word).any(|(at, _)| {
        let (before, after) = (&source[..at], &source[at + word.len()..]);
        // `variable`, and neither `"text"`, nor `object.field`, nor `<tag>`.
        let opens = |character: char| of_word(character) || "\"'.<[/".contains(character);
        !before.ends_with(opens) && !after.starts_with(of_word)
    })
}

fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.char_indices().zip(b.chars()).take_while(|((_, x), y)| x == y);
    same.last().map_or(0, |((at, x), _)| at + x.len_utf8())
}
