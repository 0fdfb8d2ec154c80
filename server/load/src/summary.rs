//! What a step's records come to: the figures that vLLM's benchmark has, by its names and definitions.

use std::collections::BTreeMap;

use crate::clock::Nanos;
use crate::limits::REASONS_MAX;
use crate::record::{End, Record, seconds};
use crate::stats::Sample;

/// The part of a step that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub from: Nanos,
    pub to: Nanos,
}

/// What each request must keep to be good, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Goodput {
    pub ttft: Option<f64>,
    pub tpot: Option<f64>,
    pub e2el: Option<f64>,
}

/// Latencies in milliseconds.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    pub ttft: Sample,
    pub tpot: Sample,
    pub itl: Sample,
    pub e2el: Sample,
    /// From the scheduled time until the request was sent: how late this program was.
    pub send_delay: Sample,
}

#[derive(Clone, Debug)]
pub struct Summary {
    /// Seconds.
    pub duration: f64,
    pub completed: usize,
    pub failed: usize,
    pub cancelled: usize,
    pub total_input_tokens: u64,
    pub total_output_tokens: u64,
    pub cached_tokens: u64,
    /// A second.
    pub request_throughput: f64,
    pub request_goodput: Option<f64>,
    pub output_throughput: f64,
    pub total_token_throughput: f64,
    pub max_output_tokens_per_s: f64,
    pub max_concurrent_requests: usize,
    pub samples: Samples,
    /// How often each reason of a failure was.
    pub reasons: BTreeMap<String, usize>,
    /// Completed requests whose tokens the server counted.
    pub counted: usize,
    /// Mean of how far the server's count of input tokens was from what was meant, as a share of it.
    pub input_error: Option<f64>,
}

/// All of a step.
pub(crate) fn whole(records: &[Record]) -> Window {
    let to = records.iter().map(|record| record.ended).max().unwrap_or(0);
    Window { from: 0, to }
}

/// A closed loop without its beginning and its end: from when every client was answered once, until the first finds nothing more
/// to ask. `None` where nothing is between.
pub(crate) fn steady_closed(records: &[Record], clients: usize) -> Option<Window> {
    let mut ends: Vec<Nanos> = records.iter().map(|record| record.ended).collect();
    ends.sort_unstable();
    let from = *ends.get(clients.checked_sub(1)?)?;
    let to = records.iter().map(|record| record.scheduled).max()?;
    (from < to).then_some(Window { from, to })
}

/// An open loop without the first fifth of its schedule, and without what follows its last request.
pub(crate) fn steady_open(records: &[Record]) -> Option<Window> {
    let to = records.iter().map(|record| record.scheduled).max()?;
    let from = to / 5;
    (from < to).then_some(Window { from, to })
}

/// Requests that began within the window; tokens and ends that fell into it.
pub(crate) fn summarize(
    records: &[Record],
    window: Window,
    generates: bool,
    goodput: Option<Goodput>,
) -> Summary {
    let began: Vec<&Record> = records
        .iter()
        .filter(|record| window.holds(record.scheduled))
        .collect();
    let completed: Vec<&Record> = began
        .iter()
        .copied()
        .filter(|record| record.is_completed())
        .collect();
    let duration = seconds(window.from, window.to).max(1e-9);
    let within = Within::new(records, window);
    let good = goodput.map(|goodput| completed.iter().filter(|record| goodput.holds(record)).count());
    let counted = completed
        .iter()
        .filter(|record| record.seen.usage.prompt_tokens.is_some());
    let off: Vec<f64> = counted.clone().map(|record| input_error(record)).collect();
    let cached = |record: &&Record| {
        record
            .seen
            .usage
            .prompt_tokens_details
            .and_then(|details| details.cached_tokens)
    };
    Summary {
        duration,
        completed: completed.len(),
        failed: began
            .iter()
            .filter(|record| matches!(record.end, End::Failed(_)))
            .count(),
        cancelled: began.iter().filter(|record| record.end == End::Cancelled).count(),
        total_input_tokens: within.input_tokens,
        total_output_tokens: within.output_tokens.round() as u64,
        cached_tokens: completed.iter().filter_map(cached).map(u64::from).sum(),
        request_throughput: within.ended as f64 / duration,
        request_goodput: good.map(|good| good as f64 / duration),
        output_throughput: within.output_tokens / duration,
        total_token_throughput: (within.input_tokens as f64 + within.output_tokens) / duration,
        max_output_tokens_per_s: if generates { within.busiest } else { 0.0 },
        max_concurrent_requests: most_at_once(&completed),
        samples: samples(&completed, generates),
        reasons: reasons(&began),
        counted: counted.count(),
        input_error: (!off.is_empty()).then(|| off.iter().sum::<f64>() / off.len() as f64),
    }
}

impl Window {
    /// Also its last moment, so that the whole holds everything.
    pub(crate) fn holds(&self, at: Nanos) -> bool {
        (self.from..=self.to).contains(&at)
    }
}

impl Goodput {
    fn holds(&self, record: &Record) -> bool {
        let within = |limit: Option<f64>, seconds: f64| limit.is_none_or(|limit| seconds * 1e3 <= limit);
        within(self.ttft, record.ttft())
            && within(self.tpot, record.tpot().unwrap_or(0.0))
            && within(self.e2el, record.e2el())
    }
}

/// What fell into a window, of completed requests.
struct Within {
    ended: usize,
    input_tokens: u64,
    output_tokens: f64,
    /// Of events with tokens in any second since the window's start.
    busiest: f64,
}

impl Within {
    fn new(records: &[Record], window: Window) -> Self {
        let mut found = Self {
            ended: 0,
            input_tokens: 0,
            output_tokens: 0.0,
            busiest: 0.0,
        };
        let mut by_second: BTreeMap<u64, u64> = BTreeMap::new();
        for record in records.iter().filter(|record| record.is_completed()) {
            let events = record.seen.events();
            let inside = record.token_times().filter(|at| window.holds(*at));
            let mut count = 0_usize;
            for at in inside {
                count += 1;
                *by_second.entry((at - window.from) / 1_000_000_000).or_default() += 1;
            }
            // An event can hold several tokens: their share is that of the events.
            found.output_tokens += f64::from(record.output_tokens()) * count as f64 / events.max(1) as f64;
            if window.holds(record.seen.last) {
                found.ended += 1;
                found.input_tokens += u64::from(record.input_tokens());
            }
        }
        found.busiest = by_second.values().max().map_or(0.0, |most| *most as f64);
        found
    }
}

fn input_error(record: &Record) -> f64 {
    let (wanted, counted) = (f64::from(record.input_wanted), f64::from(record.input_tokens()));
    (counted - wanted).abs() / wanted.max(1.0)
}

fn samples(completed: &[&Record], generates: bool) -> Samples {
    let of = |value: fn(&Record) -> Option<f64>| {
        Sample::new(
            completed
                .iter()
                .filter_map(|record| value(record))
                .map(|seconds| seconds * 1e3)
                .collect(),
        )
    };
    let gaps = completed.iter().flat_map(|record| &record.seen.gaps_us);
    let streams = Samples {
        e2el: of(|record| Some(record.e2el())),
        send_delay: of(|record| Some(seconds(record.scheduled, record.sent))),
        ..Samples::default()
    };
    if !generates {
        return streams;
    }
    Samples {
        ttft: of(|record| Some(record.ttft())),
        tpot: of(Record::tpot),
        itl: Sample::new(gaps.map(|gap| f64::from(*gap) / 1e3).collect()),
        ..streams
    }
}

fn reasons(began: &[&Record]) -> BTreeMap<String, usize> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for record in began {
        let End::Failed(failure) = &record.end else {
            continue;
        };
        let mut reason = failure.to_string();
        if reasons.len() >= REASONS_MAX && !reasons.contains_key(&reason) {
            "other reasons".clone_into(&mut reason);
        }
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
}

/// The most requests that were in flight at one time.
fn most_at_once(completed: &[&Record]) -> usize {
    let mut changes: Vec<(Nanos, i8)> = completed
        .iter()
        .flat_map(|record| [(record.sent, 1), (record.seen.last, -1)])
        .collect();
    // Who leaves goes before who comes at the same time.
    changes.sort_unstable();
    let (mut now, mut most) = (0_i64, 0_i64);
    for (_, change) in changes {
        now += i64::from(change);
        most = most.max(now);
    }
    usize::try_from(most).unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::chunk::Usage;
    use crate::record::Seen;
    use rempart_client::Failure;

    const MS: Nanos = 1_000_000;

    /// A request of four tokens: sent at a time, answered after `ttft`, then a token each `gap`. Milliseconds.
    pub(crate) fn record(at: Nanos, ttft: Nanos, gap: u32) -> Record {
        let last = (at + ttft + 3 * Nanos::from(gap)) * MS;
        Record {
            scheduled: at * MS,
            sent: at * MS,
            ended: last,
            input_wanted: 10,
            seen: Seen {
                first: Some((at + ttft) * MS),
                last_token: last,
                last,
                gaps_us: vec![gap * 1000; 3],
                usage: Usage::default(),
            },
            end: End::Completed,
        }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn figures_are_those_of_the_records() {
        let mut records = vec![record(0, 100, 50), record(500, 200, 100)];
        records[1].seen.usage.prompt_tokens = Some(12);
        records[1].seen.usage.completion_tokens = Some(7);
        let mut failed = record(600, 1, 1);
        failed.end = End::Failed(Failure::IdleTimeout.into());
        let mut cancelled = record(700, 1, 1);
        cancelled.end = End::Cancelled;
        records.extend([failed, cancelled]);
        let goodput = Goodput {
            ttft: Some(150.0),
            ..Goodput::default()
        };
        let summary = summarize(&records, whole(&records), true, Some(goodput));
        assert!(near(summary.duration, 1.0));
        assert_eq!((summary.completed, summary.failed, summary.cancelled), (2, 1, 1));
        assert_eq!(
            (summary.total_input_tokens, summary.total_output_tokens),
            (22, 11)
        );
        assert!(near(summary.request_throughput, 2.0) && near(summary.output_throughput, 11.0));
        assert_eq!(summary.request_goodput, Some(1.0));
        assert_eq!(summary.samples.ttft.values(), [100.0, 200.0]);
        // 150 ms over three more tokens, and 300 ms over six.
        assert!(summary.samples.tpot.values().iter().all(|tpot| near(*tpot, 50.0)));
        assert_eq!(summary.samples.e2el.values(), [250.0, 500.0]);
        assert_eq!(
            summary.samples.itl.values(),
            [50.0, 50.0, 50.0, 100.0, 100.0, 100.0]
        );
        assert_eq!(summary.reasons.get("nothing came for --idle-timeout-s"), Some(&1));
        assert_eq!((summary.max_concurrent_requests, summary.counted), (1, 1));
        assert!(near(summary.input_error.unwrap(), 0.2));
    }

    #[test]
    fn steady_state_leaves_out_beginning_and_end() {
        // Two clients, each request 400 ms; the fourth begins last.
        let records: Vec<Record> = [0, 0, 400, 400, 800, 800].map(|at| record(at, 100, 100)).to_vec();
        let window = steady_closed(&records, 2).unwrap();
        assert_eq!((window.from, window.to), (400 * MS, 800 * MS));
        let summary = summarize(&records, window, true, None);
        assert_eq!(summary.completed, 4);
        assert!(near(summary.duration, 0.4), "{}", summary.duration);
        assert_eq!(steady_closed(&records[..2], 2), None);
        assert_eq!(steady_open(&records).unwrap().from, 160 * MS);
        assert_eq!(steady_open(&[]), None);
    }

    #[test]
    fn a_second_that_is_busiest_is_found() {
        let records = [record(0, 100, 50), record(0, 100, 50), record(1500, 100, 50)];
        let summary = summarize(&records, whole(&records), true, None);
        assert!(near(summary.max_output_tokens_per_s, 8.0));
        assert_eq!(summary.max_concurrent_requests, 2);
    }

    #[test]
    fn nothing_completed_is_no_error_of_ours() {
        let summary = summarize(&[], whole(&[]), true, None);
        assert_eq!(summary.completed, 0);
        assert!(summary.output_throughput.abs() < 1e-9 && summary.samples.ttft.is_empty());
    }
}
