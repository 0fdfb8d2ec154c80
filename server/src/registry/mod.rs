//! Which models there are, what state each is in, and the way from a name to one that is loaded.
//!
//! A request holds the model that it was given for as long as it lives, and so does nothing else but the registry: a model
//! that is unloaded ends with its last request.

mod lifecycle;
mod refusal;
mod served;
mod snapshot;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::access::Caller;
use crate::encoder::EncoderModel;
use crate::http::error::ApiError;
use crate::http::models::unix_now;
use crate::metrics::{LifecycleMetrics, Metrics, Rejection};
use crate::model::Model;
pub use refusal::{Refused, reason};
pub use served::{About, Attempt, Kind, Proof, Recorder, Served};
pub use snapshot::Snapshot;

/// A model that could not be loaded when a request wanted it is not tried again for so long.
const RETRY: Duration = Duration::from_secs(10);

/// What brings a model from its files into memory.
pub trait Load: Send + Sync {
    /// The name that a model of the store goes by; `None` where there is no model of that name.
    fn find(&self, name: &str) -> Option<String>;

    /// Loads a model and starts its thread. Blocks for as long as that takes.
    ///
    /// # Errors
    /// Says what is wrong, for the operator.
    fn load(&self, wanted: &Wanted) -> anyhow::Result<Loaded>;

    /// Looks at the files of a model, while another of its memory may still be there. What it takes can be known only when that
    /// is gone.
    ///
    /// # Errors
    /// Says why it can't be loaded at all.
    fn check(&self, wanted: &Wanted) -> anyhow::Result<()>;
}

/// What is to be loaded.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What the operator named: of the store or, on the command line, anything.
    pub source: String,
    pub names: Vec<String>,
    /// Bytes of the memory plan that other models have.
    pub taken: u64,
}

/// A model that is in memory.
pub struct Loaded {
    pub served: Served,
    /// The thread that computes. Memory is free again when it has ended.
    pub thread: JoinHandle<()>,
    /// What it takes at most, bytes.
    pub bytes: u64,
    /// How much of that is of the memory that the plan divides.
    pub planned: u64,
    pub proof: Proof,
}

/// A model of the command line, loaded.
pub struct First {
    pub source: String,
    pub names: Vec<String>,
    pub loaded: Loaded,
}

/// A cheap handle on all models.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    entries: Mutex<Vec<Entry>>,
    /// Whether the models of the command line are there.
    opened: AtomicBool,
    loader: OnceLock<Box<dyn Load>>,
    recorder: OnceLock<Recorder>,
    /// Loads come one after the other: each plans with what the others leave.
    loading: tokio::sync::Mutex<()>,
    /// Counts changes of states.
    changed: watch::Sender<u64>,
    /// A model of the command line whose engine has given up.
    lost: watch::Sender<Option<String>>,
    /// Loads and unloads go on if those who asked for them leave.
    tasks: Mutex<JoinSet<()>>,
    metrics: Metrics,
    unload_timeout: Duration,
    /// Requests that may wait for one model to be loaded.
    waiting_max: usize,
}

/// One model. Entries are never removed, so that an entry's place is its identity.
struct Entry {
    source: String,
    /// The first is the one that answers carry.
    names: Vec<String>,
    /// Whether the command line has it.
    first: bool,
    state: State,
    /// Known once it was loaded.
    about: Option<About>,
    /// Who has signed what was loaded last.
    signer: Option<String>,
    /// Why it was not loaded, as the audit chain has it, since it was last.
    refused: Option<&'static str>,
    bytes: u64,
    planned: u64,
    used: Option<Used>,
    /// Places for requests that wait until it is loaded.
    places: Arc<Semaphore>,
    metrics: LifecycleMetrics,
}

#[derive(Clone, Copy)]
struct Used {
    at: Instant,
    unix_s: i64,
}

enum State {
    Loading,
    Ready(Loaded),
    Draining(Then),
    /// `idle`: a request brings it back.
    Unloaded {
        idle: bool,
    },
    Failed {
        error: String,
        /// Whether a request had asked for it, and another may try again, when it was tried.
        idle: bool,
        at: Instant,
    },
}

/// What comes after draining.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Stay,
    Idle,
    Reload,
}

/// What a name leads to.
enum Found {
    Ready(Served),
    /// It is on its way.
    Coming,
    /// The caller must bring it: its state says so already.
    Bring(usize),
}

/// What a request wants of a model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    Text,
    Vectors,
}

impl Registry {
    /// `unload_timeout` is what running requests get when their model is unloaded; `waiting_max` how many may wait for one
    /// that is being loaded.
    pub fn new(metrics: Metrics, unload_timeout: Duration, waiting_max: usize) -> Self {
        Self(Arc::new(Shared {
            entries: Mutex::default(),
            opened: AtomicBool::new(false),
            loader: OnceLock::new(),
            recorder: OnceLock::new(),
            loading: tokio::sync::Mutex::default(),
            changed: watch::Sender::new(0),
            lost: watch::Sender::new(None),
            tasks: Mutex::default(),
            metrics,
            unload_timeout,
            waiting_max,
        }))
    }

    /// Has every load recorded from now on. Called once.
    pub fn record_loads(&self, recorder: Recorder) {
        let _only_once = self.0.recorder.set(recorder);
    }

    /// Puts the models of the command line into service, and `loader` to work for those that come later. Called once.
    pub fn open(&self, models: Vec<First>, loader: Option<Box<dyn Load>>) {
        if let Some(loader) = loader {
            let _only_once = self.0.loader.set(loader);
        }
        for First {
            source,
            names,
            loaded,
        } in models
        {
            let mut entry = self.entry(source, names, true);
            entry.metrics.loaded(loaded.bytes);
            entry.begin(&loaded);
            let served = loaded.served.clone();
            entry.state = State::Ready(loaded);
            let id = self.add(entry);
            self.watch(id, &served);
        }
        self.0.opened.store(true, Ordering::Release);
        self.changed();
    }

    /// Waits until the engine of a model of the command line has given up; its name.
    pub async fn lost(&self) -> String {
        let mut lost = self.0.lost.subscribe();
        match lost.wait_for(Option::is_some).await {
            Ok(name) => name.clone().unwrap_or_default(),
            // The sender lives in `self`.
            Err(_) => String::new(),
        }
    }

    /// What to tell a client that is too early.
    pub fn check_opened(&self) -> Result<(), ApiError> {
        if self.0.opened.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(ApiError::not_ready("the models are loading"))
        }
    }

    /// The model of a name that generates text, loaded: one that a request brings back, or that is on its way, is waited for.
    /// Without a name the first one.
    pub async fn generator(
        &self,
        name: Option<&str>,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Arc<Model>, ApiError> {
        match self.served(name, Use::Text, caller, deadline).await? {
            Served::Generator(model) => Ok(model),
            Served::Encoder(encoder) => Err(no_text(encoder.kind())),
        }
    }

    /// The encoder of a name, likewise.
    pub async fn encoder(
        &self,
        name: &str,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Arc<EncoderModel>, ApiError> {
        match self.served(Some(name), Use::Vectors, caller, deadline).await? {
            Served::Encoder(encoder) => Ok(encoder),
            Served::Generator(_) => Err(no_vectors()),
        }
    }

    async fn served(
        &self,
        name: Option<&str>,
        wanted: Use,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Served, ApiError> {
        let mut changed = self.0.changed.subscribe();
        let mut place = None;
        loop {
            match self.find(name, wanted, caller, &mut place)? {
                Found::Ready(served) => return Ok(served),
                Found::Coming => {}
                Found::Bring(id) => self.bring_in_background(id, true),
            }
            let waited = tokio::time::timeout_at(deadline.into(), changed.changed()).await;
            if waited.is_err() {
                return Err(ApiError::deadline());
            }
        }
    }

    /// Whether a request for it would have to wait until it is loaded, or bring it back.
    pub fn is_out(&self, name: Option<&str>, wanted: Use, caller: &Caller) -> bool {
        let entries = self.lock();
        let entry = position(&entries, name, wanted, caller).map(|id| &entries[id]);
        entry.is_some_and(|entry| !matches!(entry.state, State::Ready(_)))
    }

    /// `place` is that of a request that waits.
    fn find(
        &self,
        name: Option<&str>,
        wanted: Use,
        caller: &Caller,
        place: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<Found, ApiError> {
        self.check_opened()?;
        let mut entries = self.lock();
        // What one may not use is told as if it were not there.
        let Some(id) = position(&entries, name, wanted, caller) else {
            let message = "no model of this server generates text";
            return Err(name.map_or_else(
                || ApiError::invalid("model", "model_not_supported", message),
                |name| ApiError::model_not_found(name, &offered(&entries, caller)),
            ));
        };
        let entry = &mut entries[id];
        if let Some(about) = entry.about.filter(|_| !entry.is_for(wanted)) {
            return Err(match wanted {
                Use::Text => no_text(about.kind),
                Use::Vectors => no_vectors(),
            });
        }
        let found = entry.state.found(id).ok_or_else(ApiError::model_unloaded)?;
        if place.is_none() && !matches!(found, Found::Ready(_)) {
            let free = Arc::clone(&entry.places).try_acquire_owned();
            let free = free.map_err(|_| {
                self.0.metrics.reject(Rejection::LoadWaiting);
                ApiError::overloaded(RETRY.as_secs())
            });
            *place = Some(free?);
        }
        match &found {
            Found::Ready(_) => entry.used = Some(Used::now()),
            Found::Bring(_) => entry.state = State::Loading,
            Found::Coming => {}
        }
        Ok(found)
    }

    /// What to tell a client that asks for what there is not.
    pub fn not_found(&self, name: &str, caller: &Caller) -> ApiError {
        ApiError::model_not_found(name, &offered(&self.lock(), caller))
    }

    /// What clients may ask for: names, and what is known of the model. Those that generate come first.
    pub fn offered(&self, caller: &Caller) -> Result<Vec<(Vec<String>, About)>, ApiError> {
        self.check_opened()?;
        let entries = self.lock();
        let offered = entries
            .iter()
            .filter(|entry| entry.is_offered() && caller.may_use(&entry.names));
        let mut all: Vec<_> = offered
            .filter_map(|entry| Some((entry.names.clone(), entry.about?)))
            .collect();
        all.sort_by_key(|(_, about)| about.kind != Kind::Generator);
        Ok(all)
    }

    /// A model of the command line that an operator loaded again, and that could not be. One that a request wanted back is not
    /// meant: it is tried again with the next request, which must be let in for that.
    pub fn failed(&self) -> Option<String> {
        let entries = self.lock();
        let failed = |entry: &&Entry| entry.first && matches!(entry.state, State::Failed { idle: false, .. });
        entries.iter().find(failed).map(|entry| entry.id().to_owned())
    }

    /// The models that are in memory, with their names.
    pub fn loaded(&self) -> Vec<(String, Served)> {
        let entries = self.lock();
        let ready = entries.iter().filter_map(|entry| match &entry.state {
            State::Ready(loaded) => Some((entry.id().to_owned(), loaded.served.clone())),
            _ => None,
        });
        ready.collect()
    }

    fn entry(&self, source: String, names: Vec<String>, first: bool) -> Entry {
        Entry {
            metrics: self.0.metrics.lifecycle(&names[0]),
            source,
            names,
            first,
            state: State::Unloaded { idle: false },
            about: None,
            signer: None,
            refused: None,
            bytes: 0,
            planned: 0,
            used: None,
            places: Arc::new(Semaphore::new(self.0.waiting_max.min(Semaphore::MAX_PERMITS))),
        }
    }

    fn add(&self, entry: Entry) -> usize {
        let mut entries = self.lock();
        entries.push(entry);
        entries.len() - 1
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.0.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Used {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            unix_s: unix_now(),
        }
    }
}

impl State {
    /// What a request for it gets; `None` where only the operator brings it back.
    fn found(&self, id: usize) -> Option<Found> {
        match self {
            Self::Ready(loaded) => Some(Found::Ready(loaded.served.clone())),
            Self::Loading | Self::Draining(Then::Idle | Then::Reload) => Some(Found::Coming),
            Self::Unloaded { idle: true } => Some(Found::Bring(id)),
            Self::Failed { idle: true, at, .. } if at.elapsed() >= RETRY => Some(Found::Bring(id)),
            Self::Draining(Then::Stay) | Self::Unloaded { .. } | Self::Failed { .. } => None,
        }
    }
}

impl Entry {
    fn id(&self) -> &str {
        &self.names[0]
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|own| own == name)
    }

    fn is_for(&self, wanted: Use) -> bool {
        let generates = self.about.is_some_and(|about| about.kind == Kind::Generator);
        generates == (wanted == Use::Text)
    }

    /// Whether clients may ask for it.
    fn is_offered(&self) -> bool {
        match &self.state {
            State::Loading | State::Draining(Then::Idle | Then::Reload) => self.about.is_some(),
            State::Ready(_) | State::Unloaded { idle: true } | State::Failed { idle: true, .. } => true,
            State::Draining(Then::Stay) | State::Unloaded { .. } | State::Failed { .. } => false,
        }
    }

    /// Notes what is known of it now that it is loaded.
    fn begin(&mut self, loaded: &Loaded) {
        self.about = Some(About {
            sha256: loaded.proof.sha256,
            ..loaded.served.about()
        });
        self.signer.clone_from(&loaded.proof.signer);
        self.refused = None;
        self.bytes = loaded.bytes;
        self.planned = loaded.planned;
        self.used = Some(Used::now());
    }
}

/// The model of a name that a caller may use, or without one the first of those that clients may ask for.
fn position(entries: &[Entry], name: Option<&str>, wanted: Use, caller: &Caller) -> Option<usize> {
    let mut own = entries.iter();
    own.position(|entry| {
        caller.may_use(&entry.names)
            && match name {
                Some(name) => entry.has(name),
                None => entry.is_offered() && entry.is_for(wanted),
            }
    })
}

/// The names that clients may ask for.
fn offered(entries: &[Entry], caller: &Caller) -> Vec<String> {
    let offered = entries
        .iter()
        .filter(|entry| entry.is_offered() && caller.may_use(&entry.names));
    offered.flat_map(|entry| entry.names.iter().cloned()).collect()
}

fn no_text(kind: Kind) -> ApiError {
    let message = format!("this model generates no text: {}", kind.usage());
    ApiError::invalid("model", "model_not_supported", message)
}

fn no_vectors() -> ApiError {
    let message = "this model generates text: it neither embeds nor ranks";
    ApiError::invalid("model", "model_not_supported", message)
}
