//! Answers of `/v1/responses` that are kept for a while, in memory only, so that a later request may go on from them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;

use crate::openai::messages::Message;

/// An answer, and the conversation up to and including it.
#[derive(Clone)]
pub struct Stored {
    pub id: String,
    /// The project whose it is, where there are keys: nobody else is told of it.
    pub project: Option<String>,
    /// As it was answered.
    pub response: Box<RawValue>,
    /// What the model was told and said, without instructions.
    pub messages: Vec<Message>,
    /// What clients sent up to it, and what was answered before, as items.
    pub items: Vec<Box<RawValue>>,
}

impl Stored {
    fn is(&self, id: &str, project: Option<&str>) -> bool {
        self.id == id && self.project.as_deref() == project
    }

    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        let message = |message: &Message| size_of::<Message>() + message.bytes();
        let messages: usize = self.messages.iter().map(message).sum();
        let items: usize = self
            .items
            .iter()
            .map(|item| size_of_val(item) + item.get().len())
            .sum();
        self.id.len() + self.response.get().len() + messages + items
    }
}

/// The kept answers. Time is an argument.
pub struct ResponseStore {
    retention: Duration,
    bytes_max: usize,
    bytes: usize,
    /// The oldest comes first.
    kept: VecDeque<(Instant, usize, Stored)>,
}

impl ResponseStore {
    /// With a retention of zero nothing is kept.
    pub fn new(retention: Duration, bytes_max: usize) -> Self {
        Self {
            retention,
            bytes_max,
            bytes: 0,
            kept: VecDeque::new(),
        }
    }

    /// Whether anything is kept at all.
    pub fn keeps(&self) -> bool {
        !self.retention.is_zero()
    }

    /// Keeps an answer, and forgets as many of the oldest as there is no room for. False for one that is larger than all
    /// that may be kept.
    pub fn put(&mut self, stored: Stored, now: Instant) -> bool {
        self.expire(now);
        let bytes = stored.bytes();
        if !self.keeps() || bytes > self.bytes_max {
            return false;
        }
        while self.bytes + bytes > self.bytes_max {
            let Some((_, freed, _)) = self.kept.pop_front() else {
                break;
            };
            self.bytes -= freed;
        }
        self.bytes += bytes;
        self.kept.push_back((now, bytes, stored));
        true
    }

    /// A kept answer.
    pub fn get(&mut self, id: &str, project: Option<&str>, now: Instant) -> Option<&Stored> {
        self.expire(now);
        let found = self.kept.iter().find(|(_, _, stored)| stored.is(id, project));
        found.map(|(_, _, stored)| stored)
    }

    /// Forgets an answer; whether there was one.
    pub fn delete(&mut self, id: &str, project: Option<&str>, now: Instant) -> bool {
        self.expire(now);
        let at = self.kept.iter().position(|(_, _, stored)| stored.is(id, project));
        let removed = at.and_then(|at| self.kept.remove(at));
        self.bytes -= removed.as_ref().map_or(0, |(_, bytes, _)| *bytes);
        removed.is_some()
    }

    /// Forgets what has passed its retention.
    pub fn expire(&mut self, now: Instant) {
        let passed = |since: &Instant| now.saturating_duration_since(*since) >= self.retention;
        while self.kept.front().is_some_and(|(since, _, _)| passed(since)) {
            self.bytes -= self.kept.pop_front().map_or(0, |(_, bytes, _)| bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(id: &str, bytes: usize) -> Stored {
        Stored {
            id: id.to_owned(),
            project: None,
            response: RawValue::NULL.to_owned(),
            messages: vec![Message::plain("user", "x".repeat(bytes))],
            items: Vec::new(),
        }
    }

    #[test]
    fn answers_pass_with_time_and_by_room() {
        let second = Duration::from_secs(1);
        let start = Instant::now();
        let mut store = ResponseStore::new(10 * second, 1200);
        store.put(stored("a", 300), start);
        store.put(stored("b", 300), start + second);
        assert!(store.get("a", None, start + 9 * second).is_some());
        assert!(store.get("a", None, start + 10 * second).is_none());
        store.put(stored("c", 300), start + 10 * second);
        store.put(stored("d", 300), start + 10 * second);
        assert!(store.get("b", None, start + 10 * second).is_none(), "no room");
        store.put(stored("e", 2000), start + 10 * second);
        assert!(
            store.get("e", None, start + 10 * second).is_none(),
            "more than there is room for"
        );
        assert!(store.delete("c", None, start + 10 * second));
        assert!(!store.delete("c", None, start + 10 * second));
        assert!(store.get("d", None, start + 10 * second).is_some());
        store.expire(start + 20 * second);
        assert_eq!((store.bytes, store.kept.len()), (0, 0));
    }

    #[test]
    fn without_retention_nothing_is_kept() {
        let now = Instant::now();
        let mut store = ResponseStore::new(Duration::ZERO, 1000);
        store.put(stored("a", 1), now);
        assert!(store.get("a", None, now).is_none());
    }

    #[test]
    fn a_kept_answer_is_its_project_s() {
        let now = Instant::now();
        let mut store = ResponseStore::new(Duration::from_mins(1), 10_000);
        let project = Some("proj_a".to_owned());
        assert!(store.put(
            Stored {
                project,
                ..stored("a", 10)
            },
            now
        ));
        for other in [None, Some("proj_b")] {
            assert!(store.get("a", other, now).is_none() && !store.delete("a", other, now));
        }
        assert!(store.get("a", Some("proj_a"), now).is_some() && store.delete("a", Some("proj_a"), now));
    }
}
