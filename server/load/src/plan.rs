//! What is to be done, once what was typed is checked.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rempart_client::{Patience, Target, seconds};
use serde_json::{Map, Value};

use crate::body::Template;
use crate::clock::{Nanos, nanos};
use crate::dataset::{Dataset, Lengths, Listed, Synthetic, Trace, Words};
use crate::limits::{
    CONCURRENCY_MAX, DOCUMENTS_MAX, RATE_MAX, RATE_MIN, STEP_REQUESTS_MAX, STEP_TOKENS_MAX, STEPS_MAX,
    TIMEOUT_MAX,
};
use crate::options::{DatasetArgs, DatasetName, LoadArgs, ServerArgs, ShapeArgs};
use crate::run::Cancellation;
use crate::schedule::{Arrivals, Ramp};
use crate::summary::Goodput;
use crate::workload::workload;

/// A run, checked.
pub(crate) struct Plan {
    pub target: Target,
    pub patience: Patience,
    /// Without the model's name where it is still to be found.
    pub template: Template,
    pub model: Option<String>,
    pub shape: Shape,
    pub volume: Volume,
    pub warmups: usize,
    pub steady_state: bool,
    pub cancellation: Cancellation,
    pub in_flight_max: usize,
    pub seed: u64,
    pub dataset: Arc<Dataset>,
    pub calibrate: bool,
    pub goodput: Option<Goodput>,
    /// What makes two runs comparable.
    pub workload: Map<String, Value>,
}

/// Which loads are tried.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    Levels(Vec<Level>),
    Sweep {
        clients_max: usize,
    },
    Search {
        low: f64,
        high: f64,
        precision: f64,
        burstiness: f64,
    },
}

/// The load of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Level {
    Closed(usize),
    Open(Arrivals),
    /// At the times of the data set.
    Trace,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Volume {
    pub requests: Option<usize>,
    pub duration: Option<Duration>,
}

/// Requests of a step where nobody says how many.
const REQUESTS_PER_CLIENT: usize = 5;
const REQUESTS_MIN: usize = 50;
const OPEN_S: f64 = 30.0;

impl Plan {
    /// # Errors
    /// What is wrong with an option or a file; the message names it.
    pub(crate) fn new(args: &LoadArgs) -> anyhow::Result<Self> {
        let shape = shape(&args.shape, args.dataset.dataset)?;
        let seed = args.shape.seed.unwrap_or_else(another_seed);
        let dataset = dataset(
            &args.dataset,
            args.server.endpoint.generates(),
            documents(args),
            seed,
        )?;
        let target = target(&args.server)?;
        let workload = workload(args, &dataset);
        let plan = Self {
            patience: args.server.patience.patience()?,
            template: template(&args.server, &target)?,
            target,
            model: args.server.model.clone(),
            shape,
            volume: volume(&args.shape)?,
            warmups: args.shape.num_warmups,
            steady_state: args.shape.steady_state,
            cancellation: cancellation(&args.shape)?,
            in_flight_max: args.shape.in_flight_max,
            seed,
            calibrate: dataset.is_made() && !args.dataset.no_calibration,
            dataset: Arc::new(dataset),
            goodput: goodput(&args.results.goodput)?,
            workload,
        };
        ensure!(
            plan.warmups <= STEP_REQUESTS_MAX,
            "--num-warmups: at most {STEP_REQUESTS_MAX}"
        );
        ensure!(plan.in_flight_max >= 1, "--in-flight-max: at least 1");
        ensure!(
            args.server
                .temperature
                .is_none_or(|temperature| temperature.is_finite() && temperature >= 0.0),
            "--temperature: a number that is not below 0"
        );
        ensure!(
            (1..=DOCUMENTS_MAX).contains(&args.dataset.num_documents),
            "--num-documents: from 1 to {DOCUMENTS_MAX}"
        );
        ensure!(
            (0.0..10.0).contains(&args.results.regression_tolerance),
            "--regression-tolerance: a share from 0 to below 10; 0.05 is 5 %"
        );
        Ok(plan)
    }

    /// Requests of a step, and when the last one may begin.
    ///
    /// # Errors
    /// Where they are more than can be kept.
    pub(crate) fn requests(&self, level: Level) -> anyhow::Result<(usize, Nanos)> {
        let Volume { requests, duration } = self.volume;
        let until = duration.map_or(Nanos::MAX, nanos);
        let seconds = duration.map(|duration| duration.as_secs_f64());
        let count = match (level, requests, seconds) {
            (Level::Trace, requests, _) => requests.unwrap_or(usize::MAX).min(self.trace_len()),
            (_, Some(requests), _) => requests,
            (Level::Closed(clients), None, None) => (clients * REQUESTS_PER_CLIENT).max(REQUESTS_MIN),
            (Level::Closed(_), None, Some(_)) => self.requests_kept(),
            (Level::Open(arrivals), None, None) => arrivals.requests_in(OPEN_S).max(REQUESTS_MIN),
            (Level::Open(arrivals), None, Some(seconds)) => arrivals.requests_in(seconds),
        };
        let tokens = self.dataset.output_tokens(count);
        ensure!(
            count <= STEP_REQUESTS_MAX && tokens <= STEP_TOKENS_MAX,
            "a step of {count} requests and {tokens} output tokens: at most {STEP_REQUESTS_MAX} and {STEP_TOKENS_MAX}; lower \
             --num-prompts, --duration-s or the length of answers"
        );
        Ok((count, until))
    }

    /// When the requests of an open loop are sent.
    pub(crate) fn times(&self, level: Level, requests: usize, until: Nanos, step: usize) -> Vec<Nanos> {
        let mut times = match (level, self.dataset.as_ref()) {
            (Level::Trace, Dataset::Trace(trace)) => trace.times(requests),
            (Level::Open(arrivals), _) => arrivals.times(requests, self.seed, step),
            _ => Vec::new(),
        };
        times.retain(|time| *time <= until);
        times
    }

    fn trace_len(&self) -> usize {
        match self.dataset.as_ref() {
            Dataset::Trace(trace) => trace.len(),
            _ => 0,
        }
    }

    /// As many requests as the memory of a step has room for.
    fn requests_kept(&self) -> usize {
        let tokens = self.dataset.output_tokens(1024).div_ceil(1024).max(1);
        usize::try_from(STEP_TOKENS_MAX / 2 / tokens)
            .map_or(STEP_REQUESTS_MAX, |count| count.clamp(1, STEP_REQUESTS_MAX))
    }
}

/// One that no earlier run had, and that every reader of JSON keeps exactly.
fn another_seed() -> u64 {
    chrono::Utc::now().timestamp_micros().unsigned_abs()
}

impl Level {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Closed(clients) => format!("{clients} clients"),
            Self::Open(arrivals) => format!("{:.4} req/s", arrivals.rate).replace(".0000 ", " "),
            Self::Trace => "trace".to_owned(),
        }
    }

    pub(crate) fn is_closed(self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

fn shape(args: &ShapeArgs, dataset: DatasetName) -> anyhow::Result<Shape> {
    ensure!(
        args.burstiness > 0.0,
        "--burstiness {}: must be more than 0",
        args.burstiness
    );
    ensure!(
        args.ramp_up_strategy.is_none() || !args.request_rate.is_empty(),
        "--ramp-up-strategy: needs --request-rate, at which the ramp ends"
    );
    let trace = dataset == DatasetName::Trace;
    ensure!(
        !trace || args.search_rate.is_none() && args.request_rate.is_empty(),
        "--request-rate, --search-rate: a trace has times of its own; --trace-speed replays it faster"
    );
    if let Some(range) = args.search_rate {
        return search(args, range);
    }
    if let Some(clients_max) = args.sweep {
        check_clients("--sweep", clients_max)?;
        return Ok(Shape::Sweep { clients_max });
    }
    let open = |rate: &f64| arrivals(args, *rate).map(Level::Open);
    let closed = |clients: &usize| check_clients("--concurrency", *clients).map(Level::Closed);
    let levels: Vec<Level> = if !args.request_rate.is_empty() {
        args.request_rate
            .iter()
            .map(open)
            .collect::<anyhow::Result<_>>()?
    } else if !args.concurrency.is_empty() {
        args.concurrency
            .iter()
            .map(closed)
            .collect::<anyhow::Result<_>>()?
    } else if trace {
        vec![Level::Trace]
    } else {
        vec![Level::Closed(1)]
    };
    ensure!(
        levels.len() <= STEPS_MAX,
        "{} steps, at most {STEPS_MAX}",
        levels.len()
    );
    Ok(Shape::Levels(levels))
}

fn search(args: &ShapeArgs, (low, high): (f64, f64)) -> anyhow::Result<Shape> {
    ensure!(
        low < high,
        "--search-rate {low}:{high}: LOW must be less than HIGH"
    );
    ensure!(
        (0.001..1.0).contains(&args.search_precision),
        "--search-precision: from 0.001 to less than 1"
    );
    Ok(Shape::Search {
        low: check_rate("--search-rate", low)?,
        high: check_rate("--search-rate", high)?,
        precision: args.search_precision,
        burstiness: args.burstiness,
    })
}

fn arrivals(args: &ShapeArgs, rate: f64) -> anyhow::Result<Arrivals> {
    let ramp = match args.ramp_up_strategy.zip(args.ramp_up_start_rps) {
        None => None,
        Some((shape, start)) => Some(Ramp {
            start: check_rate("--ramp-up-start-rps", start)?,
            shape,
        }),
    };
    Ok(Arrivals {
        rate: check_rate("--request-rate", rate)?,
        burstiness: args.burstiness,
        ramp,
    })
}

fn check_rate(option: &str, rate: f64) -> anyhow::Result<f64> {
    ensure!(
        (RATE_MIN..=RATE_MAX).contains(&rate),
        "{option} {rate}: must be at least {RATE_MIN} and at most {RATE_MAX} a second"
    );
    Ok(rate)
}

fn check_clients(option: &str, clients: usize) -> anyhow::Result<usize> {
    ensure!(
        (1..=CONCURRENCY_MAX).contains(&clients),
        "{option} {clients}: must be 1 to {CONCURRENCY_MAX}"
    );
    Ok(clients)
}

fn volume(args: &ShapeArgs) -> anyhow::Result<Volume> {
    ensure!(args.num_prompts != Some(0), "--num-prompts: at least 1");
    let duration = args
        .duration_s
        .map(|typed| seconds("--duration-s", typed))
        .transpose()?;
    Ok(Volume {
        requests: args.num_prompts,
        duration,
    })
}

fn cancellation(args: &ShapeArgs) -> anyhow::Result<Cancellation> {
    ensure!(
        (0.0..=1.0).contains(&args.cancellation_rate),
        "--cancellation-rate {}: a share, from 0 to 1",
        args.cancellation_rate
    );
    Ok(Cancellation {
        rate: args.cancellation_rate,
        delay: Duration::from_millis(args.cancellation_delay_ms).min(TIMEOUT_MAX),
    })
}

fn target(args: &ServerArgs) -> anyhow::Result<Target> {
    let url = args
        .base_url
        .as_deref()
        .context("--base-url: where is the server?")?;
    let target = args.access.target("--base-url", url)?;
    Ok(if args.disable_keepalive {
        target.without_keepalive()
    } else {
        target
    })
}

fn template(args: &ServerArgs, target: &Target) -> anyhow::Result<Template> {
    let path = target.path(args.path.as_deref().unwrap_or_else(|| args.endpoint.route()));
    ensure!(
        path.parse::<hyper::Uri>().is_ok(),
        "--path {}: is no path of a URL",
        path.split('?').next().unwrap_or_default()
    );
    let extra = match &args.extra_body {
        None => Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(members)) => members,
            _ => bail!("--extra-body: must be a JSON object, like '{{\"top_p\": 0.9}}'"),
        },
    };
    Ok(Template {
        endpoint: args.endpoint,
        path,
        model: String::new(),
        ignore_eos: args.ignore_eos,
        temperature: args.temperature,
        extra,
    })
}

/// Documents of a request, where random ones are asked to be ranked.
fn documents(args: &LoadArgs) -> u32 {
    if args.server.endpoint == crate::body::Endpoint::Rerank {
        args.dataset.num_documents
    } else {
        0
    }
}

fn dataset(args: &DatasetArgs, generates: bool, documents: u32, seed: u64) -> anyhow::Result<Dataset> {
    let path = || {
        args.dataset_path
            .as_deref()
            .context("--dataset-path: this data set is a file; name it")
    };
    let lengths = |prefix: u32| Lengths {
        input: args.random_input_len,
        output: if generates { args.random_output_len } else { 1 },
        range_ratio: args.random_range_ratio,
        prefix,
        prefixes: args.num_prefixes,
        documents,
    };
    let synthetic = |prefix| -> anyhow::Result<Dataset> {
        ensure!(
            args.dataset_path.is_none(),
            "--dataset-path: random texts are in no file; say --dataset"
        );
        Ok(Dataset::Synthetic(Synthetic {
            seed,
            lengths: lengths(prefix).check()?,
            words: Words::APPROXIMATE,
        }))
    };
    Ok(match args.dataset {
        DatasetName::Random => synthetic(0)?,
        DatasetName::SharedPrefix => synthetic(args.prefix_len)?,
        DatasetName::Custom => Dataset::Listed(Listed::custom(path()?, args.output_len, seed)?),
        DatasetName::Sharegpt => Dataset::Listed(Listed::sharegpt(path()?, args.output_len, seed)?),
        DatasetName::Trace => Dataset::Trace(Trace::read(path()?, seed, args.trace_speed)?),
    })
}

fn goodput(pairs: &[String]) -> anyhow::Result<Option<Goodput>> {
    if pairs.is_empty() {
        return Ok(None);
    }
    let mut goodput = Goodput::default();
    for pair in pairs {
        let said = || format!("--goodput {pair}: needs ttft, tpot or e2el with milliseconds, like ttft:500");
        let (name, value) = pair.split_once(':').with_context(said)?;
        let value: f64 = value.trim().parse().with_context(said)?;
        ensure!(value.is_finite() && value >= 0.0, said());
        match name.trim() {
            "ttft" => goodput.ttft = Some(value),
            "tpot" => goodput.tpot = Some(value),
            "e2el" => goodput.e2el = Some(value),
            _ => bail!(said()),
        }
    }
    Ok(Some(goodput))
}
