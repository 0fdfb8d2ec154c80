//! Who changes something.

use crate::role::Role;

/// Who asks for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor<'a> {
    /// Somebody who may write to the database itself, as the audit chain is to name them. Nothing bounds what they may do.
    Operator(&'a str),
    /// Whoever showed the key with this identifier: they may do what it may at the moment of the change.
    Key(&'a str),
}

impl<'a> From<&'a str> for Actor<'a> {
    fn from(name: &'a str) -> Self {
        Self::Operator(name)
    }
}

impl<'a> From<&'a String> for Actor<'a> {
    fn from(name: &'a String) -> Self {
        Self::Operator(name)
    }
}

/// Who makes a change that has begun.
#[derive(Clone, Debug)]
pub(crate) struct Acting {
    /// As the audit chain names them.
    pub(crate) name: String,
    /// Of the key; `None`: of who may write to the database itself.
    pub(crate) role: Option<Role>,
}

impl Acting {
    /// Whether they may give this role to somebody, or take from somebody what has it.
    pub(crate) fn may_grant(&self, role: Role) -> bool {
        self.role.is_none_or(|own| own.grants(role))
    }
}
