//! Who may do what and how much, and the record of it. Nothing here knows HTTP: a server asks a [`Directory`] whose key it was
//! shown, and a [`Limiter`] how much of its limits is left; a [`Store`] keeps what operators change, each change with its row in the
//! audit chain, and what requests used.
#![forbid(unsafe_code)]

mod actor;
mod audit;
mod checkpoint;
mod content;
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
pub use content::{
    Announced, BrokenContent, Content, RECORDING_DAYS_MAX, ReaderKey, Recording, Sealed, pack,
};
pub use directory::{Denied, Directory, Holder, Insider, KeyRecord, People, Principal, is_person};
pub use key::{Key, KeyHash, KeyId, NewKey};
pub use kind::KeyKind;
pub use limit::{
    Ask, Counter, Exceeded, Grant, LEASE_MS, LIMIT_MAX, Lessee, Limited, Limiter, Limits, Metric, Reserved,
    Short, Standing, Subject, TICK_MS, month_began_ms,
};
pub use retention::{BrokenRetention, Cut, DAY_MS, DAY_S, KeptSums, Policy, Trimmed};
pub use role::{Role, Scope};
pub use secret::Secret;
pub use store::{
    ASKS_MAX, AuditQuery, Census, ContentQuery, Counts, Database, Deleted, Error, Kept, Leases, LoginSubject,
    Member, NewKeyRequest, Note, Noted, Oldest, Person, Project, Proof, Record, ServiceAccount, Store, Usage,
    UsageSum, UsageWriter, WEIGHT_MAX, Way, now_ms, now_s,
};
pub use usage::{BATCH_ROWS_MAX, BrokenUsage, Outcome, UsageBatch, UsageEvent, UsageTotal};
