//! What serves requests: a model that generates text, or an encoder.

use std::sync::{Arc, Weak};

use futures::future::BoxFuture;
use rempart_hub::digest::Sha256;
use rempart_models::Task;

use crate::encoder::EncoderModel;
use crate::engine_thread::Health;
use crate::model::Model;

/// A loaded model. Clones share it.
#[derive(Clone)]
pub enum Served {
    Generator(Arc<Model>),
    Encoder(Arc<EncoderModel>),
}

/// What was [`Served`], if anybody still has it.
pub(super) enum Left {
    Generator(Weak<Model>),
    Encoder(Weak<EncoderModel>),
}

/// What a model is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Generator,
    Embedder,
    Ranker,
    Classifier,
}

/// What is known of a model once it was loaded.
#[derive(Clone, Copy, Debug)]
pub struct About {
    pub kind: Kind,
    /// When its files were written, Unix time in seconds.
    pub created: i64,
    /// Tokens of prompt and answer together, or of a text.
    pub tokens_max: usize,
    /// The SHA-256 that names its files, where that is known.
    pub sha256: Option<Sha256>,
}

/// What is known of the files that a model was loaded from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// The SHA-256 that names the model; `None` without signature and manifest.
    pub sha256: Option<Sha256>,
    /// Who has signed it, if that was checked.
    pub signer: Option<String>,
}

/// What became of the loading of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    Loaded(Proof),
    /// Why it was not, see [`reason`](super::reason).
    Refused(&'static str),
}

/// Notes where it lasts what became of the loading of a model of this name. What can't be noted is not served.
pub type Recorder = Box<dyn Fn(String, Attempt) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

impl Kind {
    /// What an encoder of this task is.
    pub fn of(task: Task) -> Self {
        match task {
            Task::Embed { .. } => Self::Embedder,
            Task::Rank { labels: 1, .. } => Self::Ranker,
            Task::Rank { .. } => Self::Classifier,
        }
    }

    /// What to use it for, as clients are told who ask for something else.
    pub fn usage(self) -> &'static str {
        match self {
            Self::Generator => "it generates text; use /v1/chat/completions or /v1/completions",
            Self::Embedder => "it embeds; use /v1/embeddings, /v1/rerank or /v1/score",
            Self::Ranker => "it scores pairs of texts; use /v1/rerank or /v1/score",
            Self::Classifier => "it tells classes apart, which no endpoint of this server gives",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Generator => "generator",
            Self::Embedder => "embedder",
            Self::Ranker => "ranker",
            Self::Classifier => "classifier",
        }
    }
}

impl Served {
    pub(super) fn about(&self) -> About {
        match self {
            Self::Generator(model) => About {
                kind: Kind::Generator,
                created: model.created,
                tokens_max: model.context_length,
                sha256: None,
            },
            Self::Encoder(encoder) => About {
                kind: encoder.kind(),
                created: encoder.created,
                tokens_max: encoder.tokens_max,
                sha256: None,
            },
        }
    }

    /// Whether anybody but the registry has it, as every request does.
    pub(super) fn in_use(&self) -> bool {
        match self {
            Self::Generator(model) => Arc::strong_count(model) > 1,
            Self::Encoder(encoder) => Arc::strong_count(encoder) > 1,
        }
    }

    /// Whether its thread has given up.
    pub fn has_stopped(&self) -> bool {
        match self {
            Self::Generator(model) => model.engine.health() == Health::Failed,
            Self::Encoder(_) => false,
        }
    }

    /// Gives it up without keeping others from it.
    pub(super) fn leave(self) -> Left {
        match self {
            Self::Generator(model) => Left::Generator(Arc::downgrade(&model)),
            Self::Encoder(encoder) => Left::Encoder(Arc::downgrade(&encoder)),
        }
    }

    /// Why it can't be trusted with requests, if so.
    pub fn ailment(&self) -> Option<String> {
        match self {
            Self::Encoder(encoder) => encoder
                .engine
                .has_failed()
                .then(|| format!("the encoder {} fails at everything", encoder.name)),
            Self::Generator(model) => match model.engine.health() {
                Health::Ready => None,
                Health::Warming => Some("no token was made yet".to_owned()),
                Health::Stalled { seconds } => Some(format!("no step got anywhere for {seconds} seconds")),
                Health::Failed => Some("the engine has stopped".to_owned()),
            },
        }
    }
}

impl Left {
    /// Ends its thread, whatever still runs.
    pub(super) fn close(&self) {
        match self {
            Self::Generator(model) => drop(model.upgrade().map(|model| model.engine.close())),
            Self::Encoder(encoder) => drop(encoder.upgrade().map(|encoder| encoder.engine.close())),
        }
    }
}
