//! Measures: finds the model, warms up, and runs step by step what the plan says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use rempart_client::Failure as Http;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::client::Client;
use crate::clock::{Clock, Nanos};
use crate::dataset::{Item, Words, unique};
use crate::failure::Failure;
use crate::machine::cpu_seconds;
use crate::plan::{Level, Plan, Shape};
use crate::progress::{Console, Counts};
use crate::record::{End, Record, Seen};
use crate::rng::{self, Use};
use crate::run::{self, Step};
use crate::schedule::Arrivals;
use crate::search::{Bisection, Point, Sweep};
use crate::slo::{Judged, Slo};
use crate::summary::{self, Summary, Window};

/// What a run found.
pub(crate) struct Measured {
    pub server: Server,
    pub words: Option<Words>,
    pub steps: Vec<MeasuredStep>,
    /// Of a sweep.
    pub knee: Option<Point>,
    pub found: Option<Found>,
}

/// What a search found: the highest rate that keeps the SLO, if any does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Found(pub Option<f64>);

/// What the server says of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    pub model: String,
    pub software: Option<String>,
    /// Its version and build, where it has a page for that.
    pub version: Map<String, Value>,
    /// What it tells of the model, such as a digest.
    pub listed: Map<String, Value>,
}

pub(crate) struct MeasuredStep {
    pub level: Level,
    pub started: DateTime<Utc>,
    pub requests: usize,
    pub records: Vec<Record>,
    pub window: Window,
    pub summary: Summary,
    pub judged: Vec<Judged>,
    /// Of one core, used by this program.
    pub cpu_share: Option<f64>,
}

impl MeasuredStep {
    pub(crate) fn holds(&self) -> bool {
        self.judged.iter().all(|one| one.holds)
    }
}

/// Names of steps that are no part of a measurement, for their texts.
const CALIBRATION: usize = 1 << 20;
const WARM_UP: usize = CALIBRATION + 1;
/// Words of the prompts by which a tokenizer is asked.
const CALIBRATION_WORDS: [usize; 2] = [40, 240];
/// Above this, this program was late with its requests by more than a measurement should be.
const SEND_DELAY_MS_MAX: f64 = 5.0;
const CPU_SHARE_NOTED: f64 = 0.9;
const VERSION_WAIT: Duration = Duration::from_secs(5);

/// # Errors
/// Where nothing can be measured, and what to do about it.
pub(crate) async fn measure(mut plan: Plan, slo: Option<&Slo>, console: Console) -> anyhow::Result<Measured> {
    if plan.target.tells_key() {
        console.note("the key goes to another machine unencrypted: use https://");
    }
    let client = Arc::new(Client::new(plan.target.clone(), plan.patience, Clock::start()).await?);
    let mut server = find_model(&client, plan.model.as_deref()).await?;
    server.version = version(&client).await;
    plan.template.model.clone_from(&server.model);
    let words = calibrate(&mut plan, &client, console).await?;
    let mut runner = Runner {
        plan,
        client,
        console,
        slo,
        steps: Vec::new(),
    };
    runner.warm_up().await?;
    let (mut knee, mut found) = (None, None);
    match runner.plan.shape.clone() {
        Shape::Levels(levels) => {
            for level in levels {
                runner.step(level).await?;
            }
        }
        Shape::Sweep { clients_max } => knee = runner.sweep(clients_max).await?,
        Shape::Search {
            low,
            high,
            precision,
            burstiness,
        } => {
            found = Some(
                runner
                    .search(Bisection::new(low, high, precision), burstiness)
                    .await?,
            );
        }
    }
    Ok(Measured {
        server,
        words,
        steps: runner.steps,
        knee,
        found,
    })
}

struct Runner<'a> {
    plan: Plan,
    client: Arc<Client>,
    console: Console,
    slo: Option<&'a Slo>,
    steps: Vec<MeasuredStep>,
}

impl Runner<'_> {
    async fn warm_up(&self) -> anyhow::Result<()> {
        if self.plan.warmups == 0 {
            return Ok(());
        }
        let mut step = self.begin(WARM_UP);
        step.cancellation.rate = 0.0;
        let clients = match self.plan.shape {
            Shape::Levels(ref levels) => match levels.first() {
                Some(Level::Closed(clients)) => *clients,
                _ => 1,
            },
            _ => 1,
        };
        let records = run::closed(Arc::new(step), clients, self.plan.warmups, Nanos::MAX).await?;
        let failures: Vec<&Failure> = records.iter().filter_map(failure).collect();
        match failures.first() {
            Some(first) if failures.len() == records.len() => {
                bail!("every warm-up request failed: {first}.{}", hint(first))
            }
            Some(first) => self
                .console
                .note(&format!("{} warm-up requests failed: {first}", failures.len())),
            None => {}
        }
        Ok(())
    }

    fn begin(&self, number: usize) -> Step {
        Step {
            number,
            seed: self.plan.seed,
            client: Arc::clone(&self.client),
            start: self.client.clock().now(),
            template: self.plan.template.clone(),
            dataset: Arc::clone(&self.plan.dataset),
            cancellation: self.plan.cancellation,
            counts: Arc::new(Counts::default()),
        }
    }

    async fn step(&mut self, level: Level) -> anyhow::Result<&MeasuredStep> {
        let number = self.steps.len();
        let (requests, until) = self.plan.requests(level)?;
        let times = self.plan.times(level, requests, until, number);
        let (started, cpu, wall) = (Utc::now(), cpu_seconds(), Instant::now());
        let step = Arc::new(self.begin(number));
        let shown = if level.is_closed() { requests } else { times.len() };
        let progress = self.console.show(&level.name(), shown, &step.counts);
        let records = match level {
            Level::Closed(clients) => run::closed(step, clients, requests, until).await?,
            Level::Open(_) | Level::Trace => run::open(step, times, self.plan.in_flight_max).await?,
        };
        drop(progress);
        let cpu_share = cpu
            .zip(cpu_seconds())
            .map(|(before, after)| (after - before) / wall.elapsed().as_secs_f64());
        let measured = self.summarize(level, records, started, cpu_share)?;
        self.tell(&measured);
        self.steps.push(measured);
        self.steps.last().context("the step that was just run")
    }

    fn summarize(
        &self,
        level: Level,
        records: Vec<Record>,
        started: DateTime<Utc>,
        cpu_share: Option<f64>,
    ) -> anyhow::Result<MeasuredStep> {
        let window = match (self.plan.steady_state, level) {
            (false, _) => summary::whole(&records),
            (true, Level::Closed(clients)) => summary::steady_closed(&records, clients)
                .context("--steady-state: too few requests for a steady state; raise --num-prompts to three for each client")?,
            (true, _) => summary::steady_open(&records).context("--steady-state: too few requests; raise --num-prompts")?,
        };
        let summary = summary::summarize(
            &records,
            window,
            self.plan.template.endpoint.generates(),
            self.plan.goodput,
        );
        let judged = self.slo.map_or_else(Vec::new, |slo| slo.judge(&summary));
        Ok(MeasuredStep {
            level,
            started,
            requests: records.len(),
            records,
            window,
            summary,
            judged,
            cpu_share,
        })
    }

    fn tell(&self, step: &MeasuredStep) {
        let name = step.level.name();
        for (reason, count) in &step.summary.reasons {
            self.console.note(&format!("{name}: {count} failed: {reason}"));
        }
        if let Some(first) = step
            .records
            .iter()
            .find_map(failure)
            .filter(|_| step.summary.completed == 0)
        {
            self.console
                .note(&format!("{name}: nothing was answered.{}", hint(first)));
        }
        let late = step.summary.samples.send_delay.percentile(99.0);
        if late > SEND_DELAY_MS_MAX {
            self.console.note(&format!(
                "{name}: 1 % of the requests were sent {late:.1} ms or more after their time, which latencies count: this machine \
                 is busy, so run the load from another one"
            ));
        }
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as f64;
        if step
            .cpu_share
            .is_some_and(|share| share > CPU_SHARE_NOTED * cores)
        {
            self.console.note(&format!(
                "{name}: this program took all of its cores; what it measured may be itself"
            ));
        }
    }

    async fn sweep(&mut self, clients_max: usize) -> anyhow::Result<Option<Point>> {
        let mut sweep = Sweep::new(clients_max);
        let generates = self.plan.template.endpoint.generates();
        while let Some(clients) = sweep.next() {
            let summary = &self.step(Level::Closed(clients)).await?.summary;
            let throughput = if generates {
                summary.output_throughput
            } else {
                summary.request_throughput
            };
            sweep.tell(Point {
                clients,
                throughput,
                latency: summary.samples.e2el.mean(),
            });
        }
        Ok(sweep.knee())
    }

    async fn search(&mut self, mut search: Bisection, burstiness: f64) -> anyhow::Result<Found> {
        while let Some(rate) = search.next() {
            let level = Level::Open(Arrivals {
                rate,
                burstiness,
                ramp: None,
            });
            let holds = self.step(level).await?.holds();
            let said = if holds { "keeps" } else { "does not keep" };
            self.console.note(&format!("{}: {said} the SLO", level.name()));
            search.tell(holds);
        }
        Ok(Found(search.found()))
    }
}

fn failure(record: &Record) -> Option<&Failure> {
    match &record.end {
        End::Failed(failure) => Some(failure),
        _ => None,
    }
}

/// What to do about a failure of all requests.
fn hint(failure: &Failure) -> &'static str {
    match failure {
        Failure::Http(failure) => hint_for(failure),
        _ => "",
    }
}

fn hint_for(failure: &Http) -> &'static str {
    match failure {
        Http::Connect(_) | Http::ConnectTimeout => " Is the server running, and is --base-url right?",
        Http::Tls(_) => {
            " Name the authority of its certificate with --ca-file; for a test, --insecure takes any certificate."
        }
        Http::Status {
            status: 401 | 403, ..
        } => " Give a key that may do this in OPENAI_API_KEY.",
        Http::Status { status: 404, .. } => {
            " --base-url ends with the API's version, like http://host:8080/v1, and --model is a name that the server lists."
        }
        Http::Status {
            status: 400 | 413 | 422,
            ..
        } => {
            " The server does not take such a request: look at the lengths, which its context must hold, and at --extra-body."
        }
        Http::Status {
            status: 429 | 503, ..
        } => " The server has too much to do, or a limit for this key: lower the load.",
        Http::IdleTimeout | Http::RequestTimeout => {
            " Is the model loaded? --idle-timeout-s and --timeout-s say how long to wait."
        }
        Http::NotAStream | Http::BadEvent | Http::BadBody | Http::Protocol(_) => {
            " Does an OpenAI-compatible server answer at --base-url, and has it this --endpoint?"
        }
        _ => "",
    }
}

/// Finds the model that is measured, and what the server tells of it.
async fn find_model(client: &Client, asked: Option<&str>) -> anyhow::Result<Server> {
    #[derive(Deserialize)]
    struct List {
        data: Vec<Map<String, Value>>,
    }
    let path = client.target().path("models");
    let document = match client.get(&path).await {
        Ok(document) => document,
        Err(failure @ (Http::Connect(_) | Http::ConnectTimeout | Http::Tls(_))) => {
            bail!(
                "{}: {failure}.{}",
                client.target().authority(),
                hint_for(&failure)
            )
        }
        Err(failure) if asked.is_none() => {
            bail!("{path}: {failure}.{} Or name the --model.", hint_for(&failure))
        }
        Err(_) => return Ok(Server::named(asked)),
    };
    let list = serde_json::from_slice::<List>(&document.body)
        .ok()
        .filter(|_| document.status == 200);
    let Some(list) = list else {
        if asked.is_some() {
            return Ok(Server {
                software: document.server,
                ..Server::named(asked)
            });
        }
        let failure = Http::Status {
            status: document.status,
            code: None,
        };
        bail!(
            "{path}: no list of models ({failure}).{} Or name the --model.",
            hint_for(&failure)
        );
    };
    let id = |entry: &Map<String, Value>| entry.get("id").and_then(Value::as_str).map(str::to_owned);
    let entry = match asked {
        Some(asked) => list
            .data
            .into_iter()
            .find(|entry| id(entry).as_deref() == Some(asked)),
        None => Some(
            list.data
                .into_iter()
                .next()
                .with_context(|| format!("{path}: the server has no model"))?,
        ),
    };
    let entry = entry.unwrap_or_default();
    let model = asked
        .map(str::to_owned)
        .or_else(|| id(&entry).filter(|id| is_name(id)))
        .context("the server's first model has no name that can be shown: name the --model")?;
    Ok(Server {
        model,
        software: document.server,
        listed: scalars(entry),
        version: Map::new(),
    })
}

/// Whether a server's text can be shown on a terminal as a name.
fn is_name(text: &str) -> bool {
    const CHARS_MAX: usize = 256;
    (1..=CHARS_MAX).contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// What a server tells of its version, as vLLM's and ours do; nothing where it does not.
async fn version(client: &Client) -> Map<String, Value> {
    // Few servers have it, and one that does not answer has no say in when a measurement begins.
    match timeout(VERSION_WAIT, client.get("/version")).await {
        Ok(Ok(document)) if document.status == 200 => {
            serde_json::from_slice(&document.body).map_or_else(|_| Map::new(), scalars)
        }
        _ => Map::new(),
    }
}

impl Server {
    fn named(model: Option<&str>) -> Self {
        Self {
            model: model.unwrap_or_default().to_owned(),
            ..Self::default()
        }
    }
}

/// What is told of a model in short: its owner, its digest, its context.
fn scalars(entry: Map<String, Value>) -> Map<String, Value> {
    const FIELDS_MAX: usize = 24;
    const BYTES_MAX: usize = 200;
    let short = |value: &Value| match value {
        Value::String(text) => text.len() <= BYTES_MAX,
        Value::Number(_) | Value::Bool(_) => true,
        _ => false,
    };
    entry
        .into_iter()
        .filter(|(_, value)| short(value))
        .take(FIELDS_MAX)
        .collect()
}

/// Asks the server how many tokens it makes of words. `None` where it does not tell, or need not.
async fn calibrate(plan: &mut Plan, client: &Client, console: Console) -> anyhow::Result<Option<Words>> {
    if !plan.calibrate || plan.template.endpoint == crate::body::Endpoint::Rerank {
        return Ok(None);
    }
    let mut counted = Vec::new();
    for (index, words) in CALIBRATION_WORDS.into_iter().enumerate() {
        let name = (CALIBRATION as u64) << 32 | index as u64;
        let item = Item {
            prompt: unique(&mut rng::of(plan.seed, Use::Prompt, name), words),
            documents: Vec::new(),
            input_tokens: words as u32,
            output_tokens: 2,
        };
        let mut seen = Seen::default();
        match client.send(&plan.template.outgoing(item), &mut seen).await {
            Err(failure) => bail!("a first request failed: {failure}.{}", hint(&failure)),
            Ok(()) => counted.extend(seen.usage.prompt_tokens.map(|tokens| (words, tokens))),
        }
    }
    let fitted = match counted[..] {
        [first, second] => Words::fitted(first, second),
        _ => None,
    };
    match fitted {
        None => console.note("the server does not count input tokens: each word is taken for one"),
        Some(words) => {
            let dataset = Arc::get_mut(&mut plan.dataset).context("a data set that nobody else has yet")?;
            dataset.calibrate(words);
        }
    }
    Ok(fitted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_no_name() {
        assert!(is_name("org/model:4bit"));
        for text in ["", "m\u{1b}]0;x\u{7}", "m\n", &"m".repeat(257)] {
            assert!(!is_name(text), "{text:?}");
        }
    }
}
