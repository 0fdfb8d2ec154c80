//! How models come and go while others serve.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::FutureExt as _;

use super::{Attempt, Loaded, Registry, Served, Snapshot, State, Then, Used, Wanted, reason};
use crate::access::Caller;
use crate::http::error::ApiError;
use crate::warm_up;

/// How often it is looked at which models nobody uses.
const IDLE_LOOK: Duration = Duration::from_secs(1);

/// What a look at a state found.
enum Step {
    Done(Result<Snapshot, ApiError>),
    Wait,
}

impl Registry {
    /// Loads a model, and waits until it serves. One that does is left as it is.
    ///
    /// # Errors
    /// 404 where there is no such model, 409 while it is unloaded, 422 with the reason where it can't be loaded.
    pub async fn load(&self, name: &str) -> Result<Snapshot, ApiError> {
        let id = self.known_or_stored(name).await?;
        let mut begun = false;
        self.until(id, |state| match state {
            State::Ready(_) => Some(Ok(())),
            State::Loading => {
                begun = true;
                None
            }
            State::Draining(_) => Some(Err(ApiError::model_busy("draining"))),
            State::Failed { error, .. } if begun => Some(Err(ApiError::load_failed(error))),
            // Another operator was faster.
            State::Unloaded { .. } if begun => Some(Err(ApiError::model_busy("unloaded again"))),
            State::Unloaded { .. } | State::Failed { .. } => {
                begun = true;
                *state = State::Loading;
                self.bring_in_background(id, false);
                None
            }
        })
        .await
    }

    /// Unloads a model, and waits until its memory is free. One that is not loaded stays so, and no request brings it back.
    ///
    /// # Errors
    /// 404 where there is no such model, 409 while it is loaded.
    pub async fn unload(&self, name: &str) -> Result<Snapshot, ApiError> {
        let id = self.known(name)?;
        let mut begun = false;
        self.until(id, |state| match state {
            State::Loading if begun => Some(Ok(())),
            State::Loading => Some(Err(ApiError::model_busy("loading"))),
            State::Draining(Then::Reload) => Some(Err(ApiError::model_busy("draining"))),
            State::Draining(then) => {
                *then = Then::Stay;
                begun = true;
                None
            }
            State::Ready(_) if begun => Some(Ok(())),
            State::Ready(_) => {
                begun = true;
                self.end_in_background(id, state, Then::Stay);
                None
            }
            State::Unloaded { idle } => {
                *idle = false;
                Some(Ok(()))
            }
            State::Failed { .. } => {
                *state = State::Unloaded { idle: false };
                Some(Ok(()))
            }
        })
        .await
    }

    /// Unloads a model and loads it again from its files, if those are sound: one that works is not given up for others that
    /// can't. Requests for it wait meanwhile.
    ///
    /// # Errors
    /// As [`Registry::load`] and [`Registry::unload`].
    pub async fn reload(&self, name: &str) -> Result<Snapshot, ApiError> {
        let id = self.known_or_stored(name).await?;
        if matches!(self.lock()[id].state, State::Ready(_)) {
            self.check_files(id).await?;
        }
        let mut begun = false;
        self.until(id, |state| match state {
            State::Loading | State::Draining(Then::Reload) if begun => None,
            State::Loading => Some(Err(ApiError::model_busy("loading"))),
            State::Draining(_) => Some(Err(ApiError::model_busy("draining"))),
            State::Ready(_) | State::Unloaded { .. } if begun => Some(Ok(())),
            State::Failed { error, .. } if begun => Some(Err(ApiError::load_failed(error))),
            State::Ready(_) => {
                begun = true;
                self.end_in_background(id, state, Then::Reload);
                None
            }
            State::Unloaded { .. } | State::Failed { .. } => {
                begun = true;
                *state = State::Loading;
                self.bring_in_background(id, false);
                None
            }
        })
        .await
    }

    async fn check_files(&self, id: usize) -> Result<(), ApiError> {
        let registry = self.clone();
        let wanted = self.wanted(id);
        let check = move || match registry.0.loader.get() {
            Some(loader) => loader.check(&wanted),
            None => Ok(()),
        };
        let checked = tokio::task::spawn_blocking(check).await;
        let checked = checked.context("looking at the files panicked").flatten();
        let Err(error) = checked else { return Ok(()) };
        self.record_refusal(id, &error, false).await;
        let error = format!("{error:#}");
        tracing::error!(error, "a model was not loaded again");
        Err(ApiError::load_failed(&error))
    }

    /// Unloads models that nobody has used for so long, for as long as it runs.
    pub async fn unload_idle(self, limit: Duration) {
        loop {
            tokio::time::sleep(IDLE_LOOK.min(limit)).await;
            let mut entries = self.lock();
            let mut any = false;
            for (id, entry) in entries.iter_mut().enumerate() {
                let State::Ready(loaded) = &entry.state else {
                    continue;
                };
                if loaded.served.in_use() {
                    entry.used = Some(Used::now());
                } else if entry.used.is_none_or(|used| used.at.elapsed() >= limit) {
                    tracing::info!(model = entry.id(), "a model is unloaded because nobody uses it");
                    self.end_in_background(id, &mut entry.state, Then::Idle);
                    any = true;
                }
            }
            drop(entries);
            if any {
                self.changed();
            }
        }
    }

    /// Waits until `look`, which may change the state, has an answer.
    async fn until(
        &self,
        id: usize,
        mut look: impl FnMut(&mut State) -> Option<Result<(), ApiError>>,
    ) -> Result<Snapshot, ApiError> {
        let mut changed = self.0.changed.subscribe();
        loop {
            let step = {
                let entry = &mut self.lock()[id];
                let before = entry.state.name();
                let answer = look(&mut entry.state);
                if entry.state.name() != before {
                    self.changed();
                }
                answer.map_or(Step::Wait, |answer| Step::Done(answer.map(|()| entry.snapshot())))
            };
            if let Step::Done(answer) = step {
                return answer;
            }
            if changed.changed().await.is_err() {
                // The sender lives in `self`.
                return Err(ApiError::internal());
            }
        }
    }

    /// Whether there is a model of this name, known or in the store.
    ///
    /// # Errors
    /// 404 where there is none.
    pub async fn resolve(&self, name: &str) -> Result<(), ApiError> {
        self.known_or_stored(name).await.map(drop)
    }

    fn known(&self, name: &str) -> Result<usize, ApiError> {
        self.check_opened()?;
        let found = self.lock().iter().position(|entry| entry.has(name));
        found.ok_or_else(|| self.not_found(name, &Caller::Anyone))
    }

    /// The entry of a name, made now if that is the name of a model in the store. What is not in it can only be named on the
    /// command line.
    async fn known_or_stored(&self, name: &str) -> Result<usize, ApiError> {
        if let Ok(id) = self.known(name) {
            return Ok(id);
        }
        self.check_opened()?;
        let (registry, asked) = (self.clone(), name.to_owned());
        let find = move || registry.0.loader.get()?.find(&asked);
        let found = tokio::task::spawn_blocking(find).await.ok().flatten();
        let stored = found.ok_or_else(|| self.not_found(name, &Caller::Anyone))?;
        let entry = self.entry(stored.clone(), vec![stored.clone()], false);
        let mut entries = self.lock();
        // It may have an entry by now, or under this other name.
        if let Some(id) = entries.iter().position(|entry| entry.has(&stored)) {
            return Ok(id);
        }
        entries.push(entry);
        Ok(entries.len() - 1)
    }

    fn background(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "the care for a model panicked. This is a bug.");
            }
        }
        tasks.spawn(task);
    }

    /// Brings a model whose state is already that it is loading.
    pub(super) fn bring_in_background(&self, id: usize, idle: bool) {
        let registry = self.clone();
        self.care(id, async move { registry.bring(id, idle).await });
    }

    /// Changes a model's state in the background. Whoever waits for the outcome learns it if that panics, too.
    fn care(&self, id: usize, change: impl Future<Output = ()> + Send + 'static) {
        let registry = self.clone();
        self.background(async move {
            if let Err(panic) = AssertUnwindSafe(change).catch_unwind().await {
                registry.lock()[id].metrics.failed();
                registry.lose(id, "loading or unloading it panicked");
                resume_unwind(panic);
            }
        });
    }

    /// Notes that a model is out of memory, and why only an operator brings it back.
    fn lose(&self, id: usize, why: &str) {
        let entry = &mut self.lock()[id];
        (entry.bytes, entry.planned) = (0, 0);
        entry.state = State::Failed {
            error: why.to_owned(),
            idle: false,
            at: Instant::now(),
        };
        self.changed();
    }

    async fn bring(&self, id: usize, idle: bool) {
        let _one_at_a_time = self.0.loading.lock().await;
        let (wanted, began) = (self.wanted(id), Instant::now());
        let model = wanted.names[0].clone();
        let result = self.try_load(wanted).await;
        if let Err(error) = &result {
            self.record_refusal(id, error, idle).await;
        }
        let seconds = began.elapsed().as_secs_f64();
        let mut served = None;
        {
            let entry = &mut self.lock()[id];
            entry.state = match result {
                Ok(loaded) => {
                    tracing::info!(%model, seconds, "a model is loaded");
                    entry.metrics.loaded(loaded.bytes);
                    entry.begin(&loaded);
                    served = Some(loaded.served.clone());
                    State::Ready(loaded)
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::error!(%model, error, "a model could not be loaded");
                    entry.metrics.failed();
                    let at = Instant::now();
                    State::Failed { error, idle, at }
                }
            };
        }
        if let Some(served) = served {
            self.watch(id, &served);
        }
        self.changed();
    }

    /// Records what became of a load, where that is asked for.
    ///
    /// # Errors
    /// Where it can't be recorded: the model must not serve then.
    pub async fn record(&self, name: &str, load: Attempt) -> anyhow::Result<()> {
        match self.0.recorder.get() {
            Some(recorder) => recorder(name.to_owned(), load).await,
            None => Ok(()),
        }
    }

    /// Notes where it lasts that a model was not loaded. Requests that want one back again and again are one row for each reason.
    async fn record_refusal(&self, id: usize, error: &anyhow::Error, idle: bool) {
        let reason = reason(error);
        let name = {
            let entry = &mut self.lock()[id];
            if entry.refused.replace(reason) == Some(reason) && idle {
                return;
            }
            entry.id().to_owned()
        };
        if let Err(error) = self.record(&name, Attempt::Refused(reason)).await {
            let error = format!("{error:#}");
            tracing::error!(error, "the audit chain can't be written");
        }
    }

    fn wanted(&self, id: usize) -> Wanted {
        let entries = self.lock();
        let others = entries.iter().enumerate().filter(|(at, _)| *at != id);
        Wanted {
            source: entries[id].source.clone(),
            names: entries[id].names.clone(),
            taken: others.map(|(_, entry)| entry.planned).sum(),
        }
    }

    async fn try_load(&self, wanted: Wanted) -> anyhow::Result<Loaded> {
        let (registry, name) = (self.clone(), wanted.names[0].clone());
        let load = move || {
            let loader = registry
                .0
                .loader
                .get()
                .context("this server loads no models at run time")?;
            loader.load(&wanted)
        };
        let loaded = tokio::task::spawn_blocking(load)
            .await
            .context("loading the model panicked");
        let loaded = loaded.and_then(|loaded| loaded);
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                trim().await;
                return Err(error);
            }
        };
        let ready = match warm_up::warm_up(&loaded.served).await {
            Ok(()) => self.record(&name, Attempt::Loaded(loaded.proof.clone())).await,
            Err(error) => Err(error),
        };
        match ready {
            Ok(()) => Ok(loaded),
            Err(error) => {
                self.end(loaded).await;
                Err(error)
            }
        }
    }

    /// Takes a ready model out of service. The caller tells of the change.
    fn end_in_background(&self, id: usize, state: &mut State, then: Then) {
        let State::Ready(loaded) = std::mem::replace(state, State::Draining(then)) else {
            unreachable!("only ready models are ended. This is a bug.")
        };
        let registry = self.clone();
        self.care(id, async move {
            registry.end(loaded).await;
            registry.ended(id).await;
        });
    }

    async fn ended(&self, id: usize) {
        let reload = {
            let entry = &mut self.lock()[id];
            tracing::info!(model = entry.id(), "a model is unloaded");
            entry.metrics.unloaded();
            (entry.bytes, entry.planned) = (0, 0);
            // An operator may have said meanwhile that it is not to come back by itself.
            let reload = matches!(entry.state, State::Draining(Then::Reload));
            let idle = matches!(entry.state, State::Draining(Then::Idle));
            entry.state = if reload {
                State::Loading
            } else {
                State::Unloaded { idle }
            };
            reload
        };
        self.changed();
        if reload {
            self.bring(id, false).await;
        }
    }

    /// Waits for a model's last request, for as long as those get, and for the end of its thread; then gives the memory back.
    async fn end(&self, loaded: Loaded) {
        let left = loaded.served.leave();
        let thread = loaded.thread;
        let mut joined = tokio::task::spawn_blocking(move || thread.join());
        let in_time = tokio::time::timeout(self.0.unload_timeout, &mut joined).await;
        let joined = if let Ok(joined) = in_time {
            joined
        } else {
            tracing::warn!("requests of a model that is unloaded are ended");
            left.close();
            joined.await
        };
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the thread of a model panicked. This is a bug.");
        }
        trim().await;
    }

    /// Notices when an engine gives up. A model of the command line takes the process with it, so that a supervisor starts it
    /// anew; any other is out of service.
    pub(super) fn watch(&self, id: usize, served: &Served) {
        let Served::Generator(model) = served else {
            return;
        };
        let (ended, registry) = (model.engine.ended(), self.clone());
        self.background(async move {
            if ended.await {
                registry.gave_up(id);
            }
        });
    }

    fn gave_up(&self, id: usize) {
        let mut entries = self.lock();
        let entry = &mut entries[id];
        // It may have been on its way out, or be another by now.
        let present = matches!(&entry.state, State::Ready(loaded) if loaded.served.has_stopped());
        if !present {
            return;
        }
        if entry.first {
            self.0.lost.send_replace(Some(entry.id().to_owned()));
            return;
        }
        let State::Ready(loaded) = std::mem::replace(&mut entry.state, State::Draining(Then::Stay)) else {
            unreachable!("it was ready a moment ago. This is a bug.")
        };
        drop(entries);
        self.changed();
        let registry = self.clone();
        // Its memory counts until it is free.
        self.care(id, async move {
            registry.end(loaded).await;
            registry.lock()[id].metrics.unloaded();
            registry.lose(id, "too many steps failed: the engine has stopped");
        });
    }
}

async fn trim() {
    let trimmed = tokio::task::spawn_blocking(rempart_kernels::trim_heap).await;
    if let Err(error) = trimmed {
        resume_unwind(error.into_panic());
    }
}
