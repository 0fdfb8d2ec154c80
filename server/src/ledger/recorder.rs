//! What is asked and answered in a request whose project has it recorded.

use std::sync::Arc;

use rempart_governance::{Announced, Content, Error, Sealed, UsageEvent, pack};
use serde::Serialize;

use crate::chat::assemble::Said;
use crate::http::bodies::Held;

/// Of a request that runs.
pub(super) struct Recorder {
    pub announced: Arc<Announced>,
    /// Its body, packed; `None` until it was read.
    pub asked: Option<Vec<u8>>,
    /// What that holds of the memory of bodies.
    pub held: Option<Arc<Held>>,
    /// The keyed hash of its prompt; empty where none is kept, or there is no prompt.
    pub fingerprint: String,
    /// By choice.
    pub answers: Vec<Answer>,
}

/// What one choice says, as far as it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Answer {
    content: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
    /// Why it ended; `null` where it did not.
    finish_reason: Option<&'static str>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

impl Recorder {
    pub(super) fn new(announced: Arc<Announced>) -> Self {
        Self {
            announced,
            asked: None,
            held: None,
            fingerprint: String::new(),
            answers: Vec::new(),
        }
    }

    /// Adds what a choice says.
    pub(super) fn said(&mut self, choice: usize, said: &[Said], finish_reason: Option<&'static str>) {
        if self.announced.recording.reader.is_none() {
            return;
        }
        if self.answers.len() <= choice {
            self.answers.resize(choice + 1, Answer::default());
        }
        let answer = &mut self.answers[choice];
        for one in said {
            answer.add(one);
        }
        answer.finish_reason = finish_reason.or(answer.finish_reason);
    }

    /// Bytes that its record will take, about.
    pub(super) fn bytes(&self) -> usize {
        let said = self
            .answers
            .iter()
            .map(|answer| answer.content.len() + answer.reasoning.len());
        self.asked.as_ref().map_or(0, Vec::len) + said.sum::<usize>()
    }

    /// The record of a request with this row, sealed.
    ///
    /// # Errors
    /// Where it can't be sealed for its reader.
    pub(super) fn seal(&self, row: &UsageEvent) -> Result<Content, Error> {
        let sealed = match &self.announced.recording.reader {
            Some(reader) => {
                let answers = serde_json::to_vec(&self.answers).map_err(std::io::Error::from)?;
                Sealed::seal(
                    reader,
                    &row.id,
                    self.asked.as_deref().unwrap_or_default(),
                    &pack(&answers),
                )?
            }
            None => Sealed::default(),
        };
        Ok(Content {
            request: row.id.clone(),
            project: row.project.clone(),
            key: row.key.clone(),
            began_ms: row.began_ms,
            due_ms: Content::due(row.began_ms, self.announced.recording.days),
            announced: self.announced.row,
            fingerprint: self.fingerprint.clone(),
            sealed,
        })
    }
}

impl Answer {
    fn add(&mut self, said: &Said) {
        match said {
            Said::Content(text) => self.content.push_str(text),
            Said::Reasoning(text) => self.reasoning.push_str(text),
            Said::Call { id, name, .. } => self.tool_calls.push(Call {
                id: id.clone(),
                name: name.clone(),
                arguments: String::new(),
            }),
            Said::Arguments { index, text } => {
                if let Some(call) = self.tool_calls.get_mut(*index) {
                    call.arguments.push_str(text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rempart_governance::Recording;

    use super::*;

    #[test]
    fn what_choices_say_is_put_together() {
        let recording = Recording {
            reader: Some("0".repeat(64)),
            fingerprints: false,
            days: 1,
            until: i64::MAX,
        };
        let announced = Announced {
            row: 1,
            at_ms: 0,
            recording,
        };
        let mut recorder = Recorder::new(Arc::new(announced));
        recorder.said(
            1,
            &[Said::Content("a".to_owned()), Said::Reasoning("r".to_owned())],
            None,
        );
        let call = |index, name: &str| Said::Call {
            index,
            id: format!("call_{index}"),
            name: name.to_owned(),
        };
        let more = |index, text: &str| Said::Arguments {
            index,
            text: text.to_owned(),
        };
        recorder.said(
            1,
            &[
                Said::Content("b".to_owned()),
                call(0, "f"),
                more(0, "{"),
                call(1, "g"),
                more(0, "}"),
            ],
            None,
        );
        recorder.said(1, &[], Some("tool_calls"));
        assert_eq!(
            serde_json::to_value(&recorder.answers).unwrap(),
            serde_json::json!([
                {"content": "", "finish_reason": null},
                {
                    "content": "ab", "reasoning": "r", "finish_reason": "tool_calls",
                    "tool_calls": [
                        {"id": "call_0", "name": "f", "arguments": "{}"}, {"id": "call_1", "name": "g", "arguments": ""},
                    ],
                },
            ])
        );
    }
}
