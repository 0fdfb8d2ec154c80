//! A server over a model that always says the same, and the means to hold it, break it and read its answers.

pub(crate) mod certificates;
mod encoders;
mod generators;
mod governed;
pub(crate) mod issuer;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use clap::Parser as _;
use http_body_util::BodyExt as _;
use rempart::access::{Access, Keys, loads_recorder};
use rempart::cli::{Cli, Command};
use rempart::config::Settings;
use rempart::engine_thread::EngineHandle;
use rempart::http::{App, AppState, admin, app};
use rempart::metrics::Metrics;
use rempart::registry::{First, Loaded, Served};
use rempart::shutdown::Shutdown;
use rempart::warm_up::warm_up;
use rempart_text::{GgufVocab, Tokenizer};
use serde_json::{Value, json};
use tower::ServiceExt as _;

pub(crate) use generators::STORED;
use generators::{Says, Stored};
pub(crate) use governed::{Governed, governed, governed_at, request};

/// What the model says to everything, one token for each byte, before it ends.
pub(crate) const SCRIPT: &str = "Hello, wörld. One two three.";
pub(crate) const IM_END: u32 = 258;
pub(crate) const VOCAB: usize = 261;
pub(crate) const CONTEXT: usize = 256;
/// Tells of functions take more than that.
const LONG_CONTEXT: usize = 4096;

const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A template of a model that reasons before it answers.
pub(crate) const REASONING_TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n\
    {% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}";

/// Strings into the running model.
#[derive(Default)]
pub(crate) struct Controls {
    gate: Mutex<Gate>,
    changed: Condvar,
    /// Steps that are still to fail, and to panic.
    pub(crate) fail: AtomicUsize,
    pub(crate) panic: AtomicUsize,
    /// Rows of the last step.
    pub(crate) rows: AtomicUsize,
    /// Whether no model can be loaded from its files any more.
    pub(crate) files_damaged: AtomicBool,
    /// How long each token of a step takes.
    pub(crate) token_ms: AtomicUsize,
    /// How long a stored model takes to load, beyond what is needed to see it.
    pub(crate) load_ms: AtomicUsize,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    /// Steps that pass although it is closed.
    passes: usize,
    /// Steps that are held at the gate now.
    held: bool,
}

impl Controls {
    /// Holds every further step.
    pub(crate) fn close(&self) {
        self.gate.lock().unwrap().closed = true;
    }

    pub(crate) fn open(&self) {
        self.gate.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    /// Lets one step pass a closed gate: the one that is held, or the next.
    pub(crate) fn step(&self) {
        self.gate.lock().unwrap().passes += 1;
        self.changed.notify_all();
    }

    /// Waits until a step is held.
    pub(crate) async fn held(self: &Arc<Self>) {
        let controls = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let gate = controls.gate.lock().unwrap();
            drop(controls.changed.wait_while(gate, |gate| !gate.held).unwrap());
        })
        .await
        .unwrap();
    }

    pub(super) fn pass(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.held = gate.closed;
        self.changed.notify_all();
        let waits = |gate: &mut Gate| gate.closed && gate.passes == 0;
        let mut gate = self.changed.wait_while(gate, waits).unwrap();
        gate.passes = gate.passes.saturating_sub(1);
        gate.held = false;
    }

    pub(super) fn due(count: &AtomicUsize) -> bool {
        count
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
            .is_ok()
    }
}

/// A server that was started for one test.
pub(crate) struct TestServer {
    pub(crate) app: AppState,
    pub(crate) router: Router,
    pub(crate) controls: Arc<Controls>,
    pub(crate) engine: EngineHandle,
    pub(crate) admin: Router,
    served: Served,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.controls.open();
    }
}

/// An answer, read to its end.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        normal(serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body)))
    }

    /// The events of a stream: JSON as JSON, all else as it is.
    pub(crate) fn events(&self) -> Vec<Value> {
        let data = self
            .body
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "));
        data.map(|data| serde_json::from_str(data).map_or_else(|_| json!(data), normal))
            .collect()
    }

    /// The text of one choice of a stream.
    pub(crate) fn streamed(&self, index: usize) -> String {
        let events = self.events();
        let choices = events
            .iter()
            .filter_map(|event| event["choices"].as_array())
            .flatten();
        let own = choices.filter(|choice| choice["index"] == index);
        own.filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()))
            .collect()
    }
}

/// Replaces what differs from run to run.
fn normal(mut value: Value) -> Value {
    if let Some(id) = value.get("id").and_then(Value::as_str) {
        let (prefix, rest) = id.split_once('-').unwrap_or(("", ""));
        assert_eq!(rest.len(), if prefix == "test" { 5 } else { 32 }, "{id}");
        value["id"] = json!(format!("{prefix}-ID"));
    }
    if value.get("created").is_some() && value["object"] != "model" {
        assert!(value["created"].as_i64().unwrap() > 1_700_000_000);
        value["created"] = json!(0);
    }
    value
}

/// Settings as the command line makes them.
pub(crate) fn settings(arguments: &[&str]) -> Settings {
    let all = ["rempart", "serve", "test-model"].iter().chain(arguments);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Serve(args) => args.check().unwrap(),
        _ => unreachable!("the arguments say serve"),
    }
}

pub(crate) fn tokenizer() -> Tokenizer {
    // GPT-2 spells the bytes that have no visible form of their own with characters from 256 on.
    let visible = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256_u32;
    let mut tokens: Vec<String> = Vec::new();
    for byte in 0..=255_u8 {
        let spelling = if visible(byte) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap()
        };
        tokens.push(spelling.to_string());
    }
    // A byte-level vocabulary must have a merge; this one, of the bytes 0 and 1, meets no text here.
    let merged = [tokens[0].clone(), tokens[1].clone()];
    tokens.extend([merged.concat()]);
    tokens.extend(["<|im_start|>", "<|im_end|>", "<think>", "</think>"].map(str::to_owned));
    let kind = |token: usize| match token {
        0..257 => 1,
        257 | 258 => 3,
        _ => 4,
    };
    Tokenizer::from_gguf(&GgufVocab {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        token_types: Some((0..tokens.len()).map(kind).collect()),
        tokens,
        merges: Some(vec![merged.join(" ")]),
        eos: Some(IM_END),
        ..GgufVocab::default()
    })
    .unwrap()
}

impl TestServer {
    /// A server with these options of `rempart serve`, whose first token was made.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let server = Self::cold(arguments);
        server.warm_up().await;
        server
    }

    /// A server over a model that says something else, with a template of its own.
    pub(crate) async fn saying(template: Option<&str>, script: &str, arguments: &[&str]) -> Self {
        let template = template.unwrap_or(TEMPLATE);
        let says = (template, script, LONG_CONTEXT);
        let server = Self::scripted(says, arguments, Access::Open, Metrics::new().unwrap());
        server.warm_up().await;
        server
    }

    /// A server that has not made a token yet.
    pub(crate) fn cold(arguments: &[&str]) -> Self {
        let metrics = Metrics::new().unwrap();
        Self::scripted((TEMPLATE, SCRIPT, CONTEXT), arguments, Access::Open, metrics)
    }

    /// A server that asks for keys.
    pub(crate) async fn with_keys(keys: Keys, metrics: Metrics, arguments: &[&str]) -> Self {
        let access = Access::Keys(Box::new(keys));
        let server = Self::scripted((TEMPLATE, SCRIPT, CONTEXT), arguments, access, metrics);
        server.warm_up().await;
        server
    }

    fn scripted(
        (template, script, context): (&str, &str, usize),
        arguments: &[&str],
        access: Access,
        metrics: Metrics,
    ) -> Self {
        let Settings {
            engine,
            http,
            request,
            ..
        } = settings(arguments);
        let controls = Arc::new(Controls::default());
        let state = Arc::new(App::new(http, request, access, metrics, Shutdown::default()));
        let says = Says {
            names: &["test-model", "alias"],
            template,
            script,
            context,
        };
        let loaded = generators::start(&says, &engine, &state.metrics, &controls);
        let Served::Generator(model) = &loaded.served else {
            unreachable!("it generates")
        };
        let (handle, served) = (model.engine.clone(), loaded.served.clone());
        let first = |loaded: Loaded, names: &[&str]| First {
            source: names[0].to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            loaded,
        };
        let mut models = vec![first(loaded, says.names)];
        for (name, loaded) in encoders::start(&engine, &state.metrics) {
            models.push(first(loaded, &[name]));
        }
        let loader = Stored {
            engine,
            metrics: state.metrics.clone(),
            controls: Arc::clone(&controls),
        };
        state.registry.record_loads(loads_recorder(&state));
        state.registry.open(models, Some(Box::new(loader)));
        Self {
            router: app(Arc::clone(&state)),
            admin: admin::app(Arc::clone(&state)),
            app: state,
            controls,
            engine: handle,
            served,
        }
    }

    /// Makes the first token.
    pub(crate) async fn warm_up(&self) {
        warm_up(&self.served).await.unwrap();
    }

    /// A POST to the administrative interface.
    pub(crate) async fn administer(&self, path: &str) -> Answer {
        let request = Request::post(path).header("host", "localhost");
        read(&self.admin, request.body(Body::empty()).unwrap()).await
    }

    /// What the administrative interface tells of a model.
    pub(crate) async fn state_of(&self, name: &str) -> Value {
        let request = Request::get("/admin/models").header("host", "localhost");
        let list = read(&self.admin, request.body(Body::empty()).unwrap()).await;
        let list: Value = serde_json::from_str(&list.body).unwrap();
        let mut all = list["data"].as_array().unwrap().iter();
        all.find(|model| model["id"] == name).cloned().unwrap_or_default()
    }

    pub(crate) async fn send(&self, mut request: Request<Body>) -> Answer {
        let host = HeaderValue::from_static("localhost");
        request.headers_mut().entry("host").or_insert(host);
        read(&self.router, request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Request::builder().uri(path).body(Body::empty()).unwrap())
            .await
    }

    pub(crate) async fn post_text(&self, path: &str, body: &str) -> Answer {
        self.send(post_request(path, body.to_owned())).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.post_text(path, &body.to_string()).await
    }

    /// A chat request with these fields beside the model and one message.
    pub(crate) async fn chat(&self, fields: Value) -> Answer {
        self.post("/v1/chat/completions", chat_body(fields)).await
    }

    /// A completion request with these fields beside the model and a prompt.
    pub(crate) async fn complete(&self, fields: Value) -> Answer {
        self.post(
            "/v1/completions",
            merged(json!({"model": "test-model", "prompt": "Say:"}), fields),
        )
        .await
    }

    /// One value of the metrics page.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let page = self.get("/metrics").await.body;
        let line = page.lines().find(|line| line.starts_with(series));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0)
    }

    /// Waits until a value of the metrics page is as wanted.
    /// Checks a series of a server that asks for keys.
    pub(crate) async fn metric_is_with(&self, key: &str, series: &str, wanted: f64) {
        let request = Request::get("/metrics").header("authorization", format!("Bearer {key}"));
        let page = self.send(request.body(Body::empty()).unwrap()).await;
        let line = page.body.lines().find_map(|line| line.strip_prefix(series));
        assert_eq!(
            line.map(str::trim),
            Some(wanted.to_string().as_str()),
            "{}",
            page.body
        );
    }

    pub(crate) async fn metric_becomes(&self, series: &str, wanted: f64) {
        for _ in 0..2000 {
            if (self.metric(series).await - wanted).abs() < f64::EPSILON {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{series} is {}, not {wanted}", self.metric(series).await);
    }
}

/// Waits until the system's clock shows this second, which keys and tokens end by.
pub(crate) async fn clock_reaches(second: i64) {
    while let left @ 1.. = second - rempart_governance::now_s() {
        tokio::time::sleep(Duration::from_secs(left.unsigned_abs())).await;
    }
}

/// Sends a request, and reads its answer to the end.
pub(crate) async fn read(router: &Router, request: Request<Body>) -> Answer {
    let response = router.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    Answer {
        status,
        headers,
        body: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

/// The series that counts sequences by how they ended.
pub(crate) fn finished(reason: &str) -> String {
    let labels = format!(r#"model_name="test-model",engine="0",finished_reason="{reason}""#);
    format!("vllm:request_success_total{{{labels}}}")
}

pub(crate) fn post_request(path: &str, body: String) -> Request<Body> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json");
    request.body(Body::from(body)).unwrap()
}

pub(crate) fn chat_body(fields: Value) -> Value {
    merged(
        json!({"model": "test-model", "messages": [{"role": "user", "content": "Hi"}]}),
        fields,
    )
}

pub(crate) fn merged(mut base: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else {
        panic!("fields are an object")
    };
    for (name, value) in fields {
        base[name] = value;
    }
    base
}
