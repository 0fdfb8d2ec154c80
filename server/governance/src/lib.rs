//! Who may do what and how much, and the record of it. Nothing here knows HTTP: a server asks a [`Directory`] whose key it was
//! shown, and a [`Limiter`] how much of its limits is left; a [`Store`] keeps what operators change, each change with its row in the
//! audit chain, and what requests used.
#![forbid(unsafe_code)]

mod actor;
mod audit;
mod checkpoint;
mod directory;
mod key;
mod kind;
mod limit;
mod retention;
mod role;
mod secret;
mod store;
mod usage;

pub use actor::Actor;
pub use audit::{AuditEvent, Broken, verify};
pub use checkpoint::{BadCheckpoint, Checkpoint, End};
pub use directory::{Denied, Directory, Insider, KeyRecord, Principal, is_person};
pub use key::{Key, KeyHash, KeyId, NewKey};
pub use kind::KeyKind;
pub use limit::{
    Ask, Counter, Exceeded, Grant, LEASE_MS, LIMIT_MAX, Lessee, Limited, Limiter, Limits, Metric, Reserved,
    Short, Standing, Subject, TICK_MS, month_began_ms,
};
pub use retention::{BrokenRetention, Cut, KeptSums, Policy, Trimmed};
pub use role::{Role, Scope};
pub use secret::Secret;
pub use store::{
    ASKS_MAX, AuditQuery, Counts, Database, Deleted, Error, Leases, Member, NewKeyRequest, Note, Noted,
    Oldest, Person, Project, Proof, Record, ServiceAccount, Store, UsageSum, UsageWriter, WEIGHT_MAX, Way,
    now_ms, now_s,
};
pub use usage::{BATCH_ROWS_MAX, BrokenUsage, Outcome, UsageBatch, UsageEvent, UsageTotal};
