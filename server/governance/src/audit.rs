//! The audit chain: each row's hash covers the row and the hash before, so that no row can be changed, moved or taken out
//! without all behind it showing so. That rows at the end are missing shows against a hash that was noted elsewhere.

use thiserror::Error;

use crate::usage::hash;

/// What the first row has before it.
pub(crate) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One row. It names keys and projects by their identifiers, and nobody by name: who is erased elsewhere leaves it as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEvent {
    /// From 1, without gaps.
    pub seq: i64,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Who did it: a key, or `cli:` and the user of the system.
    pub actor: String,
    /// What was done, such as `api_key.created`.
    pub action: String,
    /// To what.
    pub object: String,
    /// More about it, as JSON.
    pub detail: String,
    pub previous: String,
    pub hash: String,
}

/// Where a chain does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Broken {
    #[error("row {0} is not the one that was written")]
    Changed(i64),
    #[error("a row is missing before row {0}, or it was moved")]
    Missing(i64),
}

impl AuditEvent {
    /// The hash that its content and the row before give.
    pub(crate) fn right_hash(&self) -> String {
        let numbers = [self.seq.to_string(), self.at_ms.to_string()];
        let texts = [
            &self.previous,
            &numbers[0],
            &numbers[1],
            &self.actor,
            &self.action,
            &self.object,
            &self.detail,
        ];
        hash(texts.into_iter().map(String::as_str))
    }
}

/// Checks rows that follow one with this number and hash; returns the number and hash of the last.
///
/// # Errors
/// The first row that does not hold.
pub fn verify<'a>(
    rows: impl IntoIterator<Item = &'a AuditEvent>,
    from: Option<(i64, String)>,
) -> Result<(i64, String), Broken> {
    let (mut seq, mut hash) = from.unwrap_or_else(|| (0, GENESIS.to_owned()));
    for row in rows {
        if row.seq != seq.saturating_add(1) || row.previous != hash {
            return Err(Broken::Missing(row.seq));
        }
        if row.hash != row.right_hash() {
            return Err(Broken::Changed(row.seq));
        }
        (seq, hash) = (row.seq, row.hash.clone());
    }
    Ok((seq, hash))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(count: i64) -> Vec<AuditEvent> {
        let mut rows: Vec<AuditEvent> = Vec::new();
        for seq in 1..=count {
            let previous = rows
                .last()
                .map_or_else(|| GENESIS.to_owned(), |row| row.hash.clone());
            let mut row = AuditEvent {
                seq,
                at_ms: 1_000 * seq,
                actor: "cli:root".to_owned(),
                action: "api_key.created".to_owned(),
                object: format!("key {seq}"),
                detail: "{}".to_owned(),
                previous,
                hash: String::new(),
            };
            row.hash = row.right_hash();
            rows.push(row);
        }
        rows
    }

    /// A text with one character changed, or moved over the border between two fields.
    fn changed(text: &str, at: usize) -> String {
        let mut bytes = text.as_bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
        String::from_utf8(bytes).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_change_goes_unseen(place in 0_usize..20, what in 0_usize..11, at in 0_usize..64) {
            let mut rows = chain(20);
            let whole = verify(&rows, None).unwrap();
            prop_assert_eq!(&whole, &(20, rows[19].hash.clone()));
            let row = &mut rows[place];
            match what {
                0 => row.actor = changed(&row.actor, at),
                1 => row.action = changed(&row.action, at),
                2 => row.object = changed(&row.object, at),
                3 => row.detail = changed(&row.detail, at),
                4 => row.previous = changed(&row.previous, at),
                5 => row.hash = changed(&row.hash, at),
                6 => row.at_ms += 1,
                7 => row.seq += 1,
                // A character goes from one field to the next.
                8 => {
                    let last = row.actor.pop().unwrap();
                    row.action.insert(0, last);
                }
                9 => rows.swap(place, (place + 1) % 20),
                _ => drop(rows.remove(place)),
            }
            // Without the last row the rest holds: only what was noted elsewhere tells.
            let seen = verify(&rows, None) != Ok(whole);
            prop_assert!(seen);
        }
    }
}
