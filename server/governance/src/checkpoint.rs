//! What the chains were at a time, signed: kept elsewhere, it shows that nothing was taken off their ends or written anew since.

use serde_json::{Value, json};
use thiserror::Error;

use crate::secret::{Secret, is_signed};

/// Number and hash of a chain's last row.
pub type End = (i64, String);

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Of the audit chain.
    pub audit: End,
    /// Of the chain of usage, where there is any.
    pub usage: Option<End>,
    /// Whose signature it is.
    pub public_key: String,
    signature: String,
}

/// Why a line is no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadCheckpoint {
    #[error("it is not in the form of a checkpoint")]
    Form,
    #[error("its signature is not that of its content")]
    Signature,
    #[error("it is signed with another key than was expected")]
    Key,
}

impl Checkpoint {
    /// Signs what the chains are.
    pub fn sign(secret: &Secret, at_ms: i64, audit: End, usage: Option<End>) -> Self {
        let mut checkpoint = Self {
            at_ms,
            audit,
            usage,
            public_key: secret.public_key(),
            signature: String::new(),
        };
        checkpoint.signature = secret.sign(&checkpoint.text());
        checkpoint
    }

    /// What is signed.
    fn text(&self) -> String {
        let end = |end: &End| format!("{}:{}", end.0, end.1);
        let usage = self.usage.as_ref().map_or_else(|| "none".to_owned(), end);
        format!(
            "rempart checkpoint 1\nat {}\naudit {}\nusage {usage}\n",
            self.at_ms,
            end(&self.audit)
        )
    }

    /// As one line of JSON.
    pub fn line(&self) -> String {
        let end = |end: &End| json!({"seq": end.0, "hash": end.1});
        json!({
            "at_ms": self.at_ms, "audit": end(&self.audit), "usage": self.usage.as_ref().map(end),
            "public_key": self.public_key, "signature": self.signature,
        })
        .to_string()
    }

    /// Reads a line, and proves that the holder of this public key has signed it; without one, that of the key which it names.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn read(line: &str, public_key: Option<&str>) -> Result<Self, BadCheckpoint> {
        let value: Value = serde_json::from_str(line).map_err(|_| BadCheckpoint::Form)?;
        let checkpoint = Self::of(&value).ok_or(BadCheckpoint::Form)?;
        if public_key.is_some_and(|key| key != checkpoint.public_key) {
            return Err(BadCheckpoint::Key);
        }
        if is_signed(&checkpoint.public_key, &checkpoint.text(), &checkpoint.signature) {
            Ok(checkpoint)
        } else {
            Err(BadCheckpoint::Signature)
        }
    }

    fn of(value: &Value) -> Option<Self> {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let end = |value: &Value| {
            let hash = value.get("hash")?.as_str()?;
            // A line feed in it could make one text of two.
            let sound = hash.bytes().all(|byte| byte.is_ascii_hexdigit());
            sound.then_some((value.get("seq")?.as_i64()?, hash.to_owned()))
        };
        let usage = match value.get("usage")? {
            Value::Null => None,
            usage => Some(end(usage)?),
        };
        Some(Self {
            at_ms: value.get("at_ms")?.as_i64()?,
            audit: end(value.get("audit")?)?,
            usage,
            public_key: text("public_key")?,
            signature: text("signature")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secret() -> Secret {
        let folder = tempfile::tempdir().unwrap();
        Secret::open_or_make(&folder.path().join("secret")).unwrap()
    }

    #[test]
    fn a_checkpoint_is_read_back_and_is_its_signer_s() {
        let (secret, other) = (secret(), secret());
        for usage in [None, Some((3, "ab".to_owned()))] {
            let checkpoint = Checkpoint::sign(&secret, 5, (7, "cd".to_owned()), usage);
            let (line, key) = (checkpoint.line(), secret.public_key());
            assert_eq!(Checkpoint::read(&line, None), Ok(checkpoint.clone()));
            assert_eq!(Checkpoint::read(&line, Some(&key)), Ok(checkpoint));
            let wrong = Checkpoint::read(&line, Some(&other.public_key()));
            assert_eq!(wrong, Err(BadCheckpoint::Key));
            let replaced = line.replace(&key, &other.public_key());
            assert_eq!(Checkpoint::read(&replaced, None), Err(BadCheckpoint::Signature));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_changed_line_is_read(at in 0_usize..1000, to in 0_u8..128) {
            let secret = secret();
            let line = Checkpoint::sign(&secret, 5, (7, "cd".to_owned()), Some((3, "ab".to_owned()))).line();
            let mut bytes = line.clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] = to;
            let changed = String::from_utf8(bytes).unwrap();
            let read = Checkpoint::read(&changed, Some(&secret.public_key()));
            // Upper case in the signature, or a blank more, says the same.
            let same = Checkpoint::read(&line, None).ok();
            prop_assert!(read.is_err() || read.ok().map(|read| read.text()) == same.map(|same| same.text()));
        }
    }
}
