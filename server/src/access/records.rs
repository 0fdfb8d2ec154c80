//! The rows of the audit chain that the server writes of itself: what operators ask of it, its beginning and its end, and what became
//! of models.

use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;
use rempart_governance::Error;
use serde_json::{Map, Value, json};

use super::{Access, Caller, LOOK_MAX};
use crate::http::AppState;
use crate::registry::{Attempt, Proof, Recorder};

impl Access {
    /// Notes in the audit chain what a caller is about to do.
    ///
    /// # Errors
    /// Where that can't be written: then it must not be done.
    pub async fn record(
        &self,
        caller: &Caller,
        action: &str,
        object: &str,
        detail: Value,
    ) -> Result<(), Error> {
        match self {
            Self::Open => Ok(()),
            Self::Keys(keys) => {
                let detail = detail.to_string();
                keys.store.record(&caller.actor(), action, object, detail).await
            }
        }
    }

    /// Notes that the server itself began or ended, with what is to be known of it.
    ///
    /// # Errors
    /// Where that can't be written.
    pub async fn record_server(&self, action: &str, mut facts: Map<String, Value>) -> Result<(), Error> {
        match self {
            Self::Open => Ok(()),
            Self::Keys(keys) => {
                facts.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
                let detail = Value::Object(facts).to_string();
                let recording = keys.store.record("server", action, "server", detail);
                let recorded = tokio::time::timeout(LOOK_MAX, recording).await;
                recorded.unwrap_or(Err(Error::Silent))
            }
        }
    }

    /// Notes that a model was loaded, with the SHA-256 that names it and who has signed it, as far as that is known; or that it was
    /// not, and why.
    ///
    /// # Errors
    /// Where that can't be written.
    pub async fn record_load(&self, model: &str, load: &Attempt) -> Result<(), Error> {
        match self {
            Self::Open => Ok(()),
            Self::Keys(keys) => {
                let (action, detail) = match load {
                    Attempt::Loaded(Proof { sha256, signer }) => {
                        let sha256 = sha256.map(|sha256| sha256.to_string());
                        ("model.loaded", json!({"sha256": sha256, "signer": signer}))
                    }
                    Attempt::Refused(reason) => ("model.refused", json!({"reason": reason})),
                };
                let recording = keys.store.record("server", action, model, detail.to_string());
                let recorded = tokio::time::timeout(LOOK_MAX, recording).await;
                recorded.unwrap_or(Err(Error::Silent))
            }
        }
    }
}

/// Writes the loads of an application's models into its audit chain.
pub fn loads_recorder(app: &AppState) -> Recorder {
    // The application has the registry, which has this.
    let app = Arc::downgrade(app);
    Box::new(move |model, load| {
        let app = app.upgrade();
        async move {
            let Some(app) = app else { return Ok(()) };
            let recorded = app.access.record_load(&model, &load).await;
            let what = match load {
                Attempt::Loaded(_) => "was loaded",
                Attempt::Refused(_) => "was not loaded",
            };
            recorded.with_context(|| format!("that {model} {what} can't be recorded"))
        }
        .boxed()
    })
}
