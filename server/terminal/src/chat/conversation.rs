//! What was said so far, kept in memory alone, and the request that goes on with it.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    System,
    User,
    Assistant,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Message {
    pub role: Role,
    pub content: String,
}

/// A conversation with a model. Its texts are in no debug output.
pub(super) struct Conversation {
    pub model: String,
    pub temperature: Option<f64>,
    pub max_tokens: Option<u32>,
    pub system: Option<String>,
    messages: Vec<Message>,
}

impl Conversation {
    pub(super) fn new(model: String, system: Option<String>) -> Self {
        Self {
            model,
            temperature: None,
            max_tokens: None,
            system,
            messages: Vec::new(),
        }
    }

    pub(super) fn say(&mut self, role: Role, content: String) {
        self.messages.push(Message { role, content });
    }

    /// Takes back what was asked and got no answer.
    pub(super) fn take_back(&mut self) {
        self.messages.pop();
    }

    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn all(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message {
            role: Role::System,
            content: text.clone(),
        });
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// The body that asks for the next answer.
    pub(super) fn body(&self) -> Bytes {
        let mut body = json!({
            "model": self.model,
            "messages": self.all(),
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if let Some(temperature) = self.temperature {
            body["temperature"] = json!(temperature);
        }
        if let Some(max_tokens) = self.max_tokens {
            body["max_tokens"] = json!(max_tokens);
        }
        Bytes::from(body.to_string())
    }

    /// Writes everything into a new file that its owner alone may read.
    ///
    /// # Errors
    /// Where it can't be written, or is there already.
    pub(super) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let said = || format!("writing {}", path.display());
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(said)?;
        let text = serde_json::to_string_pretty(&json!({ "model": self.model, "messages": self.all() }))?;
        writeln!(file, "{text}").with_context(said)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn bodies_hold_what_was_said_in_order() {
        let mut conversation = Conversation::new("m".to_owned(), Some("be brief".to_owned()));
        conversation.say(Role::User, "hi".to_owned());
        conversation.say(Role::Assistant, "hello".to_owned());
        conversation.say(Role::User, "bye".to_owned());
        conversation.temperature = Some(0.5);
        let body: serde_json::Value = serde_json::from_slice(&conversation.body()).unwrap();
        assert_eq!(
            body,
            json!({ "model": "m", "stream": true, "stream_options": { "include_usage": true }, "temperature": 0.5, "messages": [
                { "role": "system", "content": "be brief" }, { "role": "user", "content": "hi" },
                { "role": "assistant", "content": "hello" }, { "role": "user", "content": "bye" }]})
        );
        conversation.take_back();
        conversation.system = None;
        let body: serde_json::Value = serde_json::from_slice(&conversation.body()).unwrap();
        assert_eq!(body["messages"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_saved_conversation_is_its_owners_and_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("said.json");
        let mut conversation = Conversation::new("m".to_owned(), None);
        conversation.say(Role::User, "a \u{1b}[2J \"b\"".to_owned());
        conversation.save(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains('\u{1b}'));
        let saved: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(saved["messages"][0]["content"], "a \u{1b}[2J \"b\"");
        assert!(conversation.save(&path).is_err());
    }
}
