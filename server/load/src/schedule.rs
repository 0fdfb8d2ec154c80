//! When requests of an open loop are sent: a list of times that is made before the first one and that nothing delays.

use rand_distr::{Distribution as _, Gamma};

use crate::clock::Nanos;
use crate::rng::{self, Use};

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arrivals {
    /// Requests a second; the rate at the end of a ramp.
    pub rate: f64,
    /// As vLLM has it: the shape of gamma-distributed gaps. 1 is a Poisson process, less comes in bursts, infinity is even.
    pub burstiness: f64,
    pub ramp: Option<Ramp>,
}

/// A rate that grows over the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ramp {
    pub start: f64,
    pub shape: RampShape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RampShape {
    Linear,
    Exponential,
}

impl Arrivals {
    /// Times of as many requests, from the start of the step on. Without a ramp they fill exactly `requests / rate` seconds, as
    /// vLLM has it, so that seeds do not differ in their rate.
    pub(crate) fn times(&self, requests: usize, seed: u64, step: usize) -> Vec<Nanos> {
        let mut rng = rng::of(seed, Use::Arrivals, step as u64);
        let mut at = 0.0;
        let mut times: Vec<f64> = Vec::with_capacity(requests);
        for index in 0..requests {
            let rate = self.rate_at(index, requests);
            at += match Gamma::new(self.burstiness, 1.0 / (rate * self.burstiness)) {
                Ok(gaps) if self.burstiness.is_finite() => gaps.sample(&mut rng),
                // Ever larger burstiness makes gaps ever more even.
                _ => 1.0 / rate,
            };
            times.push(at);
        }
        let scale = match times.last() {
            Some(last) if self.ramp.is_none() && *last > 0.0 => requests as f64 / self.rate / last,
            _ => 1.0,
        };
        times
            .into_iter()
            .map(|time| (time * scale * 1e9) as Nanos)
            .collect()
    }

    /// Requests that a time has room for.
    pub(crate) fn requests_in(&self, seconds: f64) -> usize {
        let mean = match self.ramp {
            None => self.rate,
            Some(Ramp { start, shape }) if (start - self.rate).abs() > f64::EPSILON => match shape {
                // Over requests, the rate is linear: their gaps sum to its logarithm.
                RampShape::Linear => (self.rate - start) / (self.rate / start).ln(),
                RampShape::Exponential => {
                    let (first, last) = (1.0 / start, 1.0 / self.rate);
                    (self.rate / start).ln() / (first - last)
                }
            },
            Some(_) => self.rate,
        };
        ((mean * seconds).ceil() as usize).max(1)
    }

    fn rate_at(&self, index: usize, requests: usize) -> f64 {
        let Some(Ramp { start, shape }) = self.ramp else {
            return self.rate;
        };
        let progress = index as f64 / requests.saturating_sub(1).max(1) as f64;
        match shape {
            RampShape::Linear => start + (self.rate - start) * progress,
            RampShape::Exponential => start * (self.rate / start).powf(progress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: Arrivals = Arrivals {
        rate: 10.0,
        burstiness: f64::INFINITY,
        ramp: None,
    };

    /// Mean and variance of the gaps, in seconds.
    fn gaps(arrivals: Arrivals) -> (f64, f64) {
        let times = arrivals.times(20_000, 1, 0);
        let gaps: Vec<f64> = times
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) as f64 / 1e9)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance)
    }

    #[test]
    fn gaps_have_the_variance_of_their_burstiness() {
        for burstiness in [0.25, 1.0, 4.0] {
            let (mean, variance) = gaps(Arrivals { burstiness, ..EVEN });
            assert!((mean - 0.1).abs() < 0.001, "{burstiness}: {mean}");
            // Of a gamma distribution: mean² / shape.
            let expected = 0.01 / burstiness;
            assert!(
                (variance / expected - 1.0).abs() < 0.1,
                "{burstiness}: {variance} for {expected}"
            );
        }
        let (mean, variance) = gaps(EVEN);
        assert!((mean - 0.1).abs() < 1e-6 && variance < 1e-9);
    }

    #[test]
    fn times_fill_their_span_and_a_seed_repeats_them() {
        let poisson = Arrivals {
            burstiness: 1.0,
            ..EVEN
        };
        let times = poisson.times(100, 1, 0);
        assert_eq!(times.last(), Some(&10_000_000_000));
        assert!(times.is_sorted());
        assert_eq!(times, poisson.times(100, 1, 0));
        assert_ne!(times, poisson.times(100, 2, 0));
        assert_ne!(times, poisson.times(100, 1, 1));
        assert_eq!(poisson.requests_in(3.0), 30);
    }

    #[test]
    fn ramps_grow_from_one_rate_to_the_other() {
        for shape in [RampShape::Linear, RampShape::Exponential] {
            let ramp = Arrivals {
                ramp: Some(Ramp { start: 1.0, shape }),
                ..EVEN
            };
            let requests = ramp.requests_in(60.0);
            let times = ramp.times(requests, 1, 0);
            assert_eq!(times[0], 1_000_000_000);
            let last = (times[requests - 1] - times[requests - 2]) as f64 / 1e9;
            assert!((last - 0.1).abs() < 1e-6, "{last}");
            let whole = times[requests - 1] as f64 / 1e9;
            assert!((whole / 60.0 - 1.0).abs() < 0.05, "{shape:?}: {whole} s");
        }
    }
}
