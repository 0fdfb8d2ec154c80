//! `rempart serve`: from settings to a running server, and to its end.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;

use crate::chat::template::Chat;
use crate::config::{ServeArgs, Settings};
use crate::grammar::Grammars;
use crate::http::{self, App, AppState};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::served_model::{self, ServedModel};
use crate::shutdown::{Phase, Shutdown};
use crate::{engine_thread, warm_up};

/// Serves until a signal, or a fault of the engine, ends it.
pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let settings = args.check()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting tokio")?;
    let result = runtime.block_on(serve(settings));
    // A model that is still loading, or a step in flight, is not waited for.
    runtime.shutdown_background();
    result
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    let shutdown = Shutdown::default();
    let bind = settings.http.bind;
    let listener = TcpListener::bind(bind)
        .await
        .with_context(|| format!("listening on {bind}"))?;
    let app: AppState = Arc::new(App::new(
        settings.http.clone(),
        settings.request.clone(),
        metrics,
        shutdown.clone(),
    ));
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(http::upkeep(Arc::clone(&app)));
    let signals = shutdown.clone();
    tasks.spawn(async move {
        if let Err(error) = signals.follow_signals().await {
            tracing::error!(%error, "signals cannot be received");
        }
    });
    let accepting = http::accept::serve(listener, http::app(Arc::clone(&app)), Arc::clone(&app));
    tracing::info!(address = %bind, "listening; not ready until the model is loaded");
    let (result, ()) = tokio::join!(supervise(settings, &app), accepting);
    tasks.shutdown().await;
    result
}

/// Loads the model, proves that it works, and watches the engine until the end.
async fn supervise(settings: Settings, app: &AppState) -> anyhow::Result<()> {
    let result = load_and_watch(settings, app).await;
    // Whatever the reason, the accept loop ends with this.
    app.shutdown.advance(if result.is_ok() {
        Phase::Draining
    } else {
        Phase::Closing
    });
    result
}

async fn load_and_watch(settings: Settings, app: &AppState) -> anyhow::Result<()> {
    let loading = tokio::task::spawn_blocking({
        let settings = settings.clone();
        move || served_model::load(&settings, &settings.model.store)
    });
    let served = tokio::select! {
        loaded = loading => loaded.context("loading the model panicked")??,
        () = app.shutdown.reached(Phase::Draining) => return Ok(()),
    };
    // The thread lives as long as the process: the app, which holds a handle on it, does.
    let (model, _engine) = start(served, &settings, app)?;
    let handle = model.engine.clone();
    app.serve_model(model);
    let watched = tokio::select! {
        warmed = warm_up::warm_up(app) => match warmed {
            Ok(()) => tokio::select! {
                () = handle.failed() => Err(anyhow::anyhow!("too many steps failed: the engine has stopped")),
                () = app.shutdown.reached(Phase::Draining) => Ok(()),
            },
            Err(error) => Err(error),
        },
        () = app.shutdown.reached(Phase::Draining) => Ok(()),
    };
    watched?;
    app.shutdown.reached(Phase::Closing).await;
    Ok(())
}

/// This program, even if an upgrade replaces or removes its file.
fn this_program() -> anyhow::Result<PathBuf> {
    if cfg!(target_os = "linux") {
        return Ok(PathBuf::from("/proc/self/exe"));
    }
    std::env::current_exe().context("finding this program")
}

fn start(
    served: ServedModel,
    settings: &Settings,
    app: &AppState,
) -> anyhow::Result<(Model, std::thread::JoinHandle<()>)> {
    let names = match settings.model.served_names.as_slice() {
        [] => vec![served.id.clone()],
        names => names.to_vec(),
    };
    let Some(name) = names.first() else {
        bail!("the model has no name")
    };
    served.engine_config.check().context("the engine's limits")?;
    let metrics = app.metrics.model(name, &served.engine_config);
    let engine = rempart_engine::Engine::new(served.runner, served.engine_config);
    let (handle, join) = engine_thread::spawn(
        engine,
        served.engine_config,
        metrics,
        settings.engine.stall_timeout,
        settings.engine.itl_target,
    )
    .context("starting the engine thread")?;
    let chat = served
        .chat_template
        .map(|template| Chat::new(template, &served.tokenizer, &served.eos_tokens));
    let model = Model {
        names,
        grammars: Grammars::new(
            served.tokenizer.clone(),
            served.vocab_size,
            served.eos_tokens.clone(),
            this_program()?,
        ),
        tokenizer: served.tokenizer,
        chat,
        context_length: served.context_length,
        vocab_size: served.vocab_size,
        eos_tokens: served.eos_tokens,
        created: served.created,
        engine: handle,
    };
    Ok((model, join))
}
