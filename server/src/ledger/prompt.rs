//! The prompt of a body, whatever endpoint it is for: what somebody wrote last, by which one finds the request again.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Where bodies have it. Whoever reads a body for its endpoint says what is wrong with it.
#[derive(Deserialize)]
struct Body<'a> {
    /// Of chats.
    #[serde(borrow)]
    messages: Option<Vec<&'a RawValue>>,
    /// Of responses and embeddings.
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    /// Of completions.
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    /// Of ranks and scores.
    #[serde(borrow)]
    query: Option<&'a RawValue>,
    #[serde(borrow)]
    text_1: Option<&'a RawValue>,
}

/// One message, or an item of an input.
#[derive(Deserialize)]
struct Message<'a> {
    role: String,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
}

/// A text, or several of them: parts of a message, or prompts.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Several(Vec<Text>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Part { text: String },
    Other(serde::de::IgnoredAny),
}

/// The text of the last message of a user, or of the prompts, each on lines of its own; `None` where there is none.
pub(super) fn prompt(body: &[u8]) -> Option<String> {
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    if let Some(messages) = &body.messages {
        return last_of_user(messages);
    }
    if let Some(input) = body.input {
        let items: Result<Vec<&RawValue>, _> = serde_json::from_str(input.get());
        let message = items.ok().and_then(|items| last_of_user(&items));
        return message.or_else(|| texts(input));
    }
    let one = [body.prompt, body.query, body.text_1];
    one.into_iter().flatten().find_map(texts)
}

fn last_of_user(messages: &[&RawValue]) -> Option<String> {
    messages.iter().rev().find_map(|message| {
        let message: Message<'_> = serde_json::from_str(message.get()).ok()?;
        (message.role == "user").then_some(())?;
        texts(message.content?)
    })
}

fn texts(value: &RawValue) -> Option<String> {
    match serde_json::from_str(value.get()).ok()? {
        Texts::One(text) => Some(text),
        Texts::Several(several) => {
            let each = several.into_iter().filter_map(|text| match text {
                Text::Plain(text) | Text::Part { text } => Some(text),
                Text::Other(_) => None,
            });
            let all: Vec<String> = each.collect();
            (!all.is_empty()).then(|| all.join("\n"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_wrote_last_is_found() {
        for (body, found) in [
            (
                r#"{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}"#,
                Some("b"),
            ),
            (
                r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "x"}, {"text": "b"}]}]}"#,
                Some("a\nb"),
            ),
            (
                r#"{"messages": [{"role": "system", "content": "a"}], "prompt": "b"}"#,
                None,
            ),
            (r#"{"input": "a"}"#, Some("a")),
            (r#"{"input": ["a", "b"]}"#, Some("a\nb")),
            (
                r#"{"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}, {"type": "function_call_output", "output": "b"}]}"#,
                Some("a"),
            ),
            (r#"{"input": [1, 2]}"#, None),
            (r#"{"prompt": ["a", "b"]}"#, Some("a\nb")),
            (r#"{"query": "a", "documents": ["b"]}"#, Some("a")),
            (r#"{"text_1": ["a"], "text_2": "b"}"#, Some("a")),
            (r#"{"messages": [7, {"role": "user"}]}"#, None),
            (r#"{"messages": 7}"#, None),
            (r"{}", None),
            ("", None),
        ] {
            assert_eq!(prompt(body.as_bytes()).as_deref(), found, "{body}");
        }
    }
}
