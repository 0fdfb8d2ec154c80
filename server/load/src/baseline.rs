//! Compares a step with the same step of an earlier run: a figure is a regression where it is worse by more than a tolerance and
//! the difference is more than chance gives, by a bootstrap over requests.

use anyhow::ensure;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use crate::record::{End, Record};
use crate::rng::{self, Use};
use crate::slo::Latency;
use crate::stats::Sample;
use crate::summary::Window;

/// What is compared of one request. Latencies in seconds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sampled {
    pub failed: bool,
    pub ttft: Option<f64>,
    pub e2el: f64,
    pub output_tokens: u32,
    pub itls: Vec<f64>,
}

/// One run of a step.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Side {
    pub requests: Vec<Sampled>,
    /// Whether its throughput is a result, as in a closed loop, and not given by a rate.
    pub closed: bool,
}

/// What became of one figure.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Compared {
    pub name: &'static str,
    pub before: f64,
    pub now: f64,
    /// The interval of `now / before` that chance explains; of failures, of the difference of their shares.
    pub interval: (f64, f64),
    pub regression: bool,
}

const RESAMPLES: usize = 1000;
/// Outside of the interval on either side. Small, since several figures are looked at.
const TAIL_PERCENT: f64 = 0.5;
/// Below so many requests on a side, an interval says nothing.
const REQUESTS_MIN: usize = 8;
/// The share of failures may grow by this much.
const FAILURES_TOLERANCE: f64 = 0.001;

/// What is compared, and how.
struct Figure {
    name: &'static str,
    statistic: Statistic,
    higher_is_better: bool,
    closed_only: bool,
    /// What of a request is taken; `None` where the statistic takes all of it.
    latency: Option<Latency>,
}

#[derive(Clone, Copy)]
enum Statistic {
    Mean,
    Percentile(f64),
    /// Tokens by seconds of requests: what one client gets, and so, times the clients, the throughput.
    TokensPerSecond,
}

fn figures() -> [Figure; 8] {
    let latency = |name, statistic, latency| Figure {
        name,
        statistic,
        higher_is_better: false,
        closed_only: false,
        latency: Some(latency),
    };
    [
        latency("mean_ttft_ms", Statistic::Mean, Latency::Ttft),
        latency("p95_ttft_ms", Statistic::Percentile(95.0), Latency::Ttft),
        latency("mean_tpot_ms", Statistic::Mean, Latency::Tpot),
        latency("p50_itl_ms", Statistic::Percentile(50.0), Latency::Itl),
        latency("p99_itl_ms", Statistic::Percentile(99.0), Latency::Itl),
        latency("mean_e2el_ms", Statistic::Mean, Latency::E2el),
        latency("p95_e2el_ms", Statistic::Percentile(95.0), Latency::E2el),
        Figure {
            name: "output_throughput_per_client",
            statistic: Statistic::TokensPerSecond,
            higher_is_better: true,
            closed_only: true,
            latency: None,
        },
    ]
}

impl Sampled {
    /// In seconds.
    pub(crate) fn values(&self, latency: Latency) -> Vec<f64> {
        match latency {
            Latency::Ttft => self.ttft.into_iter().collect(),
            Latency::Tpot => self.tpot().into_iter().collect(),
            Latency::Itl => self.itls.clone(),
            Latency::E2el => vec![self.e2el],
        }
    }

    fn tpot(&self) -> Option<f64> {
        let ttft = self.ttft.filter(|_| self.output_tokens > 1)?;
        Some((self.e2el - ttft) / f64::from(self.output_tokens - 1))
    }
}

/// The requests of a step that began within its window.
pub(crate) fn side(records: &[Record], window: Window, generates: bool, closed: bool) -> Side {
    let within = records
        .iter()
        .filter(|record| window.holds(record.scheduled) && record.end != End::Cancelled);
    let requests = within.map(|record| Sampled {
        failed: !record.is_completed(),
        ttft: generates.then(|| record.ttft()),
        e2el: record.e2el(),
        output_tokens: record.output_tokens(),
        itls: record
            .seen
            .gaps_us
            .iter()
            .map(|gap| f64::from(*gap) / 1e6)
            .collect(),
    });
    Side {
        requests: requests.collect(),
        closed,
    }
}

/// # Errors
/// Where so many requests are too few to be compared.
pub(crate) fn enough(requests: usize) -> anyhow::Result<()> {
    ensure!(
        requests >= REQUESTS_MIN,
        "{requests} requests say too little: at least {REQUESTS_MIN}"
    );
    Ok(())
}

/// Compares two runs of a step. `tolerance` is a share: 0.05 lets a figure be worse by 5 %.
pub(crate) fn compare(before: &Side, now: &Side, tolerance: f64, seed: u64) -> Vec<Compared> {
    let looked_at = |figure: &Figure| !figure.closed_only || before.closed && now.closed;
    let mut pairs: Vec<Pair<'_>> = figures()
        .into_iter()
        .filter(looked_at)
        .map(|figure| Pair::new(figure, before, now))
        .collect();
    let mut differences = Vec::with_capacity(RESAMPLES);
    let (mut of_before, mut of_now) = (Draws::new(seed, 0, before), Draws::new(seed, 1, now));
    for _ in 0..RESAMPLES {
        let (a, b) = (of_before.next(), of_now.next());
        differences.push(failed_share(now, b) - failed_share(before, a));
        for pair in &mut pairs {
            pair.draw(a, b);
        }
    }
    let told = pairs.into_iter().filter_map(|pair| pair.compared(tolerance));
    told.chain([failures(before, now, differences)]).collect()
}

/// How often each request of a side is in one resample after the other.
struct Draws {
    rng: ChaCha8Rng,
    weights: Vec<u32>,
}

impl Draws {
    fn new(seed: u64, index: u64, side: &Side) -> Self {
        Self {
            rng: rng::of(seed, Use::Bootstrap, index),
            weights: vec![0; side.requests.len()],
        }
    }

    fn next(&mut self) -> &[u32] {
        self.weights.fill(0);
        let count = self.weights.len();
        for _ in 0..count {
            self.weights[self.rng.random_range(0..count)] += 1;
        }
        &self.weights
    }
}

fn ones(side: &Side) -> Vec<u32> {
    vec![1; side.requests.len()]
}

fn failed_share(side: &Side, weights: &[u32]) -> f64 {
    let all = side.requests.iter().zip(weights);
    let failed = all.filter(|(request, _)| request.failed);
    f64::from(failed.map(|(_, weight)| *weight).sum::<u32>()) / side.requests.len().max(1) as f64
}

fn failures(before: &Side, now: &Side, differences: Vec<f64>) -> Compared {
    let (was, is) = (failed_share(before, &ones(before)), failed_share(now, &ones(now)));
    let interval = interval(differences);
    Compared {
        name: "failed_share",
        before: was,
        now: is,
        interval,
        regression: interval.0 > 0.0 && is - was > FAILURES_TOLERANCE,
    }
}

fn interval(values: Vec<f64>) -> (f64, f64) {
    let sample = Sample::new(values);
    (
        sample.percentile(TAIL_PERCENT),
        sample.percentile(100.0 - TAIL_PERCENT),
    )
}

/// A figure of two runs, and what its ratio is in resamples.
struct Pair<'a> {
    figure: Figure,
    before: Values<'a>,
    now: Values<'a>,
    ratios: Vec<f64>,
}

impl<'a> Pair<'a> {
    fn new(figure: Figure, before: &'a Side, now: &'a Side) -> Self {
        Self {
            before: Values::new(before, figure.latency, figure.statistic),
            now: Values::new(now, figure.latency, figure.statistic),
            figure,
            ratios: Vec::with_capacity(RESAMPLES),
        }
    }

    fn draw(&mut self, before: &[u32], now: &[u32]) {
        let both = self.now.statistic(now).zip(self.before.statistic(before));
        let ratio = both.map(|(now, before)| now / before);
        self.ratios.extend(ratio.filter(|ratio| ratio.is_finite()));
    }

    /// `None` where a side has nothing of it, or the earlier one nothing but zeros.
    fn compared(self, tolerance: f64) -> Option<Compared> {
        let was = self.before.statistic(&ones(self.before.side))?;
        let is = self.now.statistic(&ones(self.now.side))?;
        if self.ratios.is_empty() || was <= 0.0 {
            return None;
        }
        let interval = interval(self.ratios);
        let higher_is_better = self.figure.higher_is_better;
        let regression = if higher_is_better {
            interval.1 < 1.0 && is < was * (1.0 - tolerance)
        } else {
            interval.0 > 1.0 && is > was * (1.0 + tolerance)
        };
        let unit = if higher_is_better { 1.0 } else { 1e3 };
        Some(Compared {
            name: self.figure.name,
            before: was * unit,
            now: is * unit,
            interval,
            regression,
        })
    }
}

/// The values of a figure in falling order, with the request of each, so that a resample is one walk.
struct Values<'a> {
    side: &'a Side,
    statistic: Statistic,
    sorted: Vec<(f64, u32)>,
    /// How many each request has, and their sum.
    of_request: Vec<(usize, f64)>,
}

impl<'a> Values<'a> {
    fn new(side: &'a Side, latency: Option<Latency>, statistic: Statistic) -> Self {
        let (mut sorted, mut of_request) = (Vec::new(), Vec::new());
        for (index, request) in side.requests.iter().enumerate() {
            let values = latency
                .filter(|_| !request.failed)
                .map_or_else(Vec::new, |latency| request.values(latency));
            of_request.push((values.len(), values.iter().sum()));
            sorted.extend(values.into_iter().map(|value| (value, index as u32)));
        }
        sorted.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        Self {
            side,
            statistic,
            sorted,
            of_request,
        }
    }

    /// Of a resample, which holds each request as often as its weight says. `None` where it holds no value.
    fn statistic(&self, weights: &[u32]) -> Option<f64> {
        let count: f64 = self
            .of_request
            .iter()
            .zip(weights)
            .map(|((count, _), weight)| *count as f64 * f64::from(*weight))
            .sum();
        match self.statistic {
            Statistic::TokensPerSecond => {
                let completed = self
                    .side
                    .requests
                    .iter()
                    .zip(weights)
                    .filter(|(request, _)| !request.failed);
                let (tokens, seconds) = completed.fold((0.0, 0.0), |(tokens, seconds), (request, weight)| {
                    let weight = f64::from(*weight);
                    (
                        tokens + weight * f64::from(request.output_tokens),
                        seconds + weight * request.e2el,
                    )
                });
                (tokens > 0.0 && seconds > 0.0).then(|| tokens / seconds)
            }
            Statistic::Mean => {
                let sums = self.of_request.iter().zip(weights);
                (count > 0.0).then(|| {
                    sums.map(|((_, sum), weight)| sum * f64::from(*weight))
                        .sum::<f64>()
                        / count
                })
            }
            Statistic::Percentile(percent) => {
                let above = count * (1.0 - percent / 100.0);
                let mut passed = 0.0;
                for (value, request) in &self.sorted {
                    passed += f64::from(weights[*request as usize]);
                    if passed > above {
                        return Some(*value);
                    }
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_distr::{Distribution as _, Gamma};

    use super::*;

    /// A run whose latencies scatter by a third, times a factor.
    fn run(seed: u64, factor: f64, failed: usize) -> Side {
        let mut rng = rng::of(seed, Use::Prompt, 0);
        let noise = Gamma::new(9.0, 1.0 / 9.0).unwrap();
        let mut next = |mean: f64| mean * factor * noise.sample(&mut rng);
        let requests = (0..200).map(|index| {
            let itls: Vec<f64> = (0..31).map(|_| next(0.03)).collect();
            let ttft = next(0.2);
            Sampled {
                failed: index < failed,
                ttft: Some(ttft),
                e2el: ttft + itls.iter().sum::<f64>(),
                output_tokens: 32,
                itls,
            }
        });
        Side {
            requests: requests.collect(),
            closed: true,
        }
    }

    fn regressions(before: &Side, now: &Side) -> Vec<&'static str> {
        let compared = compare(before, now, 0.05, 1);
        compared
            .iter()
            .filter(|one| one.regression)
            .map(|one| one.name)
            .collect()
    }

    #[test]
    fn noise_is_no_regression() {
        for seed in 2..12 {
            assert_eq!(
                regressions(&run(1, 1.0, 0), &run(seed, 1.0, 0)),
                [""; 0],
                "seed {seed}"
            );
        }
    }

    #[test]
    fn what_is_slower_is_found_and_what_is_faster_is_not() {
        let found = regressions(&run(1, 1.0, 0), &run(2, 1.2, 0));
        for name in [
            "mean_ttft_ms",
            "mean_tpot_ms",
            "p50_itl_ms",
            "p99_itl_ms",
            "mean_e2el_ms",
            "output_throughput_per_client",
        ] {
            assert!(found.contains(&name), "{name} of {found:?}");
        }
        assert!(regressions(&run(1, 1.2, 0), &run(2, 1.0, 0)).is_empty());
        // Within the tolerance, though more than chance.
        assert!(regressions(&run(1, 1.0, 0), &run(1, 1.03, 0)).is_empty());
    }

    #[test]
    fn failures_are_compared_by_their_share() {
        assert_eq!(regressions(&run(1, 1.0, 0), &run(2, 1.0, 20)), ["failed_share"]);
        assert!(regressions(&run(1, 1.0, 20), &run(2, 1.0, 21)).is_empty());
    }

    #[test]
    fn a_seed_gives_the_same_intervals() {
        let (before, now) = (run(1, 1.0, 0), run(2, 1.0, 0));
        assert_eq!(compare(&before, &now, 0.05, 7), compare(&before, &now, 0.05, 7));
        let ratio = &compare(&before, &now, 0.05, 7)[0];
        assert!(ratio.interval.0 < ratio.now / ratio.before && ratio.now / ratio.before < ratio.interval.1);
    }

    #[test]
    fn one_figure_can_be_worse_alone() {
        let (before, mut now) = (run(1, 1.0, 0), run(1, 1.0, 0));
        for request in &mut now.requests {
            // A stall in each answer, which the median does not show.
            request.itls[0] += 0.4;
        }
        assert_eq!(regressions(&before, &now), ["p99_itl_ms"]);
    }
}
