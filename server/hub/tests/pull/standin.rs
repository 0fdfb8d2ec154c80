//! A stand-in hub on loopback: the routes that a pull uses, every request recorded, and faults on demand.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fmt::Write;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, Response, StatusCode, header};
use futures::stream;
use rempart_hub::digest::Sha256;
use serde_json::json;
use sha1::Digest;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const REPOSITORY: &str = "org/model";

/// What the hub does with the next request for a file's content, instead of serving it.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    Status(u16),
    /// Sends that many bytes of what was asked for, then cuts the connection.
    CutAfter(usize),
    /// Sends a byte now and then.
    Drip,
    /// Sends the first byte, then nothing.
    Stall,
    /// Answers 200 with the whole file whatever range was asked for.
    IgnoreRange,
    /// Sends so many bytes too many.
    Overlong(usize),
}

/// A file of the repository, and the lies told about it.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) content: Vec<u8>,
    pub(crate) lfs: bool,
    pub(crate) listed_bytes: Option<u64>,
    pub(crate) listed_identity: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) files: BTreeMap<String, Served>,
    pub(crate) faults: VecDeque<Fault>,
    /// Statuses for the next listings.
    pub(crate) listing_faults: VecDeque<(u16, Option<&'static str>)>,
    pub(crate) token: Option<String>,
    /// The host of the next page of a listing, if another one.
    pub(crate) next_page_host: Option<String>,
    /// Where file requests are redirected.
    pub(crate) storage: Option<String>,
    pub(crate) log: Vec<Recorded>,
}

pub(crate) struct Hub {
    pub(crate) endpoint: String,
    shared: Arc<Mutex<Shared>>,
    // Dropped last: it stops the server.
    _runtime: Runtime,
}

impl Hub {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let app = axum::Router::new().fallback(answer).with_state(shared.clone());
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        drop(runtime.spawn(async move { axum::serve(listener, app).await }));
        Self {
            endpoint,
            shared,
            _runtime: runtime,
        }
    }

    /// A hub whose repository has one GGUF of `bytes` bytes.
    pub(crate) fn with_gguf(bytes: usize) -> Self {
        let hub = Self::start();
        hub.add("model.gguf", &content(bytes), true);
        hub
    }

    pub(crate) fn add(&self, path: &str, content: &[u8], lfs: bool) {
        let served = Served {
            content: content.to_vec(),
            lfs,
            listed_bytes: None,
            listed_identity: None,
        };
        self.shared().files.insert(path.to_owned(), served);
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    pub(crate) fn fault(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared().faults.extend(faults);
    }

    /// The ranges of the requests for content, in order; `None` is the whole file.
    pub(crate) fn ranges(&self) -> Vec<Option<String>> {
        let is_content = |r: &&Recorded| r.method == Method::GET && r.path.contains("/resolve/");
        self.shared()
            .log
            .iter()
            .filter(is_content)
            .map(|r| r.range.clone())
            .collect()
    }
}

/// Bytes without a pattern that a wrong offset would hide.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

async fn answer(State(shared): State<Arc<Mutex<Shared>>>, request: Request) -> Response<Body> {
    let mut shared = shared.lock().unwrap();
    let text = |name: HeaderName| {
        request
            .headers()
            .get(name)
            .map(|v| v.to_str().unwrap().to_owned())
    };
    let path = request.uri().path().to_owned();
    let recorded = Recorded {
        method: request.method().clone(),
        path: path.clone(),
        range: text(header::RANGE),
        authorization: text(header::AUTHORIZATION),
    };
    shared.log.push(recorded.clone());
    if let Some(token) = &shared.token
        && recorded.authorization != Some(format!("Bearer {token}"))
    {
        // A careless server repeats what it was sent: no message may pass it on.
        return status(401, None, &format!("bad token {:?}", recorded.authorization));
    }
    let api = format!("/api/models/{REPOSITORY}/");
    if let Some(rest) = path.strip_prefix(&api) {
        let page = request
            .uri()
            .query()
            .and_then(|query| query.strip_prefix("page="));
        return list(&mut shared, rest, page);
    }
    let file = path.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/"));
    let Some(served) = file.and_then(|file| shared.files.get(file)).cloned() else {
        return status(404, Some("EntryNotFound"), "no such file");
    };
    if let Some(storage) = &shared.storage {
        let location = format!("{storage}{path}?signature=SIGNED");
        let response = Response::builder().status(302).header(header::LOCATION, location);
        return response.body(Body::empty()).unwrap();
    }
    let fault = if recorded.method == Method::GET {
        shared.faults.pop_front()
    } else {
        None
    };
    serve(&served, &recorded, fault.as_ref())
}

fn list(shared: &mut Shared, rest: &str, page: Option<&str>) -> Response<Body> {
    if let Some((code, error_code)) = shared.listing_faults.pop_front() {
        return status(code, error_code, "listing fault");
    }
    match rest.split_once('/') {
        Some(("revision", "main" | COMMIT)) => json_body(&json!({ "id": REPOSITORY, "sha": COMMIT })),
        Some(("tree", COMMIT)) => list_page(shared, page.and_then(|page| page.parse().ok()).unwrap_or(0)),
        _ => status(404, Some("RevisionNotFound"), "no such revision"),
    }
}

/// Two entries from the given one on, as the hub pages long listings.
fn list_page(shared: &Shared, from: usize) -> Response<Body> {
    const ENTRIES: usize = 2;
    let files = shared.files.iter().skip(from).take(ENTRIES);
    let page = files.map(|(path, served)| entry(path, served)).collect();
    let mut response = json_body(&serde_json::Value::Array(page));
    if from + ENTRIES < shared.files.len() {
        let host = shared.next_page_host.clone().unwrap_or_default();
        let address = format!(
            "{host}/api/models/{REPOSITORY}/tree/{COMMIT}?page={}",
            from + ENTRIES
        );
        response.headers_mut().insert(
            header::LINK,
            format!("<{address}>; rel=\"next\"").parse().unwrap(),
        );
    }
    response
}

fn entry(path: &str, served: &Served) -> serde_json::Value {
    let bytes = served.listed_bytes.unwrap_or(served.content.len() as u64);
    let object = format!("blob {}\0", served.content.len());
    let object = sha1::Sha1::new_with_prefix(object)
        .chain_update(&served.content)
        .finalize();
    let mut git = String::new();
    for byte in object {
        write!(git, "{byte:02x}").unwrap();
    }
    let listed = served.listed_identity.clone();
    if served.lfs {
        let oid = listed.unwrap_or_else(|| Sha256::of(&served.content).to_string());
        json!({ "type": "file", "path": path, "size": bytes, "oid": git,
                "lfs": { "oid": oid, "size": bytes, "pointerSize": 130 } })
    } else {
        json!({ "type": "file", "path": path, "size": bytes, "oid": listed.unwrap_or(git) })
    }
}

fn serve(served: &Served, request: &Recorded, fault: Option<&Fault>) -> Response<Body> {
    let whole = &served.content;
    if let Some(Fault::Status(code)) = fault {
        return status(*code, None, "fault");
    }
    let range = request
        .range
        .as_deref()
        .filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    let (code, mut body) = match range.map(|range| parse_range(range, whole.len())) {
        None => (200, whole.clone()),
        Some(None) => return status(416, None, "range"),
        Some(Some(start)) => (206, whole[start..].to_vec()),
    };
    if let Some(Fault::Overlong(more)) = fault {
        body.extend(vec![0; *more]);
    }
    let mut response = Response::builder()
        .status(code)
        .header(header::CONTENT_LENGTH, body.len());
    if code == 206 {
        let start = whole.len() - body.len();
        let range = format!("bytes {start}-{}/{}", whole.len() - 1, whole.len());
        response = response.header(header::CONTENT_RANGE, range);
    }
    let body = match fault {
        Some(Fault::CutAfter(bytes)) => cut(body[..*bytes].to_vec()),
        Some(Fault::Drip) => drip(body),
        Some(Fault::Stall) => stall(body[..1].to_vec()),
        _ if request.method == Method::HEAD => Body::empty(),
        _ => Body::from(body),
    };
    response.body(body).unwrap()
}

fn parse_range(range: &str, length: usize) -> Option<usize> {
    let start: usize = range.strip_prefix("bytes=")?.split_once('-')?.0.parse().ok()?;
    (start < length).then_some(start)
}

fn cut(body: Vec<u8>) -> Body {
    let chunks = stream::unfold(Some(Bytes::from(body)), |state| async move {
        match state {
            Some(bytes) if !bytes.is_empty() => Some((Ok(bytes), Some(Bytes::new()))),
            Some(_) => {
                // Time for the bytes to leave: the error would throw away what is buffered.
                tokio::time::sleep(Duration::from_millis(100)).await;
                Some((Err(io::Error::other("cut")), None))
            }
            None => None,
        }
    });
    Body::from_stream(chunks)
}

fn drip(body: Vec<u8>) -> Body {
    let chunks = stream::unfold(body.into_iter(), |mut bytes| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let byte = bytes.next()?;
        Some((Ok::<_, Infallible>(Bytes::from(vec![byte])), bytes))
    });
    Body::from_stream(chunks)
}

fn stall(first: Vec<u8>) -> Body {
    let chunks = stream::unfold(Some(first), |state| async move {
        match state {
            Some(bytes) => Some((Ok::<_, Infallible>(Bytes::from(bytes)), None)),
            None => std::future::pending().await,
        }
    });
    Body::from_stream(chunks)
}

fn status(code: u16, error_code: Option<&str>, message: &str) -> Response<Body> {
    let mut headers = HeaderMap::new();
    if let Some(error_code) = error_code {
        headers.insert("x-error-code", error_code.parse().unwrap());
    }
    let mut response = Response::new(Body::from(json!({ "error": message }).to_string()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    *response.headers_mut() = headers;
    response
}

fn json_body(value: &serde_json::Value) -> Response<Body> {
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(value.to_string()))
        .unwrap()
}
