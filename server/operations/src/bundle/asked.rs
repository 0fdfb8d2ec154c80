//! What a running server says of itself.

use anyhow::bail;
use rempart_client::{Accept, Client, Failure, ServerError};

/// Of one answer.
const BYTES_MAX: usize = 32 << 20;

/// An answer that is asked for.
pub(super) struct Question {
    /// The file that it becomes.
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    route: &'static str,
    accept: Accept,
    /// Whether an error status is an answer, too.
    any_status: bool,
}

pub(super) const QUESTIONS: [Question; 4] = [
    Question {
        name: "server/version.json",
        about: "the version of the running server",
        route: "/version",
        accept: Accept::Json,
        any_status: false,
    },
    Question {
        name: "server/readyz.json",
        about: "whether it is ready, or why not",
        route: "/readyz",
        accept: Accept::Json,
        any_status: true,
    },
    Question {
        name: "server/models.json",
        about: "the names of its models",
        route: "models",
        accept: Accept::Json,
        any_status: false,
    },
    Question {
        name: "server/metrics.txt",
        about: "its metrics",
        route: "/metrics",
        accept: Accept::Text,
        any_status: false,
    },
];

impl Question {
    /// The answer's text.
    ///
    /// # Errors
    /// Why there is none, and what to do.
    pub(super) async fn ask(&self, client: &Client) -> anyhow::Result<String> {
        let path = client.target().path(self.route);
        let place = format!("{}{path}", client.target().authority());
        let answer = match client.get(&path, self.accept, BYTES_MAX).await {
            Ok(answer) => answer,
            Err(failure @ (Failure::Connect(_) | Failure::ConnectTimeout)) => {
                bail!("{place}: {failure}: does the server run, and is --base-url right?")
            }
            Err(failure) => bail!("{place}: {failure}"),
        };
        if answer.status != 200 && !self.any_status {
            let failure = Failure::Status {
                status: answer.status,
                code: ServerError::in_body(&answer.body).code,
            };
            match answer.status {
                401 | 403 => {
                    bail!(
                        "{place}: {failure}: OPENAI_API_KEY needs a key that may read this, like an auditor's"
                    )
                }
                _ => bail!("{place}: {failure}"),
            }
        }
        match String::from_utf8(answer.body) {
            Ok(text) => Ok(text),
            Err(_) => bail!("{place}: an answer that is no text: is --base-url a server of Rempart's?"),
        }
    }
}
