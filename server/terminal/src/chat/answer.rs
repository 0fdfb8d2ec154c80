//! An answer that is being streamed: its parts as they come, and figures of it.

use std::fmt::Write as _;
use std::time::Instant;

use rempart_client::{Failure, ServerError, TooLong};
use serde::Deserialize;

/// Of the text of one answer, reasoning included.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Content(&'a str),
    Reasoning(&'a str),
    /// The name of a tool that the model would call, which nobody does here.
    Call(&'a str),
}

/// Why an answer did not come to its end.
#[derive(Debug)]
pub(super) enum Stopped {
    Failure(Failure),
    Server(ServerError),
    /// Standard output takes no more.
    Output(std::io::Error),
}

impl From<Failure> for Stopped {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<TooLong> for Stopped {
    fn from(error: TooLong) -> Self {
        Self::Failure(error.into())
    }
}

/// What came so far.
#[derive(Debug)]
pub(super) struct Answer {
    began: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
    pub content: String,
    bytes: usize,
    events: u32,
    tokens: Option<u32>,
    prompt_tokens: Option<u32>,
    /// Why it ended, as the API names it.
    pub finish: Option<String>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Option<Vec<Choice>>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    refusal: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
struct Call {
    #[serde(default)]
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    #[serde(default)]
    name: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<u32>,
    #[serde(default)]
    completion_tokens: Option<u32>,
}

impl Answer {
    pub(super) fn begin(now: Instant) -> Self {
        Self {
            began: now,
            first: None,
            last: None,
            content: String::new(),
            bytes: 0,
            events: 0,
            tokens: None,
            prompt_tokens: None,
            finish: None,
        }
    }

    /// Takes an event that came then, and gives its parts.
    ///
    /// # Errors
    /// Where the server reports one, the event is none of the API, or what was given can't be shown.
    pub(super) fn event(
        &mut self,
        data: &[u8],
        now: Instant,
        mut show: impl FnMut(Part<'_>) -> std::io::Result<()>,
    ) -> Result<(), Stopped> {
        let chunk: Chunk = serde_json::from_slice(data).map_err(|_| Failure::BadEvent)?;
        if let Some(error) = chunk.error {
            return Err(Stopped::Server(ServerError::of(&error)));
        }
        if let Some(usage) = chunk.usage {
            self.tokens = usage.completion_tokens.or(self.tokens);
            self.prompt_tokens = usage.prompt_tokens.or(self.prompt_tokens);
        }
        let Some(choice) = chunk.choices.and_then(|choices| choices.into_iter().next()) else {
            return Ok(());
        };
        if choice.finish_reason.is_some() {
            self.finish = choice.finish_reason;
        }
        let Some(delta) = choice.delta else {
            return Ok(());
        };
        let reasoning = delta.reasoning_content.or(delta.reasoning).unwrap_or_default();
        let content = delta.content.or(delta.refusal).unwrap_or_default();
        let calls = delta.tool_calls.unwrap_or_default();
        let names = calls
            .iter()
            .filter_map(|call| call.function.as_ref()?.name.as_deref());
        if !reasoning.is_empty() || !content.is_empty() || !calls.is_empty() {
            self.first.get_or_insert(now);
            self.last = Some(now);
            self.events += 1;
        }
        self.bytes += reasoning.len() + content.len();
        if self.bytes > ANSWER_BYTES_MAX {
            return Err(Failure::TooLong.into());
        }
        self.content.push_str(&content);
        let parts = [Part::Reasoning(&reasoning), Part::Content(&content)];
        let parts = parts
            .into_iter()
            .filter(|part| !matches!(part, Part::Reasoning("") | Part::Content("")));
        for part in parts.chain(names.map(Part::Call)) {
            show(part).map_err(Stopped::Output)?;
        }
        Ok(())
    }

    /// Tokens, tokens a second and TTFT, in words; tokens are events where the server does not count them.
    pub(super) fn figures(&self) -> String {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return "no answer".to_owned();
        };
        let tokens = self.tokens.unwrap_or(self.events);
        let ttft = first.saturating_duration_since(self.began).as_secs_f64();
        let seconds = last.saturating_duration_since(first).as_secs_f64();
        let mut text = format!("{tokens} tokens");
        if tokens > 1 && seconds > 0.0 {
            let _ = write!(text, ", {:.1} tokens/s", f64::from(tokens - 1) / seconds);
        }
        let _ = write!(text, ", TTFT {:.0} ms", ttft * 1e3);
        if let Some(prompt) = self.prompt_tokens {
            let _ = write!(text, ", prompt {prompt} tokens");
        }
        match self.finish.as_deref() {
            Some("length") => text.push_str(", cut off at the limit of tokens"),
            Some("content_filter") => text.push_str(", cut off by a filter"),
            Some("tool_calls") => text.push_str(", it wants to call a tool, which nobody does here"),
            _ => {}
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn parts_come_in_order_and_figures_are_of_the_clock() {
        let start = Instant::now();
        let mut answer = Answer::begin(start);
        let mut shown = String::new();
        let events: [&[u8]; 6] = [
            br#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            br#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#,
            br#"{"choices":[{"delta":{"content":"Hel"},"finish_reason":null}]}"#,
            br#"{"choices":[{"delta":{"content":"lo"}}]}"#,
            br#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#,
            br#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":21}}"#,
        ];
        for (index, event) in (0_u32..).zip(events) {
            let now = start + Duration::from_millis(100) * index;
            answer
                .event(event, now, |part| {
                    let _ = write!(shown, "{part:?};");
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(shown, "Reasoning(\"hm\");Content(\"Hel\");Content(\"lo\");");
        assert_eq!(answer.content, "Hello");
        assert_eq!(
            answer.figures(),
            "21 tokens, 100.0 tokens/s, TTFT 100 ms, prompt 9 tokens, cut off at the limit of tokens"
        );
    }

    #[test]
    fn errors_in_a_stream_end_it() {
        let mut answer = Answer::begin(Instant::now());
        let mut take = |data: &[u8]| answer.event(data, Instant::now(), |_| Ok(()));
        assert!(matches!(
            take(b"garbage"),
            Err(Stopped::Failure(Failure::BadEvent))
        ));
        let said = take(br#"{"error":{"message":"no room","code":"kv_cache_full"}}"#);
        assert!(
            matches!(said, Err(Stopped::Server(error)) if error.code.as_deref() == Some("kv_cache_full"))
        );
        let long =
            serde_json::json!({ "choices": [{ "delta": { "content": "x".repeat(1 << 20) } }] }).to_string();
        let ended = (0..20).find_map(|_| take(long.as_bytes()).err());
        assert!(matches!(ended, Some(Stopped::Failure(Failure::TooLong))));
    }
}
