//! The rows of the audit chain that say which files a model is made of.

use std::sync::Arc;

use anyhow::Context as _;
use futures::FutureExt as _;
use rempart_governance::Error;
use serde_json::json;

use super::{Access, LOOK_MAX};
use crate::http::AppState;
use crate::registry::{Proof, Recorder};

impl Access {
    /// Notes that a model was loaded, with the SHA-256 that names it and who has signed it, as far as that is known.
    ///
    /// # Errors
    /// Where that can't be written.
    pub async fn record_loaded(&self, model: &str, proof: &Proof) -> Result<(), Error> {
        match self {
            Self::Open => Ok(()),
            Self::Keys(keys) => {
                let sha256 = proof.sha256.map(|sha256| sha256.to_string());
                let detail = json!({"sha256": sha256, "signer": proof.signer}).to_string();
                let recording = keys.store.record("server", "model.loaded", model, detail);
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
    Box::new(move |model, proof| {
        let app = app.upgrade();
        async move {
            let Some(app) = app else { return Ok(()) };
            let recorded = app.access.record_loaded(&model, &proof).await;
            recorded.with_context(|| format!("that {model} was loaded can't be recorded"))
        }
        .boxed()
    })
}
