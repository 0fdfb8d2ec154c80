//! What one event of a streamed answer says about time and counts; its text is looked at and not kept.

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use rempart_client::{Failure, ServerError};

/// What an event brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Brought {
    /// At least one token of the answer.
    pub token: bool,
    /// Something about a choice, be it only that it ends.
    pub choice: bool,
    pub finished: bool,
    pub usage: Option<Usage>,
}

/// Tokens as the server counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    pub prompt_tokens: Option<u32>,
    #[serde(default)]
    pub completion_tokens: Option<u32>,
    #[serde(default)]
    pub total_tokens: Option<u32>,
    #[serde(default)]
    pub prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct PromptDetails {
    #[serde(default)]
    pub cached_tokens: Option<u32>,
}

#[derive(serde::Deserialize)]
struct Chunk {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<serde_json::Value>,
}

#[derive(serde::Deserialize)]
struct Choice {
    delta: Option<Delta>,
    #[serde(default)]
    text: Value,
    #[serde(default)]
    finish_reason: Value,
}

#[derive(serde::Deserialize)]
struct Delta {
    #[serde(default)]
    role: Value,
    #[serde(default)]
    content: Value,
    #[serde(default)]
    reasoning_content: Value,
    #[serde(default)]
    reasoning: Value,
    #[serde(default)]
    tool_calls: Value,
    #[serde(default)]
    refusal: Value,
}

/// Whether a member is there, and whether it holds anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Value {
    #[default]
    Missing,
    Empty,
    Full,
}

/// Reads an event's data.
///
/// # Errors
/// Where it is no JSON object of the API, or tells an error.
pub(crate) fn read(data: &[u8]) -> Result<Brought, Failure> {
    let chunk: Chunk = serde_json::from_slice(data).map_err(|_| Failure::BadEvent)?;
    if let Some(error) = chunk.error {
        return Err(Failure::InStream(ServerError::of(&error).code));
    }
    let choices = chunk.choices.unwrap_or_default();
    Ok(Brought {
        token: choices.iter().any(Choice::has_token),
        choice: !choices.is_empty(),
        finished: choices.iter().any(|choice| choice.finish_reason == Value::Full),
        usage: chunk.usage,
    })
}

impl Choice {
    /// A token may be an empty text, where half a character waits for its rest; but not beside the role, and not at the end.
    fn has_token(&self) -> bool {
        let (texts, role) = match &self.delta {
            None => (
                [
                    self.text,
                    Value::Missing,
                    Value::Missing,
                    Value::Missing,
                    Value::Missing,
                ],
                false,
            ),
            Some(delta) => (
                [
                    delta.content,
                    delta.reasoning_content,
                    delta.reasoning,
                    delta.tool_calls,
                    delta.refusal,
                ],
                delta.role != Value::Missing,
            ),
        };
        texts.contains(&Value::Full)
            || texts[0] == Value::Empty && !role && self.finish_reason == Value::Missing
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(if text.is_empty() {
            Value::Empty
        } else {
            Value::Full
        })
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Missing)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Full)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Full)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Full)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Full)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut found = Value::Empty;
        while items.next_element::<IgnoredAny>()?.is_some() {
            found = Value::Full;
        }
        Ok(found)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(data: &str) -> bool {
        read(data.as_bytes()).unwrap().token
    }

    #[test]
    fn tokens_are_told_from_what_surrounds_them() {
        assert!(!token(
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#
        ));
        assert!(token(
            r#"{"choices":[{"delta":{"role":"assistant","content":"a"}}]}"#
        ));
        assert!(token(
            r#"{"choices":[{"delta":{"content":""},"finish_reason":null}]}"#
        ));
        assert!(token(r#"{"choices":[{"delta":{"reasoning_content":"a"}}]}"#));
        assert!(token(r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#));
        assert!(token(r#"{"choices":[{"text":"a"}]}"#));
        assert!(!token(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#));
        assert!(!token(r#"{"choices":[{"text":"","finish_reason":"length"}]}"#));
        assert!(!token(r#"{"choices":[],"usage":{"prompt_tokens":3}}"#));
    }

    #[test]
    fn counts_ends_and_errors_are_read() {
        let end = br#"{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":null}"#;
        assert!(read(end).unwrap().finished);
        let usage = br#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}"#;
        let usage = read(usage).unwrap().usage.unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (Some(3), Some(4)));
        let error = br#"{"error":{"message":"what you asked","type":"server_error","code":null}}"#;
        assert_eq!(
            read(error),
            Err(Failure::InStream(Some("server_error".to_owned())))
        );
        assert_eq!(
            read(br#"{"error":"what you asked"}"#),
            Err(Failure::InStream(None))
        );
        assert_eq!(read(b"garbage"), Err(Failure::BadEvent));
        assert_eq!(read(b"[1]"), Err(Failure::BadEvent));
    }
}
