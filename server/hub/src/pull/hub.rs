//! The one HTTP client of the workspace, wrapped around hf-hub: what the hub lists, and streams of its files.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use hf_hub::{HFClient, HFError, HFRepository, RepoTypeModel};
use reqwest::header::{HeaderMap, LINK};
use reqwest::{Url, redirect};
use serde::Deserialize;

use super::Limits;
use super::cache::{FILES_MAX, Identity, RemoteFile, is_commit};
use super::error::{Error, Failure};
use crate::progress::{Event, Progress};
use crate::reference::HubReference;

/// The public hub.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// Largest page of a listing, in bytes, and most pages of one.
const PAGE_BYTES_MAX: usize = 16 << 20;
const PAGES_MAX: usize = 1_000;
/// Most redirects of one request: hub, then its storage, with room for a mirror in front.
const REDIRECTS_MAX: usize = 5;
/// hf-hub looks for a token by itself (environment, `~/.cache/huggingface/token`) unless it is given one. This one
/// cannot stand in a header, so hf-hub leaves the header out: without a token in the request, none is ever sent.
const NO_TOKEN: &str = "\n";

/// A hub access token. Its text appears in no message and no log: `Debug` hides it.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// Takes a token as the user gave it; white space around it is dropped.
    ///
    /// # Errors
    /// [`Error::Token`] when it is empty or not visible ASCII.
    pub fn new(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Error::Token);
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// One repository on one hub.
pub(super) struct Hub {
    repository: HFRepository<RepoTypeModel>,
    client: reqwest::Client,
    reference: HubReference,
    endpoint: String,
    url: Url,
    token: Option<Token>,
    limits: Limits,
}

/// A revision's commit and its files.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

/// A page of a listing.
struct Page {
    entries: Vec<TreeEntry>,
    next: Option<Url>,
}

/// A file or folder as the hub lists it.
#[derive(Deserialize)]
struct TreeEntry {
    r#type: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
}

impl TreeEntry {
    fn into_file(self) -> Option<RemoteFile> {
        let etag = self.lfs.map_or(self.oid, |lfs| lfs.oid);
        let identity = Identity::from_etag(&etag);
        (self.r#type == "file").then_some(RemoteFile {
            path: self.path,
            bytes: self.size,
            identity,
        })
    }
}

impl Hub {
    pub(super) fn new(
        reference: &HubReference,
        endpoint: &str,
        token: Option<&Token>,
        limits: Limits,
    ) -> Result<Self, Error> {
        let url = check_endpoint(endpoint, token.is_some())?;
        let endpoint = url.as_str().trim_end_matches('/').to_owned();
        let client = client(&url, &limits)?;
        let hub = HFClient::builder()
            .endpoint(&endpoint)
            .token(token.map_or(NO_TOKEN, |token| &token.0))
            .client(client.clone())
            // Its cache and its retries stay unused: neither resumes nor verifies.
            .cache_enabled(false)
            .cache_dir("")
            .user_agent(USER_AGENT)
            .retry_max_attempts(0)
            .build()
            .map_err(|_| Error::Internal("hf-hub refused its configuration"))?;
        Ok(Self {
            repository: hub.model(reference.organisation(), reference.name()),
            client,
            reference: reference.clone(),
            endpoint,
            url,
            token: token.cloned(),
            limits,
        })
    }

    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Finds the commit of the revision, and its files.
    pub(super) async fn list(&self, progress: &dyn Progress) -> Result<Listing, Error> {
        let what = format!("listing {}", self.reference.repository());
        let mut attempt = 1;
        loop {
            let failure = match tokio::time::timeout(self.limits.listing_timeout, self.try_list(&what)).await
            {
                Ok(Ok(listing)) => return Ok(listing),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::transient("no complete answer in time"),
            };
            self.pause(&what, &mut attempt, failure, progress).await?;
        }
    }

    async fn try_list(&self, what: &str) -> Result<Listing, Failure> {
        let revision = self.reference.revision();
        let fail = |error: HFError| self.classify(&error, None, what);
        let info = Box::pin(self.repository.info().revision(revision).send())
            .await
            .map_err(fail)?;
        let commit = info
            .sha
            .filter(|sha| is_commit(sha))
            .ok_or_else(|| self.malformed(what, "no commit"))?;
        let files = self.tree(&commit, what).await?;
        Ok(Listing { commit, files })
    }

    /// The files of a commit. hf-hub 1.0 has this call, but its type drops the SHA-256 of LFS files (the hub calls it
    /// `oid`), which is what a download is checked against.
    async fn tree(&self, commit: &str, what: &str) -> Result<Vec<RemoteFile>, Failure> {
        let repository = self.reference.repository();
        let first = format!(
            "{}/api/models/{repository}/tree/{commit}?recursive=true",
            self.endpoint
        );
        let mut next =
            Some(Url::parse(&first).map_err(|_| self.malformed(what, "its address is not valid"))?);
        let mut files = Vec::new();
        for _ in 0..PAGES_MAX {
            let Some(url) = next else { return Ok(files) };
            if url.origin() != self.url.origin() {
                return Err(self.malformed(what, "the next page is on another host").into());
            }
            let page = self.page(url, what).await?;
            files.extend(page.entries.into_iter().filter_map(TreeEntry::into_file));
            if files.len() > FILES_MAX {
                break;
            }
            next = page.next;
        }
        Err(self.malformed(what, "it lists too many files").into())
    }

    async fn page(&self, url: Url, what: &str) -> Result<Page, Failure> {
        let transport = |error| self.classify_transport(&error, what);
        let mut request = self.client.get(url.clone());
        if let Some(token) = &self.token {
            request = request.bearer_auth(&token.0);
        }
        let mut response = request.send().await.map_err(transport)?;
        if !response.status().is_success() {
            return Err(self.classify_status(response.status().as_u16(), None, what));
        }
        let next = next_page(&url, response.headers());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(transport)? {
            body.extend_from_slice(&chunk);
            if body.len() > PAGE_BYTES_MAX {
                return Err(self.malformed(what, "its answer is too long").into());
            }
        }
        let entries = serde_json::from_slice(&body)
            .map_err(|_| self.malformed(what, "its answer is not what this program expects"))?;
        Ok(Page { entries, next })
    }

    /// The bytes of a file from `from` to its end. The hub may ignore `from`: the caller counts.
    pub(super) async fn stream(
        &self,
        commit: &str,
        file: &RemoteFile,
        from: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, HFError>> + Unpin + use<>, Failure> {
        let range = (from > 0).then_some(from..file.bytes);
        let send = self
            .repository
            .download_file_stream()
            .filename(&file.path)
            .revision(commit)
            .maybe_range(range);
        let (_, stream) = Box::pin(send.send())
            .await
            .map_err(|error| self.classify(&error, Some(file), &file.path))?;
        Ok(stream)
    }

    /// Waits before the next try, or gives up with the error that says why.
    pub(super) async fn pause(
        &self,
        what: &str,
        attempt: &mut u32,
        failure: Failure,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let (reason, retry_after) = match failure {
            Failure::Fatal(error) => return Err(error),
            Failure::Transient { reason, retry_after } => (reason, retry_after),
            Failure::Restart { reason } => (reason, None),
        };
        let attempts_max = self.limits.attempts_max;
        if *attempt >= attempts_max {
            let (endpoint, what) = (self.endpoint.clone(), what.to_owned());
            return Err(Error::Unreachable {
                endpoint,
                what,
                attempts: *attempt,
                reason,
            });
        }
        let backoff = self
            .limits
            .retry_delay
            .saturating_mul(2_u32.saturating_pow(*attempt - 1));
        let delay = retry_after.unwrap_or(backoff).min(self.limits.retry_delay_max);
        *attempt += 1;
        let attempt = *attempt;
        progress.report(Event::Retrying {
            what,
            attempt,
            attempts_max,
            delay,
            reason: &reason,
        });
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Sorts an error of hf-hub by what to do about it. Only status codes and operating system messages pass on: what a
    /// server wrote could hold the token it was sent, and addresses can be signed.
    pub(super) fn classify(&self, error: &HFError, file: Option<&RemoteFile>, what: &str) -> Failure {
        let status = match error {
            HFError::AuthRequired { .. } => 401,
            HFError::Forbidden { .. } => 403,
            HFError::RepoNotFound { .. }
            | HFError::RevisionNotFound { .. }
            | HFError::EntryNotFound { .. } => 404,
            HFError::RateLimited { retry_after, .. } => {
                let reason = "the hub limits the rate of requests (429)".to_owned();
                return Failure::Transient {
                    reason,
                    retry_after: *retry_after,
                };
            }
            HFError::Http { context } => context.status.as_u16(),
            HFError::Request { source, .. } => return self.classify_transport(source, what),
            HFError::Xet { .. } => return Failure::transient("the hub's storage (xet) failed"),
            HFError::Json(_) | HFError::MalformedResponse { .. } => {
                return self
                    .malformed(what, "its answer is not what this program expects")
                    .into();
            }
            _ => return Error::Internal("hf-hub failed in an unexpected way").into(),
        };
        self.classify_status(status, file, what)
    }

    fn classify_status(&self, status: u16, file: Option<&RemoteFile>, what: &str) -> Failure {
        let (endpoint, repository) = (self.endpoint.clone(), self.reference.repository());
        match status {
            401 => Error::Unauthorized {
                endpoint,
                repository,
                token_sent: self.token.is_some(),
            }
            .into(),
            403 => Error::Forbidden { endpoint, repository }.into(),
            404 => {
                let revision = self.reference.revision().to_owned();
                let file = file.map(|file| file.path.clone());
                Error::NotFound {
                    endpoint,
                    repository,
                    revision,
                    file,
                }
                .into()
            }
            416 => Failure::Restart {
                reason: "the hub cannot go on from here (416)".to_owned(),
            },
            408 | 425 | 429 | 500..=599 => Failure::transient(format!("the hub answered {status}")),
            _ => Error::Status {
                endpoint,
                status,
                what: what.to_owned(),
            }
            .into(),
        }
    }

    fn classify_transport(&self, error: &reqwest::Error, what: &str) -> Failure {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        if error.is_builder() || error.is_redirect() {
            // The innermost text of these is our own.
            return self.malformed(what, &cause.to_string()).into();
        }
        if error.is_timeout() {
            return Failure::transient("no answer in time");
        }
        match cause.downcast_ref::<std::io::Error>() {
            Some(cause) => Failure::transient(cause.kind().to_string()),
            None if error.is_connect() => Failure::transient("the connection could not be made"),
            None => Failure::transient("the connection was cut"),
        }
    }

    fn malformed(&self, what: &str, reason: &str) -> Error {
        Error::Malformed {
            endpoint: self.endpoint.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        }
    }
}

/// The address in `Link: <…>; rel="next"`.
fn next_page(url: &Url, headers: &HeaderMap) -> Option<Url> {
    let link = headers.get(LINK)?.to_str().ok()?;
    let next = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    let address = next.trim().strip_prefix('<')?.split_once('>')?.0;
    url.join(address).ok()
}

pub(super) const USER_AGENT: &str = concat!("rempart/", env!("CARGO_PKG_VERSION"));

/// Checks the address of a hub. Plain HTTP is for a mirror without secrets or for this machine.
fn check_endpoint(endpoint: &str, with_token: bool) -> Result<Url, Error> {
    let refuse = |reason| {
        // An address with a password in it must not be repeated.
        let shown = if endpoint.contains('@') { "…" } else { endpoint };
        Error::Endpoint {
            endpoint: shown.to_owned(),
            reason,
        }
    };
    let url = Url::parse(endpoint).map_err(|_| refuse("it is not a URL"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(refuse("it must begin with https:// or http:// and name a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it may not hold a user or password; use HF_TOKEN"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(refuse("it may not have a query or fragment"));
    }
    if with_token && url.scheme() == "http" && !is_loopback(&url) {
        return Err(refuse(
            "a token is not sent over plain HTTP: use https or unset HF_TOKEN",
        ));
    }
    Ok(url)
}

pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// The client under hf-hub: with timeouts, and with redirects that never leave TLS. `reqwest` itself drops the
/// `Authorization` header when a redirect changes host or port (tested in tests/pull.rs).
fn client(endpoint: &Url, limits: &Limits) -> Result<reqwest::Client, Error> {
    let policy = redirect::Policy::custom(|attempt| {
        let was_secure = attempt.previous().iter().any(|url| url.scheme() == "https");
        if attempt.previous().len() > REDIRECTS_MAX {
            attempt.error("too many redirects")
        } else if was_secure && attempt.url().scheme() != "https" {
            attempt.error("a redirect from https to plain http")
        } else {
            attempt.follow()
        }
    });
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(limits.connect_timeout)
        .read_timeout(limits.read_timeout)
        .tcp_keepalive(Duration::from_secs(30))
        .redirect(policy);
    if is_loopback(endpoint) {
        builder = builder.no_proxy();
    }
    builder
        .build()
        .map_err(|_| Error::Internal("the HTTP client could not be built"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_checked() {
        for good in [
            "https://huggingface.co",
            "http://mirror.example/hub/",
            "http://127.0.0.1:8080",
            "http://[::1]:1",
        ] {
            check_endpoint(good, false).unwrap();
        }
        for bad in [
            "",
            "huggingface.co",
            "file:///etc",
            "https://",
            "https://a/?x=1",
            "https://a/#x",
            "ftp://a",
        ] {
            assert!(check_endpoint(bad, false).is_err(), "{bad}");
        }
        let secret = check_endpoint("https://user:hunter2@host", false)
            .unwrap_err()
            .to_string();
        assert!(!secret.contains("hunter2"), "{secret}");
        assert!(check_endpoint("http://mirror.example", true).is_err());
        check_endpoint("http://localhost:1", true).unwrap();
    }

    #[test]
    fn tokens_are_checked_and_hidden() {
        assert_eq!(
            format!("{:?}", Token::new(" hf_secret\n").unwrap()),
            "Token(hidden)"
        );
        for bad in ["", " ", "a b", "a\nb", "é"] {
            assert!(Token::new(bad).is_err(), "{bad:?}");
        }
    }
}
