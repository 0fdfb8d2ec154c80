//! What the audit chain tells of records: what was to be recorded, and what was deleted before its time.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Announced, Content, DELETED, SET, short};
use crate::audit::AuditEvent;
use crate::retention::{AHEAD_MAX_MS, RUN, Trimmed};

const RESTORED: &str = "database.restored";

/// What a mark says beside the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark<'a> {
    /// Unix milliseconds.
    pub(crate) due_ms: i64,
    pub(crate) announced: i64,
    /// The beginning of the reader's key; empty where nothing is sealed.
    reader: &'a str,
}

impl<'a> Mark<'a> {
    pub(crate) fn read(mark: &'a str) -> Option<Self> {
        let mut parts = mark.split(':');
        Some(Self {
            due_ms: parts.next()?.parse().ok()?,
            announced: parts.next()?.parse().ok()?,
            reader: parts.next()?,
        })
    }
}

/// What the audit chain tells of records: what was to be recorded, and what was deleted before its time.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Where the chain began once its beginning was deleted, each time, and when that was, Unix milliseconds.
    begins: Vec<(i64, i64)>,
    /// By row: the project's identifier, what was to be recorded of it, and when another row took its place, Unix milliseconds.
    announced: BTreeMap<i64, (String, Announced, i64)>,
    /// The last of these rows, by project.
    last: BTreeMap<String, i64>,
    deletions: Deletions,
}

/// Records that were deleted: those of requests that began before a time, Unix milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Deletions {
    all_ms: Option<i64>,
    projects: BTreeMap<String, i64>,
    keys: BTreeMap<String, i64>,
}

impl Told {
    /// Takes the next row of the chain; `begins`: it is the first of a chain whose beginning was deleted.
    pub(crate) fn take(&mut self, row: &AuditEvent, begins: bool) {
        if row.action == RUN
            && let Ok(Trimmed { audit: Some(cut), .. }) = Trimmed::read(row.seq, &row.detail)
        {
            self.begins.push((cut.seq, row.at_ms));
        }
        if begins {
            // What was deleted before nobody can tell.
            self.deletions.all_ms = Some(row.at_ms);
        }
        if row.action == RESTORED {
            // A copy of a database has no records.
            self.deletions.all_ms = self.deletions.all_ms.max(Some(row.at_ms));
        }
        if row.action == DELETED {
            self.deletions.take(&row.object, row.at_ms, &row.detail);
        }
        if row.action == SET
            && let Ok(recording) = serde_json::from_str(&row.detail)
        {
            let announced = Announced {
                row: row.seq,
                at_ms: row.at_ms,
                recording,
            };
            let before = self.last.insert(row.object.clone(), row.seq);
            if let Some((.., ended_ms)) = before.and_then(|before| self.announced.get_mut(&before)) {
                *ended_ms = row.at_ms;
            }
            self.announced
                .insert(row.seq, (row.object.clone(), announced, i64::MAX));
        }
    }

    /// Whether a request was to be recorded so.
    pub(crate) fn announced(&self, project: &str, began_ms: i64, mark: Mark<'_>) -> bool {
        let Some((object, announced, ended_ms)) = self.announced.get(&mark.announced) else {
            // That row is gone with others: its recording ended before they went.
            let gone = |(begin, _): &&(i64, i64)| (1..*begin).contains(&mark.announced);
            let by = self.begins.iter().find(gone);
            return by.is_some_and(|(_, at_ms)| began_ms <= at_ms.saturating_add(AHEAD_MAX_MS));
        };
        // Who has a project recorded may have another clock than the server.
        let Announced { at_ms, recording, .. } = announced;
        let until_ms = recording.until.saturating_mul(1_000);
        let within = at_ms.saturating_sub(AHEAD_MAX_MS)..until_ms.min(ended_ms.saturating_add(AHEAD_MAX_MS));
        object == project
            && within.contains(&began_ms)
            && mark.due_ms == Content::due(began_ms, recording.days)
            && mark.reader == short(recording.reader.as_deref().unwrap_or_default())
    }

    /// Whether the record of a request was deleted before its time.
    pub(crate) fn deleted(&self, project: &str, key: &str, began_ms: i64) -> bool {
        self.deletions.cover(project, key, began_ms)
    }
}

impl Deletions {
    /// Takes a row that tells of one.
    pub(crate) fn take(&mut self, object: &str, at_ms: i64, detail: &str) {
        let OfKeys { keys } = serde_json::from_str(detail).unwrap_or_default();
        let later = |known: &mut BTreeMap<String, i64>, of: String| {
            let known = known.entry(of).or_insert(at_ms);
            *known = at_ms.max(*known);
        };
        later(&mut self.projects, object.to_owned());
        for key in keys {
            later(&mut self.keys, key);
        }
    }

    /// Whether the record of a request is among them.
    pub(crate) fn cover(&self, project: &str, key: &str, began_ms: i64) -> bool {
        let times = [
            self.all_ms,
            self.projects.get(project).copied(),
            self.keys.get(key).copied(),
        ];
        times.into_iter().flatten().any(|at_ms| began_ms <= at_ms)
    }
}

/// What a deletion of somebody's records says.
#[derive(Default, Deserialize)]
struct OfKeys {
    #[serde(default)]
    keys: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::{Cut, DAY_MS};

    fn row(seq: i64, at_ms: i64, action: &str, detail: String) -> AuditEvent {
        AuditEvent {
            seq,
            at_ms,
            actor: "x".to_owned(),
            action: action.to_owned(),
            object: "proj_a".to_owned(),
            detail,
            previous: String::new(),
            hash: String::new(),
        }
    }

    #[test]
    fn a_row_that_is_gone_has_announced_no_request_that_came_later() {
        let cut = |seq| {
            let audit = Some(Cut {
                seq,
                hash: String::new(),
                at_ms: 0,
                days: 32,
            });
            let trimmed = Trimmed {
                audit,
                ..Trimmed::default()
            };
            trimmed.detail()
        };
        let (first, second) = (100 * DAY_MS, 200 * DAY_MS);
        let mut told = Told::default();
        told.take(&row(8, 0, "x", "{}".to_owned()), true);
        told.take(&row(20, first, RUN, cut(6)), false);
        told.take(&row(30, second, RUN, cut(8)), false);
        let announced = |row: i64, began_ms| {
            let mark = format!("9:{row}::h");
            told.announced("proj_a", began_ms, Mark::read(&mark).unwrap())
        };
        assert!(announced(5, first) && announced(7, second));
        assert!(!announced(5, first + DAY_MS) && !announced(7, second + DAY_MS));
        assert!(!announced(0, first) && !announced(8, first) && !announced(9, first));
        // And none of a chain that is whole.
        let told = Told::default();
        assert!(!told.announced("proj_a", 0, Mark::read("9:1::h").unwrap()));
        assert_eq!(Mark::read("9:x::h"), None);
    }
}
