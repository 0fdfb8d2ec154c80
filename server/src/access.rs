//! Who may come in: anyone, or holders of keys that a database knows.

mod lasting;
mod records;
mod shown;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rempart_engine::{FLOW_WEIGHT_MAX, Flow};
use rempart_governance::{
    DAY_S, Database, Denied, Directory, Error, KeyId, Limiter, NewKey, Principal, Role, Scope, Secret,
    Standing, Store, Subject, is_person, month_began_ms, now_ms, now_s,
};
use tokio::sync::watch;

use crate::checkpoints::Checkpoints;
use crate::config::GovernanceSettings;
use crate::denials::Denials;
use crate::ledger::{Ledger, Limiting, Meter, Refused};
use crate::metrics::Metrics;
use crate::oidc::{BadToken, Oidc};
use crate::retention;
pub use records::loads_recorder;
pub use shown::Shown;

/// How often it is looked whether keys have changed, here or in another process.
const LOOK: Duration = Duration::from_secs(1);
/// How long a look may take: a server may be gone without a word.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// The project and the name of the first key of an empty database.
const FIRST_PROJECT: &str = "default";
const FIRST_KEY: &str = "first";

/// Who makes a request.
#[derive(Clone, Debug)]
pub enum Caller {
    /// The server asks nobody for a key.
    Anyone,
    Holder(Arc<Principal>),
}

/// Why a request goes no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It has no key.
    NoKey,
    /// With its identifier, if it was good once.
    Key(Denied, Option<KeyId>),
    /// The key is not for this.
    Role(Role, KeyId),
    /// It is a token, and no good one.
    Token(BadToken),
    /// It is a good token of nobody who is here.
    Stranger,
    /// The address of the token is this person's, and who it is of at the login is another.
    OtherSubject(String),
    /// The key is of another project than the one that was asked for, or the token's person is not in that.
    Project(String),
    /// The token's person is in several projects, and has not said which.
    Projects { person: String, projects: Vec<String> },
    /// The token's person is in no project.
    Outside(String),
    /// Nobody can tell any more which keys there are.
    Unknowable,
}

/// What decides that.
pub enum Access {
    Open,
    Keys(Box<Keys>),
}

/// The keys of a database, as they were a moment ago.
pub struct Keys {
    store: Store,
    /// The same for what must be known in time.
    looks: Store,
    ledger: Ledger,
    seen: RwLock<Seen>,
    /// The same for who waits for a change.
    changes: watch::Sender<Arc<Directory>>,
    /// One look at a time: an older one must not take the place of a newer one.
    looking: tokio::sync::Mutex<()>,
    /// How old that may be.
    stale_max: Duration,
    currency: String,
    checkpoints: Option<Checkpoints>,
    denials: Denials,
    metrics: Metrics,
    /// Where tokens of a login are taken.
    oidc: Option<Arc<Oidc>>,
    /// One first use of a token at a time.
    first_uses: tokio::sync::Mutex<()>,
}

struct Seen {
    directory: Arc<Directory>,
    /// The last row of the audit chain then: every change has one.
    audit_end: (i64, String),
    at: Instant,
}

impl Caller {
    /// Whether it may use a model of these names.
    pub fn may_use(&self, names: &[String]) -> bool {
        match self {
            Self::Anyone => true,
            Self::Holder(principal) => principal.may_use(names.iter().map(String::as_str)),
        }
    }

    /// Whose its answers are; nobody else is told of them.
    pub fn project(&self) -> Option<&str> {
        match self {
            Self::Anyone => None,
            Self::Holder(principal) => Some(&principal.project),
        }
    }

    /// What keeps its cached prompts apart.
    pub fn cache_salt(&self) -> u64 {
        match self {
            Self::Anyone => 0,
            Self::Holder(principal) => principal.cache_salt(),
        }
    }

    /// Whose requests share the machine with it, and their part of it.
    pub fn flow(&self) -> Flow {
        match self {
            Self::Anyone => Flow::default(),
            // Flow 0 is that of servers without keys.
            Self::Holder(principal) => Flow {
                id: principal.cache_salt().max(1),
                weight: principal.weight.clamp(1, FLOW_WEIGHT_MAX),
            },
        }
    }

    /// Whether it may do what only those do who run the server.
    pub fn operates(&self) -> bool {
        match self {
            Self::Anyone => true,
            Self::Holder(principal) => principal.role.allows(Scope::Operate),
        }
    }

    /// Its key, where it has shown one.
    pub fn key(&self) -> Option<&KeyId> {
        match self {
            Self::Anyone => None,
            Self::Holder(principal) => Some(&principal.key),
        }
    }

    /// As the audit chain names it.
    fn actor(&self) -> String {
        match self {
            Self::Anyone => "anyone".to_owned(),
            Self::Holder(principal) => format!("key:{}", principal.key.0),
        }
    }
}

impl Access {
    /// Looks for changes of keys, for as long as it runs, if there are any.
    pub async fn follow(&self) {
        if let Self::Keys(keys) = self {
            let checkpoints = async {
                if let Some(checkpoints) = &keys.checkpoints {
                    checkpoints.keep().await;
                }
            };
            let deletions = retention::keep(&keys.store, &keys.metrics);
            let tokens = async {
                if let Some(oidc) = &keys.oidc {
                    Arc::clone(oidc).follow().await;
                }
            };
            tokio::join!(
                keys.follow(),
                keys.denials.keep(&keys.store),
                checkpoints,
                deletions,
                tokens
            );
        }
    }

    /// Looks for changes of keys at once.
    pub async fn look(&self) {
        if let Self::Keys(keys) = self {
            keys.look_in_time().await;
        }
    }

    /// Who shows this, and wants to do something of this scope.
    ///
    /// # Errors
    /// Why they may not.
    pub async fn authorize(&self, shown: &Shown<'_>, scope: Scope) -> Result<Caller, Refusal> {
        let Self::Keys(keys) = self else {
            return Ok(Caller::Anyone);
        };
        let principal = keys.principal(shown).await?;
        if !principal.role.allows(scope) {
            return Err(Refusal::Role(principal.role, principal.key));
        }
        Ok(Caller::Holder(Arc::new(principal)))
    }

    /// Whether a caller's key is still good, and may do no less than before: their request may have come in slowly.
    ///
    /// # Errors
    /// Why it is not.
    pub fn recheck(&self, caller: &Caller) -> Result<(), Refusal> {
        match (self, caller) {
            (Self::Keys(keys), Caller::Holder(principal)) => {
                let directory = keys.directory().ok_or(Refusal::Unknowable)?;
                let denied = |denied| Refusal::Key(denied, Some(principal.key.clone()));
                let now = directory.principal(&principal.key, now_s()).map_err(denied)?;
                if !now.role.covers(principal.role) {
                    return Err(Refusal::Role(now.role, now.key));
                }
                match principal.until {
                    Some(until) if until <= now_s() => Err(denied(Denied::Expired)),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Why nobody is let in at present, if so.
    pub fn ailment(&self) -> Option<&'static str> {
        match self {
            Self::Keys(keys) if keys.directory().is_none() => Some("which keys there are can't be read"),
            Self::Keys(keys) if keys.ledger.is_failing() => Some("usage can't be recorded"),
            Self::Keys(_) | Self::Open => None,
        }
    }

    /// The meter of a request that a caller begins.
    ///
    /// # Errors
    /// Why it must not begin.
    pub async fn meter(&self, caller: &Caller, endpoint: &str, arrived: Instant) -> Result<Meter, Refused> {
        match (self, caller) {
            (Self::Keys(keys), Caller::Holder(principal)) => {
                keys.ledger.begin(principal, endpoint, arrived).await
            }
            _ => Ok(Meter::default()),
        }
    }

    /// What is left to a caller of requests and of tokens a minute, where there are such limits.
    pub fn standing(&self, caller: &Caller) -> [Option<Standing>; 2] {
        match (self, caller) {
            (Self::Keys(keys), Caller::Holder(principal)) => keys.ledger.standing(principal),
            _ => [None, None],
        }
    }

    /// The database, if there is one.
    pub fn store(&self) -> Option<&Store> {
        match self {
            Self::Open => None,
            Self::Keys(keys) => Some(&keys.store),
        }
    }

    /// The currency of costs; nothing where there are none.
    pub fn currency(&self) -> &str {
        match self {
            Self::Open => "",
            Self::Keys(keys) => &keys.currency,
        }
    }

    /// What verifies tokens, if any are taken.
    pub fn oidc(&self) -> Option<Arc<Oidc>> {
        match self {
            Self::Open => None,
            Self::Keys(keys) => keys.oidc.clone(),
        }
    }

    /// Writes what is still to be written, and ends the use of the database; whether all of it is written.
    pub async fn close(&self) -> bool {
        let Self::Keys(keys) = self else {
            return true;
        };
        let whole = keys.ledger.close().await;
        let last = async {
            if let Err(error) = keys.denials.record(&keys.store).await {
                tracing::error!(%error, "what keys were refused can't be recorded");
            }
            if let Some(checkpoints) = &keys.checkpoints {
                checkpoints.try_add().await;
            }
        };
        if tokio::time::timeout(LOOK_MAX, last).await.is_err() {
            tracing::error!("the database does not answer: the last of the audit chain is not recorded");
        }
        keys.store.close().await;
        whole
    }

    /// Counts that a key did not open what it was shown for.
    pub fn count_denial(&self, refusal: &Refusal) {
        if let Self::Keys(keys) = self {
            keys.denials.count(refusal);
        }
    }
}

impl Keys {
    /// The keys of a database; `None` beside them unless it was empty: then the first key, which opens everything.
    ///
    /// # Errors
    /// What the database says.
    pub async fn open(
        database: &Database,
        settings: &GovernanceSettings,
        metrics: &Metrics,
    ) -> anyhow::Result<(Self, Option<NewKey>)> {
        let store = Store::open(database).await?;
        let store = match Secret::place(database, settings.secret.as_deref()) {
            Some(place) => {
                let store = store.with_secret_of("server", &place).await?;
                warn_if_open(&place, "the secret of the database");
                store
            }
            None => store,
        };
        if let Database::File(path) = database {
            warn_if_open(path, "the database");
        }
        if !settings.prices.is_empty() {
            store.settle_currency("server", &settings.currency).await?;
        }
        let currency = store.currency().await?;
        let currency = currency.unwrap_or_else(|| settings.currency.clone());
        let limiting = if store.is_shared() {
            Limiting::shared(&store, metrics).await?
        } else {
            Limiting::alone(used_so_far(&store).await?)
        };
        let (requests_max, prices) = (settings.usage_requests_max, settings.prices.clone());
        let checkpoints = match &settings.checkpoints {
            Some(kept) => Some(Checkpoints::open(store.clone(), kept.clone(), metrics).await?),
            None => None,
        };
        let oidc = match &settings.oidc {
            Some(oidc) => {
                // People are found by it.
                store.secret().context("--oidc-issuer")?;
                Some(Arc::new(Oidc::open(oidc, store.clone(), metrics)?))
            }
            None => None,
        };
        // Last of what can fail: it is told once.
        let first = store.create_first("server", FIRST_PROJECT, FIRST_KEY).await?;
        let seen = look(&store).await?;
        let keys = Self {
            checkpoints,
            denials: Denials::default(),
            metrics: metrics.clone(),
            oidc,
            first_uses: tokio::sync::Mutex::default(),
            looks: store.apart(),
            ledger: Ledger::start(
                store.clone(),
                requests_max,
                prices,
                limiting,
                metrics,
                metrics.usage(settings.project_metrics),
            ),
            store,
            changes: watch::Sender::new(Arc::clone(&seen.directory)),
            seen: RwLock::new(seen),
            looking: tokio::sync::Mutex::default(),
            stale_max: settings.stale_max,
            currency,
        };
        Ok((keys, first))
    }

    /// The keys there are, if that is known.
    fn directory(&self) -> Option<Arc<Directory>> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        (seen.at.elapsed() <= self.stale_max).then(|| Arc::clone(&seen.directory))
    }

    /// Looks for changes, for as long as it runs.
    pub async fn follow(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look_in_time().await;
        }
    }

    async fn look_in_time(&self) {
        let looked = tokio::time::timeout(LOOK_MAX, self.refresh()).await;
        if let Err(error) = looked.unwrap_or(Err(Error::Silent)) {
            tracing::error!(%error, "the keys can't be read");
        }
    }

    /// Looks for changes once.
    ///
    /// # Errors
    /// What the database says.
    pub async fn refresh(&self) -> Result<(), Error> {
        let _turn = self.looking.lock().await;
        let at = Instant::now();
        // Changes would go to the file of that name, and never be seen here.
        self.store.check_file()?;
        let end = self.looks.audit_end().await?;
        let same = self.seen.read().unwrap_or_else(PoisonError::into_inner).audit_end == end;
        let fresh = if same {
            None
        } else {
            Some(look(&self.looks).await?)
        };
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        match fresh {
            Some(fresh) => {
                self.changes.send_replace(Arc::clone(&fresh.directory));
                *seen = fresh;
            }
            None => seen.at = at,
        }
        Ok(())
    }
}

/// Tells whoever runs the server that others may read what they should not.
fn warn_if_open(path: &Path, what: &str) {
    let mode = std::fs::metadata(path).map_or(0, |file| file.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        let mode = format!("{mode:o}");
        tracing::warn!(path = %path.display(), mode, "{what} can be read by others than its owner: chmod 600");
    }
}

/// What everyone has used this month, and of it today.
async fn used_so_far(store: &Store) -> Result<Limiter, Error> {
    let mut limiter = Limiter::default();
    let month = month_began_ms(now_ms()) / 1_000;
    // A row of a clock that was ahead counts for a day that has not come.
    let tomorrow = (now_s() / DAY_S + 1) * DAY_S;
    let owners = store.owners().await?;
    for sum in store.usage(month, tomorrow, DAY_S, usize::MAX).await? {
        let tokens = sum.total.input.saturating_add(sum.total.output);
        let person = owners.get(&sum.key).filter(|owner| is_person(owner));
        let subjects = [
            person.map(|id| Subject::Person(id.clone())),
            Some(Subject::Key(sum.key)),
            Some(Subject::Project(sum.project)),
        ];
        for subject in subjects.into_iter().flatten() {
            limiter.remember(subject, sum.start.saturating_mul(1_000), tokens);
        }
    }
    Ok(limiter)
}

async fn look(store: &Store) -> Result<Seen, Error> {
    // What changes after this is seen at the next look.
    let (at, audit_end) = (Instant::now(), store.audit_end().await?);
    Ok(Seen {
        directory: Arc::new(store.directory().await?),
        audit_end,
        at,
    })
}
