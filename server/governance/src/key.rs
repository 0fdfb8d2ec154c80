//! API keys: `sk-rempart-` ID `-` SECRET CHECKSUM.
//!
//! The identifier, eight letters and digits, is what a key is looked up and spoken of by. The secret has 43 of them, which is 256
//! random bits: against guessing that needs no slow hash, and a slow hash would let strangers make a server work. The checksum,
//! the CRC-32 of all before it in six digits, lets scanners tell a leaked key from a word that looks like one.

use std::fmt;

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

const PREFIX: &str = "sk-rempart-";
const ID_CHARS: usize = 8;
const SECRET_CHARS: usize = 43;
const CHECKSUM_CHARS: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The part of a key that is no secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub String);

/// SHA-256 of a key's secret: all that is kept of it.
#[derive(Clone, Copy, Debug)]
pub struct KeyHash([u8; 32]);

/// A key as it was shown, in its right form; whether it exists is another question.
#[derive(Clone, Debug)]
pub struct Key {
    pub id: KeyId,
    hash: KeyHash,
}

/// A key that was made just now. Its text is told once, and never printed by `Debug`.
pub struct NewKey {
    pub id: KeyId,
    pub hash: KeyHash,
    text: String,
}

impl Key {
    /// Reads a key; `None` for what no server made.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(PREFIX)?;
        let (id, secret) = rest.split_at_checked(ID_CHARS)?;
        let secret = secret.strip_prefix('-')?;
        let sound = secret.len() == SECRET_CHARS + CHECKSUM_CHARS && is_digits(id) && is_digits(secret);
        let (body, sum) = text.split_at_checked(text.len() - CHECKSUM_CHARS)?;
        (sound && sum == checksum(body)).then(|| Self {
            id: KeyId(id.to_owned()),
            hash: KeyHash::of(&secret[..SECRET_CHARS]),
        })
    }

    /// Whether it is the key of this hash, in a time that tells nothing.
    pub fn is(&self, hash: &KeyHash) -> bool {
        self.hash.0.ct_eq(&hash.0).into()
    }
}

impl KeyHash {
    /// Of what has no secret: nothing is known whose hash this is.
    pub(crate) const NONE: Self = Self([0; 32]);

    fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// Of a public key, as the `SubjectPublicKeyInfo` of certificates in DER (RFC 5280, 4.1.2.7).
    pub fn of_public_key(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// As 64 hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex(&self.0)
    }

    /// Of 64 hexadecimal digits; `None` for anything else.
    pub fn from_hex(text: &str) -> Option<Self> {
        from_hex(text).map(Self)
    }
}

impl KeyId {
    /// Makes an identifier.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub(crate) fn make() -> Result<Self, getrandom::Error> {
        random_digits(ID_CHARS).map(Self)
    }
}

impl NewKey {
    /// Makes a key of the system's randomness.
    ///
    /// # Errors
    /// Where the system has none.
    pub fn make() -> Result<Self, getrandom::Error> {
        let (id, secret) = (random_digits(ID_CHARS)?, random_digits(SECRET_CHARS)?);
        let hash = KeyHash::of(&secret);
        let body = format!("{PREFIX}{id}-{secret}");
        let text = format!("{body}{}", checksum(&body));
        Ok(Self {
            id: KeyId(id),
            hash,
            text,
        })
    }

    /// The whole key, for whoever asked for it.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for NewKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NewKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn checksum(text: &str) -> String {
    let mut rest = crc32fast::hash(text.as_bytes()) as usize;
    let mut digits = [0; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[rest % DIGITS.len()];
        rest /= DIGITS.len();
    }
    digits.map(char::from).iter().collect()
}

/// Letters and digits, each as likely as the others.
///
/// # Errors
/// Where the system has no randomness.
pub(crate) fn random_digits(count: usize) -> Result<String, getrandom::Error> {
    // The bytes below are a whole number of times the digits.
    const BELOW: u8 = (256 / DIGITS.len() * DIGITS.len()) as u8;
    let mut text = String::with_capacity(count);
    let mut bytes = [0; 64];
    while text.len() < count {
        getrandom::fill(&mut bytes)?;
        let fair = bytes.iter().filter(|byte| **byte < BELOW);
        let digits = fair.map(|byte| char::from(DIGITS[usize::from(*byte) % DIGITS.len()]));
        text.extend(digits.take(count - text.len()));
    }
    Ok(text)
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
        .collect()
}

/// So many bytes of their hexadecimal digits; `None` for anything else.
pub(crate) fn from_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    if text.len() != 2 * BYTES || !text.is_ascii() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_new_key_is_read_back_and_is_itself_only() {
        let (one, other) = (NewKey::make().unwrap(), NewKey::make().unwrap());
        let key = Key::parse(one.reveal()).unwrap();
        assert_eq!(key.id, one.id);
        assert!(key.is(&one.hash) && !key.is(&other.hash));
        let kept = KeyHash::from_hex(&one.hash.to_hex()).unwrap();
        assert!(key.is(&kept));
        assert_eq!(one.reveal().len(), PREFIX.len() + 8 + 1 + 43 + 6);
        let told = format!("{one:?} {key:?}");
        assert!(!told.contains(&one.reveal()[20..]), "{told}");
    }

    #[test]
    fn a_key_with_any_character_changed_is_none() {
        let text = NewKey::make().unwrap().reveal().to_owned();
        for at in 0..text.len() {
            for other in ["", "x", "y", "é", "-"] {
                let changed = [&text[..at], other, &text[at + 1..]].concat();
                assert_eq!(Key::parse(&changed).is_some(), changed == text, "{at}");
            }
        }
        assert!(KeyHash::from_hex(&"é".repeat(32)).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,80}", tail in "[0-9A-Za-z-]{0,60}") {
            let _none = Key::parse(&text);
            let key = [PREFIX, &tail].concat();
            prop_assert!(Key::parse(&key).is_none());
        }
    }
}
