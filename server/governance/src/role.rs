//! Roles, and what each may do: one table, in which what is not listed is denied.

use std::fmt;
use std::str::FromStr;

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Use models, and see which there are.
    Use,
    /// Read metrics, and what was used.
    Observe,
    /// Read the audit chain.
    Audit,
    /// See who may do what.
    Review,
    /// Load and unload models.
    Operate,
    /// Make projects and keys, and end them.
    Govern,
}

impl Scope {
    pub const ALL: [Self; 6] = [
        Self::Use,
        Self::Observe,
        Self::Audit,
        Self::Review,
        Self::Operate,
        Self::Govern,
    ];
}

/// What the holder of a key is to the company.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// All of it.
    Owner,
    /// Runs the server: all but reading the audit chain, so that nobody reviews their own doing.
    Admin,
    /// Reads what was done, and changes nothing.
    Auditor,
    /// A person who uses models.
    Member,
    /// A program that uses models.
    Service,
}

impl Role {
    pub const ALL: [Self; 5] = [
        Self::Owner,
        Self::Admin,
        Self::Auditor,
        Self::Member,
        Self::Service,
    ];

    /// Whether a key of this role may do what needs this scope.
    pub fn allows(self, scope: Scope) -> bool {
        use Scope::{Audit, Govern, Observe, Operate, Review, Use};
        let scopes: &[Scope] = match self {
            Self::Owner => &[Use, Observe, Audit, Review, Operate, Govern],
            Self::Admin => &[Use, Observe, Review, Operate, Govern],
            Self::Auditor => &[Observe, Audit, Review],
            Self::Member | Self::Service => &[Use],
        };
        scopes.contains(&scope)
    }

    /// Whether it may do all that another may.
    pub fn covers(self, other: Self) -> bool {
        Scope::ALL
            .into_iter()
            .all(|scope| self.allows(scope) || !other.allows(scope))
    }

    /// Whether its holder may give this role to others, or take it away: nobody gives what they do not have.
    pub fn grants(self, other: Self) -> bool {
        self.allows(Scope::Govern) && self.covers(other)
    }

    /// Its name, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Auditor => "auditor",
            Self::Member => "member",
            Self::Service => "service",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| format!("roles are {}", Self::ALL.map(Self::name).join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gives_what_they_do_not_have() {
        let given = |own: Role| Role::ALL.into_iter().filter(move |other| own.grants(*other));
        assert!(given(Role::Owner).eq(Role::ALL));
        assert!(given(Role::Admin).eq([Role::Admin, Role::Member, Role::Service]));
        for none in [Role::Auditor, Role::Member, Role::Service] {
            assert_eq!(given(none).count(), 0, "{none}");
        }
        assert!(Role::Auditor.covers(Role::Auditor) && !Role::Auditor.covers(Role::Member));
        assert!(Role::Member.covers(Role::Service));
    }
}
