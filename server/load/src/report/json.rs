//! Results as vLLM's benchmark writes them, with what is ours beside them, and read again as a baseline.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Report;
use crate::baseline::{Sampled, Side, enough};
use crate::limits::{BASELINE_BYTES_MAX, STEPS_MAX};
use crate::measure::{Found, MeasuredStep};
use crate::plan::{Level, Plan, Shape};
use crate::record::{End, Record};
use crate::schedule::Arrivals;
use crate::slo::Latency;
use crate::stats::{PERCENTILES, Sample, percentile_name};

/// Our own part of a result.
const OURS: &str = "rempart_bench";
/// How a request is marked that we dropped ourselves, in `errors`.
const CANCELLED: &str = "cancelled";

/// One object for each step.
pub(crate) fn objects(report: &Report<'_>) -> Vec<Value> {
    let steps = &report.measured.steps;
    (0..steps.len()).map(|index| object(report, index)).collect()
}

fn object(report: &Report<'_>, index: usize) -> Value {
    let step = &report.measured.steps[index];
    let endpoint = report.args.server.endpoint;
    let mut result = Map::new();
    // What users add comes first, so that no figure is hidden by it.
    for (name, value) in &report.args.results.metadata {
        result.insert(name.clone(), json!(value));
    }
    let (rate, burstiness, clients) = match step.level {
        Level::Closed(clients) => (json!("inf"), json!(1.0), json!(clients)),
        Level::Open(arrivals) => {
            let burstiness = if arrivals.burstiness.is_finite() {
                json!(arrivals.burstiness)
            } else {
                json!("inf")
            };
            (json!(arrivals.rate), burstiness, Value::Null)
        }
        Level::Trace => (json!("trace"), Value::Null, Value::Null),
    };
    let head = [
        ("date", json!(step.started.format("%Y%m%d-%H%M%S").to_string())),
        ("backend", json!(endpoint.backend())),
        ("endpoint_type", json!(endpoint.backend())),
        ("label", json!(report.args.results.label)),
        ("model_id", json!(report.measured.server.model)),
        ("tokenizer_id", Value::Null),
        ("num_prompts", json!(step.requests)),
        ("request_rate", rate),
        ("burstiness", burstiness),
        ("max_concurrency", clients),
    ];
    result.extend(head.map(|(name, value)| (name.to_owned(), value)));
    figures(step, &mut result);
    if report.args.results.save_detailed {
        detailed(step, endpoint.generates(), &mut result);
    }
    result.insert(OURS.to_owned(), ours(report, index));
    Value::Object(result)
}

fn figures(step: &MeasuredStep, result: &mut Map<String, Value>) {
    let summary = &step.summary;
    let figures = [
        ("duration", json!(summary.duration)),
        ("completed", json!(summary.completed)),
        ("failed", json!(summary.failed)),
        ("total_input_tokens", json!(summary.total_input_tokens)),
        ("total_output_tokens", json!(summary.total_output_tokens)),
        ("request_throughput", json!(summary.request_throughput)),
        ("request_goodput", json!(summary.request_goodput)),
        ("output_throughput", json!(summary.output_throughput)),
        ("total_token_throughput", json!(summary.total_token_throughput)),
        ("max_output_tokens_per_s", json!(summary.max_output_tokens_per_s)),
        ("max_concurrent_requests", json!(summary.max_concurrent_requests)),
    ];
    result.extend(figures.map(|(name, value)| (name.to_owned(), value)));
    for latency in [Latency::Ttft, Latency::Tpot, Latency::Itl, Latency::E2el] {
        statistics(latency.name(), latency.of(summary), result);
    }
}

fn statistics(name: &str, sample: &Sample, result: &mut Map<String, Value>) {
    let mut put = |statistic: &str, value: f64| result.insert(format!("{statistic}_{name}_ms"), json!(value));
    put("mean", sample.mean());
    put("median", sample.percentile(50.0));
    put("std", sample.std());
    for percent in PERCENTILES {
        put(&percentile_name(percent), sample.percentile(percent));
    }
}

/// The arrays of vLLM's `--save-detailed`, in seconds; without the texts that it has.
fn detailed(step: &MeasuredStep, generates: bool, result: &mut Map<String, Value>) {
    let records: Vec<&Record> = step
        .records
        .iter()
        .filter(|record| step.window.holds(record.scheduled))
        .collect();
    let mut put = |name: &str, value: fn(&Record) -> Value| {
        result.insert(
            name.to_owned(),
            records.iter().map(|record| value(record)).collect(),
        );
    };
    put("input_lens", |record| json!(record.input_tokens()));
    put("output_lens", |record| {
        json!(if record.is_completed() {
            record.output_tokens()
        } else {
            0
        })
    });
    if generates {
        put("ttfts", |record| {
            json!(if record.is_completed() { record.ttft() } else { 0.0 })
        });
        put("itls", |record| {
            record
                .seen
                .gaps_us
                .iter()
                .map(|gap| json!(f64::from(*gap) / 1e6))
                .collect()
        });
    }
    put("e2els", |record| {
        json!(if record.is_completed() { record.e2el() } else { 0.0 })
    });
    put("start_times", |record| json!(record.scheduled as f64 / 1e9));
    put("errors", |record| match &record.end {
        End::Completed => json!(""),
        End::Cancelled => json!(CANCELLED),
        End::Failed(failure) => json!(failure.to_string()),
    });
}

fn ours(report: &Report<'_>, index: usize) -> Value {
    let step = &report.measured.steps[index];
    let (summary, server, about) = (&step.summary, &report.measured.server, &report.about);
    let judged = step.judged.iter().map(|one| {
        json!({ "objective": one.name, "bound": one.bound, "measured": one.measured, "holds": one.holds })
    });
    let compared = report.compared.get(index).into_iter().flatten().map(|one| {
        json!({ "figure": one.name, "before": one.before, "now": one.now, "interval": [one.interval.0, one.interval.1],
            "regression": one.regression })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": step.started.to_rfc3339(),
        "machine": about.machine,
        "target": about.target,
        "server": server.software,
        "server_version": server.version,
        "model": server.listed,
        "seed": about.seed,
        "workload": about.workload,
        "tokens_per_word": report.measured.words.map(|words| words.per_word),
        "input_length_error": summary.input_error,
        "requests_counted_by_server": summary.counted,
        "cached_tokens": summary.cached_tokens,
        "cancelled": summary.cancelled,
        "failures": summary.reasons,
        "window_s": [step.window.from as f64 / 1e9, step.window.to as f64 / 1e9],
        "send_delay_ms": { "p50": summary.samples.send_delay.percentile(50.0), "p99": summary.samples.send_delay.percentile(99.0),
            "max": summary.samples.send_delay.max() },
        "client_cpu_share": step.cpu_share,
        "found": found(report),
        "slo": judged.collect::<Vec<_>>(),
        "baseline": compared.collect::<Vec<_>>(),
    })
}

/// What a sweep or a search came to; null where all steps were named, or where a sweep had no answer.
fn found(report: &Report<'_>) -> Value {
    match (report.measured.knee, report.measured.found) {
        (Some(knee), _) => json!({ "knee_clients": knee.clients }),
        (None, Some(Found(rate))) => json!({ "highest_rate": rate }),
        (None, None) => Value::Null,
    }
}

/// Results of an earlier run.
pub(crate) struct Baseline {
    steps: Vec<Saved>,
}

/// What is read of a result.
#[derive(Deserialize)]
pub(crate) struct Saved {
    #[serde(default)]
    label: Option<String>,
    model_id: String,
    date: String,
    request_rate: Value,
    max_concurrency: Value,
    output_throughput: f64,
    p95_ttft_ms: f64,
    ttfts: Option<Vec<f64>>,
    itls: Option<Vec<Vec<f64>>>,
    e2els: Option<Vec<f64>>,
    output_lens: Option<Vec<u32>>,
    errors: Option<Vec<String>>,
    rempart_bench: SavedOurs,
}

#[derive(Deserialize)]
struct SavedOurs {
    workload: Map<String, Value>,
}

/// A point of a baseline for a chart.
pub(crate) struct BaselinePoint {
    pub output_throughput: f64,
    pub p95_ttft_ms: f64,
}

impl Baseline {
    /// # Errors
    /// Where the file is no result that can be compared with.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let said = || format!("--baseline {}", path.display());
        let file = File::open(path).with_context(said)?;
        let bytes = file.metadata().with_context(said)?.len();
        ensure!(
            bytes <= BASELINE_BYTES_MAX,
            "{}: {bytes} bytes, at most {BASELINE_BYTES_MAX}",
            said()
        );
        let reader = BufReader::new(file.take(BASELINE_BYTES_MAX));
        let steps = serde_json::Deserializer::from_reader(reader)
            .into_iter::<Saved>()
            .take(STEPS_MAX + 1);
        let steps: Vec<Saved> = steps.collect::<Result<_, _>>().map_err(|error| {
            anyhow::anyhow!(
                "{}: no result of `rempart bench --result` (line {})",
                said(),
                error.line()
            )
        })?;
        ensure!(
            !steps.is_empty() && steps.len() <= STEPS_MAX,
            "{}: {} steps",
            said(),
            steps.len()
        );
        for step in &steps {
            ensure!(
                step.is_possible(),
                "{}: a time or a throughput that none can be",
                said()
            );
            step.side().with_context(said)?;
        }
        Ok(Self { steps })
    }

    /// What it is called in a report.
    pub(crate) fn name(&self) -> String {
        let first = &self.steps[0];
        let label = first
            .label
            .as_ref()
            .map_or_else(String::new, |label| format!("{label}, "));
        format!("{label}{}, {}", first.model_id, first.date)
    }

    pub(crate) fn points(&self) -> Vec<BaselinePoint> {
        let point = |step: &Saved| BaselinePoint {
            output_throughput: step.output_throughput,
            p95_ttft_ms: step.p95_ttft_ms,
        };
        self.steps.iter().map(point).collect()
    }

    /// Whether a load can be compared with this one, before it is measured.
    ///
    /// # Errors
    /// Where it is another one: what differs, or which step there is not.
    pub(crate) fn check(&self, plan: &Plan) -> anyhow::Result<()> {
        for step in &self.steps {
            same_load(&step.rempart_bench.workload, &plan.workload)?;
        }
        if let Some(requests) = plan.volume.requests {
            enough(requests).context("--baseline")?;
        }
        let levels = match &plan.shape {
            Shape::Levels(levels) => levels,
            // What a sweep or a search begins with both must have.
            Shape::Sweep { .. } => &vec![Level::Closed(1)],
            Shape::Search { low, burstiness, .. } => &vec![Level::Open(Arrivals {
                rate: *low,
                burstiness: *burstiness,
                ramp: None,
            })],
        };
        for level in levels {
            let Some(step) = self.step(*level) else {
                bail!(
                    "--baseline: has no step of {}; measure the same loads as it did",
                    level.name()
                );
            };
            if matches!(plan.shape, Shape::Levels(_)) {
                enough(step.side()?.requests.len()).context("--baseline")?;
                let (requests, _) = plan.requests(*level)?;
                enough(requests).context("--baseline")?;
            }
        }
        Ok(())
    }

    /// The run of the same step. A sweep or a search may have had others.
    pub(crate) fn step(&self, level: Level) -> Option<&Saved> {
        // JSON's numbers are read to some 16 digits here, and no two rates that a search tries are as near as this.
        let near = |saved: &Value, rate: f64| {
            let saved = saved.as_f64().unwrap_or_default();
            (saved - rate).abs() <= rate * 1e-9
        };
        let same = |step: &&Saved| {
            let (rate, clients) = (&step.request_rate, &step.max_concurrency);
            match level {
                Level::Closed(asked) => rate == "inf" && *clients == json!(asked),
                Level::Open(arrivals) => near(rate, arrivals.rate),
                Level::Trace => rate == "trace",
            }
        };
        self.steps.iter().find(same)
    }
}

fn is_possible(value: f64) -> bool {
    (0.0..1e12).contains(&value)
}

fn same_load(before: &Map<String, Value>, now: &Map<String, Value>) -> anyhow::Result<()> {
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    // Earlier results say null where later ones say nothing.
    let of = |workload: &Map<String, Value>, name: &str| workload.get(name).cloned().unwrap_or_default();
    // As JSON has it: what was read has no difference between 1 and 1.0 that a person would see.
    let differ: Vec<&str> = now
        .keys()
        .chain(gone)
        .filter(|name| of(before, name) != of(now, name))
        .map(String::as_str)
        .collect();
    ensure!(
        differ.is_empty(),
        "--baseline: was another load, since these differ: {}",
        differ.join(", ").escape_debug()
    );
    Ok(())
}

impl Saved {
    /// Whether each figure is one that a run can have: a chart can't be drawn of others.
    fn is_possible(&self) -> bool {
        let seconds = |values: &Option<Vec<f64>>| values.iter().flatten().copied().all(is_possible);
        let gaps = self.itls.iter().flatten().flatten();
        is_possible(self.output_throughput)
            && is_possible(self.p95_ttft_ms)
            && seconds(&self.ttfts)
            && seconds(&self.e2els)
            && gaps.copied().all(is_possible)
    }

    /// A latency of each request that was completed, or each gap of all of them, in milliseconds.
    pub(crate) fn sample(&self, latency: Latency) -> Sample {
        // That it has all was seen when it was read.
        let side = self.side().unwrap_or_default();
        let completed = side.requests.iter().filter(|request| !request.failed);
        Sample::new(
            completed
                .flat_map(|request| request.values(latency))
                .map(|seconds| seconds * 1e3)
                .collect(),
        )
    }

    /// # Errors
    /// Where it lacks what is compared.
    pub(crate) fn side(&self) -> anyhow::Result<Side> {
        let lacks = "lacks the times of each request: save it with --save-detailed";
        let (Some(e2els), Some(outputs), Some(errors)) = (&self.e2els, &self.output_lens, &self.errors)
        else {
            bail!(lacks);
        };
        let generates = self.ttfts.is_some();
        let ttfts = self.ttfts.as_deref().unwrap_or_default();
        let itls = self.itls.as_deref().unwrap_or_default();
        let same_length = e2els.len() == outputs.len()
            && e2els.len() == errors.len()
            && (!generates || ttfts.len() == e2els.len() && itls.len() == e2els.len());
        ensure!(same_length, "its arrays differ in length");
        let sampled = |index: usize| Sampled {
            failed: !errors[index].is_empty(),
            ttft: ttfts.get(index).copied(),
            e2el: e2els[index],
            output_tokens: outputs[index],
            itls: itls.get(index).cloned().unwrap_or_default(),
        };
        let kept = (0..e2els.len()).filter(|index| errors[*index] != CANCELLED);
        Ok(Side {
            requests: kept.map(sampled).collect(),
            closed: !self.max_concurrency.is_null(),
        })
    }
}
