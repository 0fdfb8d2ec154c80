//! Who may do what, and the record of it. Nothing here knows HTTP: a server asks a [`Directory`] whose key it was shown, and a
//! [`Store`] keeps what operators change, each change with its row in the audit chain.
#![forbid(unsafe_code)]

mod audit;
mod directory;
mod key;
mod role;
mod store;
mod usage;

pub use audit::{AuditEvent, Broken, verify};
pub use directory::{Denied, Directory, KeyRecord, Principal};
pub use key::{Key, KeyHash, KeyId, NewKey};
pub use role::{Role, Scope};
pub use store::{Error, NewKeyRequest, Project, Store, UsageSum, UsageWriter, now_ms, now_s};
pub use usage::{BrokenUsage, Outcome, UsageBatch, UsageEvent, UsageTotal};
