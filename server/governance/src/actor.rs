//! Who changes something.

use crate::role::Role;

/// As the audit chain names them, and what they may not go beyond.
#[derive(Clone, Copy, Debug)]
pub struct Actor<'a> {
    pub name: &'a str,
    /// Of the key that they showed. Who may write to the database itself is bound by none.
    pub role: Option<Role>,
}

impl Actor<'_> {
    /// Whether they may give this role to somebody, or take from somebody what has it.
    pub fn may_grant(&self, role: Role) -> bool {
        self.role.is_none_or(|own| own.grants(role))
    }
}

impl<'a> From<&'a str> for Actor<'a> {
    /// Somebody who may write to the database itself.
    fn from(name: &'a str) -> Self {
        Self { name, role: None }
    }
}

impl<'a> From<&'a String> for Actor<'a> {
    fn from(name: &'a String) -> Self {
        Self::from(name.as_str())
    }
}
