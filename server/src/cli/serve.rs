//! `rempart serve`: from settings to a running server, and to its end.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use rempart_confinement::Confined;
use rempart_governance::Database;
use rempart_traces::Traces;
use serde_json::{Map, Value};
use tokio::signal::unix::{SignalKind, signal};

use super::reload::Options;
use crate::access::{Access, Keys, loads_recorder};
use crate::config::{GovernanceSettings, HttpSettings, ServeArgs, Settings};
use crate::egress;
use crate::http::accept::ADMIN_CONNECTIONS_MAX;
use crate::http::lanes::Lanes;
use crate::http::listen::{files_max, listen, waiting_max, waiting_max_of_system};
use crate::http::tls::{Tls, follow_hangups};
use crate::http::{self, App, AppState};
use crate::metrics::Metrics;
use crate::prices::Prices;
use crate::registry::{Attempt, First, Refused, reason};
use crate::served_model::Loader;
use crate::shutdown::{Phase, Shutdown};
use crate::warm_up;

/// Connections of a server that has hardly any files.
const CONNECTIONS_LEAST: usize = 16;

/// Serves until a signal, or a fault of the engine, ends it.
pub(super) fn run(args: ServeArgs, typed: Vec<OsString>) -> anyhow::Result<()> {
    let mut settings = args.check()?;
    // A core would hold what is asked and answered, and keys.
    rlimit::setrlimit(rlimit::Resource::CORE, 0, 0).context("no core may be written")?;
    settings.http.connections_max = connections_that_fit(settings.http.connections_max);
    let listeners = Listeners::bind(&settings.http)?;
    // Before the first thread: what a thread may do is its own.
    let confine = || egress::confine(settings.governance.database.as_ref()).context("--zero-egress");
    let confined = settings.http.zero_egress.then(confine).transpose()?;
    if settings.http.admin.bind.is_some() || settings.http.admin.idle_unload.is_some() {
        rempart_kernels::use_one_heap();
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // On one core, too, something goes on while a disk holds up who writes to it.
        .worker_threads(cores.max(2))
        .enable_all()
        .build()
        .context("starting tokio")?;
    let lanes = Lanes::start(cores).context("starting the threads of connections")?;
    let options = Options::read(typed)?;
    let result = runtime.block_on(serve(settings, listeners, options, confined, Arc::new(lanes)));
    // A model that is still loading, or a step in flight, is not waited for.
    runtime.shutdown_background();
    result
}

/// As many connections as the system has room for: each is an open file, of which it is asked for more than a shell gives.
fn connections_that_fit(wanted: usize) -> usize {
    if let Some(most) = waiting_max_of_system()
        && most < waiting_max(wanted)
    {
        tracing::warn!(
            most,
            "net.core.somaxconn: fewer connections may wait than --connections-max needs (rempart doctor)"
        );
    }
    let files = match rlimit::increase_nofile_limit(files_max(wanted)) {
        Ok(files) => files,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files can't be raised");
            return wanted;
        }
    };
    let room = usize::try_from(files.saturating_sub(files_max(0))).unwrap_or(usize::MAX);
    if room < wanted {
        let connections = room.max(CONNECTIONS_LEAST);
        tracing::warn!(
            files,
            connections,
            "open files: --connections-max needs more, and so many are taken (rempart doctor)"
        );
        return connections;
    }
    wanted
}

/// What clients and operators connect to.
struct Listeners {
    clients: TcpListener,
    admin: Option<TcpListener>,
}

impl Listeners {
    /// Binds the addresses, which a process that is confined can't.
    fn bind(settings: &HttpSettings) -> anyhow::Result<Self> {
        // A runtime without threads, which the listeners leave for the one that serves.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .context("starting tokio")?;
        let bind = |address: SocketAddr, connections_max| {
            let listener = runtime.block_on(async { listen(address, connections_max)?.into_std() });
            listener.with_context(|| format!("listening on {address}"))
        };
        let bind_admin = |address| bind(address, ADMIN_CONNECTIONS_MAX);
        Ok(Self {
            clients: bind(settings.bind, settings.connections_max)?,
            admin: settings.admin.bind.map(bind_admin).transpose()?,
        })
    }
}

async fn serve(
    settings: Settings,
    listeners: Listeners,
    options: Options,
    confined: Option<Confined>,
    lanes: Arc<Lanes>,
) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    metrics.zero_egress(settings.http.zero_egress);
    let shutdown = Shutdown::default();
    // From here on, who renews a certificate too early ends nothing.
    let [hangups, rereads] = [
        signal(SignalKind::hangup()).context("receiving SIGHUP")?,
        signal(SignalKind::hangup()).context("receiving SIGHUP")?,
    ];
    let tls = settings.http.tls.clone();
    let tls = tls.map(|tls| Tls::open(tls, metrics.tls())).transpose()?;
    let listen = tokio::net::TcpListener::from_std;
    let listener = listen(listeners.clients)?;
    let admin = listeners.admin.map(listen).transpose()?;
    let traces = open_traces(settings.traces.as_ref())?;
    let database = settings.governance.database.as_ref();
    let claimed = database.map(Database::claim).transpose();
    // Until the end: another server that counts limits by itself would grant them once more.
    let _claimed = claimed.context("--database")?;
    let access = open_access(&settings.governance, &metrics).await?;
    access.record_server("server.started", facts(&settings)).await?;
    if let Some(confined) = confined {
        let by = Map::from_iter([("by".to_owned(), confined.to_string().into())]);
        access.record_server("server.confined", by).await?;
    }
    let app: AppState = Arc::new(
        App::new(
            settings.http.clone(),
            settings.request.clone(),
            access,
            metrics,
            shutdown.clone(),
        )
        .traced(traces),
    );
    app.registry.record_loads(loads_recorder(&app));
    let mut tasks = tokio::task::JoinSet::new();
    let keys = Arc::clone(&app);
    tasks.spawn(async move { keys.access.follow().await });
    tasks.spawn(http::upkeep(Arc::clone(&app)));
    let signals = shutdown.clone();
    tasks.spawn(async move {
        if let Err(error) = signals.follow_signals().await {
            tracing::error!(%error, "signals cannot be received");
        }
    });
    tasks.spawn(follow_hangups(hangups, tls.clone(), app.access.oidc()));
    tasks.spawn(options.follow(rereads));
    let administering = async {
        if let Some(listener) = admin {
            let router = http::admin::app(Arc::clone(&app));
            http::accept::serve_admin(listener, router, Arc::clone(&app), Arc::clone(&lanes)).await;
        }
    };
    if let Some(limit) = settings.http.admin.idle_unload {
        tasks.spawn(app.registry.clone().unload_idle(limit));
    }
    let secure = tls.is_some();
    let router = http::app(Arc::clone(&app));
    let accepting = http::accept::serve(listener, tls, router, Arc::clone(&app), Arc::clone(&lanes));
    tracing::info!(address = %settings.http.bind, tls = secure, "listening; not ready until the model is loaded");
    let (result, (), ()) = tokio::join!(supervise(settings, &app), accepting, administering);
    tasks.shutdown().await;
    if let Err(error) = app.access.record_server("server.stopped", Map::new()).await {
        tracing::error!(%error, "the audit chain can't be written");
    }
    let whole = app.access.close().await;
    app.end_traces();
    result?;
    ensure!(whole, "the last rows of usage could not be written");
    Ok(())
}

/// Opens the file of traces, where requests are traced.
fn open_traces(settings: Option<&rempart_traces::Settings>) -> anyhow::Result<Option<Traces>> {
    let open = |settings: &rempart_traces::Settings| {
        let traces = Traces::open(settings, env!("CARGO_PKG_VERSION"));
        traces.with_context(|| format!("--traces-file {}", settings.file.display()))
    };
    settings.map(open).transpose()
}

/// What the audit chain says of how the server was started; `rempart gdpr record` reads it.
fn facts(settings: &Settings) -> Map<String, Value> {
    let http = &settings.http;
    let client_ca = http.tls.as_ref().and_then(|tls| tls.client_ca.as_ref());
    let facts = [
        ("zero_egress", http.zero_egress),
        ("tls", http.tls.is_some()),
        ("client_certificates", client_ca.is_some()),
        ("checkpoints", settings.governance.checkpoints.is_some()),
    ];
    facts
        .into_iter()
        .map(|(name, is)| (name.to_owned(), is.into()))
        .collect()
}

/// Opens the database of keys, if there is one, and tells the first key of a new one.
async fn open_access(settings: &GovernanceSettings, metrics: &Metrics) -> anyhow::Result<Access> {
    let Some(database) = &settings.database else {
        return Ok(Access::Open);
    };
    if database.is_exposed() {
        tracing::warn!(
            %database,
            "what goes to the database can be read on the way: add ?sslmode=verify-full to its URL"
        );
    }
    let (keys, first) = Keys::open(database, settings, metrics)
        .await
        .with_context(|| format!("--database {database}"))?;
    if let Some(key) = first {
        // Not by the log, which is kept: this is told once, to whoever starts the server.
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "The first key of the new database, which opens everything. It is not shown again:"
        )?;
        writeln!(out, "{}", key.reveal()).context(
            "the first key could not be shown: make another with `rempart key create --role owner`",
        )?;
    }
    Ok(Access::Keys(Box::new(keys)))
}

/// Loads the models, proves that they work, and watches their engines until the end.
async fn supervise(settings: Settings, app: &AppState) -> anyhow::Result<()> {
    let result = load_and_watch(settings, app).await;
    if let Err(error) = &result
        && let Some(refused) = error.downcast_ref::<Refused>()
    {
        let load = Attempt::Refused(reason(error));
        if let Err(error) = app.registry.record(&refused.model, load).await {
            tracing::error!("{error:#}");
        }
    }
    // Whatever the reason, the accept loop ends with this.
    app.shutdown.advance(if result.is_ok() {
        Phase::Draining
    } else {
        Phase::Closing
    });
    result
}

async fn load_and_watch(settings: Settings, app: &AppState) -> anyhow::Result<()> {
    let (metrics, prices) = (app.metrics.clone(), settings.governance.prices.clone());
    let loading = tokio::task::spawn_blocking(move || {
        let mut loader = Loader::new(settings, metrics)?;
        let models = loader.load_first()?;
        anyhow::Ok((loader, models))
    });
    let (loader, models) = tokio::select! {
        loaded = loading => loaded.context("loading the models panicked")??,
        () = app.shutdown.reached(Phase::Draining) => return Ok(()),
    };
    for First { names, loaded, .. } in &models {
        let warmed = tokio::select! {
            warmed = warm_up::warm_up(&loaded.served) => warmed,
            () = app.shutdown.reached(Phase::Draining) => return Ok(()),
        };
        warmed.map_err(Refused::of(first_of(names)))?;
    }
    for First { names, loaded, .. } in &models {
        let load = Attempt::Loaded(loaded.proof.clone());
        app.registry.record(first_of(names), load).await?;
    }
    warn_of_prices(&prices, &models);
    app.registry.open(models, Some(Box::new(loader)));
    tokio::select! {
        name = app.registry.lost() => bail!("too many steps failed: the engine of {name} has stopped"),
        () = app.shutdown.reached(Phase::Draining) => {}
    }
    app.shutdown.reached(Phase::Closing).await;
    Ok(())
}

fn first_of(names: &[String]) -> &str {
    names.first().map_or("", String::as_str)
}

/// A model that is misspelt would cost nothing for ever.
fn warn_of_prices(prices: &Prices, models: &[First]) {
    for model in prices.models() {
        if !models
            .iter()
            .any(|first| first.names.first().is_some_and(|name| name == model))
        {
            tracing::warn!(
                model,
                "--price names a model that is not among those that are served at start"
            );
        }
    }
}
