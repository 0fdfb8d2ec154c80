//! What shows that somebody holds a key.

use std::fmt;
use std::str::FromStr;

/// What opens a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// The secret that is part of its text.
    Secret,
    /// A token that the company's login has given to its owner. It has no text: nobody can show the key itself.
    Token,
    /// The certificate of a client, by its public key.
    Certificate,
}

impl KeyKind {
    pub const ALL: [Self; 3] = [Self::Secret, Self::Token, Self::Certificate];

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Token => "token",
            Self::Certificate => "certificate",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for KeyKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| format!("kinds of keys are {}", Self::ALL.map(Self::name).join(", ")))
    }
}
