//! `rempart serve`: from settings to a running server, and to its end.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::net::TcpListener;

use crate::chat::template::Chat;
use crate::config::{ServeArgs, Settings};
use crate::encoder::EncoderModel;
use crate::encoder_thread::EncoderLimits;
use crate::engine_thread::Pace;
use crate::grammar::Grammars;
use crate::http::{self, App, AppState, Models};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::served_model::{self, ServedEncoder, ServedModel};
use crate::shutdown::{Phase, Shutdown};
use crate::turns::Turns;
use crate::{encoder_thread, engine_thread, warm_up};

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
    let turns = Turns::default();
    let mut models = Models::default();
    for encoder in served.encoders {
        let encoder = start_encoder(encoder, &settings, app, &turns)?;
        warm_up::warm_up_encoder(&encoder).await?;
        models.encoders.push(Arc::new(encoder));
    }
    let Some(generator) = served.generator else {
        app.serve_models(models);
        app.shutdown.reached(Phase::Closing).await;
        return Ok(());
    };
    // The thread lives as long as the process: the app, which holds a handle on it, does.
    let (mut model, _engine) = start(generator, &settings, app, turns)?;
    let handle = model.engine.clone();
    model.encoders = models
        .encoders
        .iter()
        .map(|encoder| (encoder.name.clone(), encoder.usage()))
        .collect();
    models.generator = Some(Arc::new(model));
    app.serve_models(models);
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

fn start_encoder(
    served: ServedEncoder,
    settings: &Settings,
    app: &AppState,
    turns: &Turns,
) -> anyhow::Result<EncoderModel> {
    let (task, tokens_max, vocab_size) = (
        served.encoder.task,
        served.encoder.tokens_max,
        served.encoder.vocab_size,
    );
    let limits = EncoderLimits {
        batch_tokens_max: settings.engine.encoder_batch_tokens_max,
        queue_requests_max: settings.engine.queue_requests_max,
        queue_tokens_max: settings.engine.queue_tokens_max,
    };
    let metrics = app.metrics.encoder(&served.name);
    let engine = encoder_thread::spawn(served.encoder, limits, turns.clone(), metrics)
        .context("starting an encoder's thread")?;
    Ok(EncoderModel {
        name: served.name,
        tokenizer: served.tokenizer,
        task,
        tokens_max,
        vocab_size,
        created: served.created,
        engine,
    })
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
    turns: Turns,
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
        Pace {
            stall_timeout: settings.engine.stall_timeout,
            itl_target: settings.engine.itl_target,
            turns,
        },
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
        infill: served.tokenizer.infill(),
        tokenizer: served.tokenizer,
        chat,
        context_length: served.context_length,
        vocab_size: served.vocab_size,
        eos_tokens: served.eos_tokens,
        encoders: Vec::new(),
        created: served.created,
        engine: handle,
    };
    Ok((model, join))
}
