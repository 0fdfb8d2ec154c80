//! What must hold of a step, as `ttft_p95=500ms,itl_p99=80ms,errors=0` says it.

use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};

use crate::stats::{Sample, percentile_name};
use crate::summary::Summary;

/// Conditions, all of which must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Slo(pub Vec<Objective>);

/// One condition.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    pub metric: Metric,
    pub bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    Latency(Latency, Statistic),
    /// Requests that failed.
    Errors,
    OutputThroughput,
    RequestThroughput,
    RequestGoodput,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Latency {
    Ttft,
    Tpot,
    Itl,
    E2el,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Statistic {
    Mean,
    Max,
    Percentile(f64),
}

/// Milliseconds, counts, or a number a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    Most(f64),
    /// A share of all requests.
    MostShare(f64),
    Least(f64),
}

/// What became of a condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    pub name: String,
    pub bound: String,
    /// `None` where nothing was measured, and the condition does not hold.
    pub measured: Option<f64>,
    pub holds: bool,
}

impl FromStr for Slo {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let objectives: Vec<Objective> = text
            .split(',')
            .map(|part| part.trim().parse().with_context(|| format!("`{part}`")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self(objectives))
    }
}

impl FromStr for Objective {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, value) = text
            .split_once('=')
            .context("needs METRIC=VALUE, like ttft_p95=500ms")?;
        let metric: Metric = name.trim().parse()?;
        let value = value.trim();
        let bound = match metric {
            Metric::Latency(..) => Bound::Most(milliseconds(value)?),
            Metric::Errors => match value.strip_suffix('%') {
                Some(percent) => Bound::MostShare(number(percent)? / 100.0),
                None => Bound::Most(number(value)?),
            },
            Metric::OutputThroughput | Metric::RequestThroughput | Metric::RequestGoodput => {
                Bound::Least(number(value)?)
            }
        };
        Ok(Self { metric, bound })
    }
}

impl FromStr for Metric {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        match name {
            "errors" => return Ok(Self::Errors),
            "output_throughput" => return Ok(Self::OutputThroughput),
            "request_throughput" => return Ok(Self::RequestThroughput),
            "request_goodput" => return Ok(Self::RequestGoodput),
            _ => {}
        }
        let known = "ttft, tpot, itl or e2el with _mean, _median, _max or a percentile like _p95; errors; output_throughput, \
                     request_throughput or request_goodput";
        let Some((latency, statistic)) = name.split_once('_') else {
            bail!("no metric `{name}`: there are {known}");
        };
        let latency = match latency {
            "ttft" => Latency::Ttft,
            "tpot" => Latency::Tpot,
            "itl" => Latency::Itl,
            "e2el" => Latency::E2el,
            _ => bail!("no metric `{name}`: there are {known}"),
        };
        let statistic = match statistic {
            "mean" => Statistic::Mean,
            "median" => Statistic::Percentile(50.0),
            "max" => Statistic::Max,
            percentile => {
                let percent = percentile
                    .strip_prefix('p')
                    .and_then(|percent| percent.parse().ok());
                let percent: f64 =
                    percent.with_context(|| format!("no metric `{name}`: there are {known}"))?;
                ensure!(
                    (0.0..=100.0).contains(&percent),
                    "`{name}`: percentiles are from 0 to 100"
                );
                Statistic::Percentile(percent)
            }
        };
        Ok(Self::Latency(latency, statistic))
    }
}

fn number(text: &str) -> anyhow::Result<f64> {
    let number: f64 = text
        .trim()
        .parse()
        .with_context(|| format!("`{text}` is no number"))?;
    ensure!(number.is_finite() && number >= 0.0, "`{text}`: must be 0 or more");
    Ok(number)
}

fn milliseconds(text: &str) -> anyhow::Result<f64> {
    for (unit, factor) in [("ms", 1.0), ("us", 1e-3), ("µs", 1e-3), ("s", 1e3)] {
        if let Some(value) = text.strip_suffix(unit) {
            return Ok(number(value)? * factor);
        }
    }
    bail!("`{text}` needs a unit: 500ms, 1.5s or 800us")
}

impl Slo {
    pub fn judge(&self, summary: &Summary) -> Vec<Judged> {
        self.0.iter().map(|objective| objective.judge(summary)).collect()
    }
}

impl Objective {
    fn judge(&self, summary: &Summary) -> Judged {
        let measured = self.metric.of(summary);
        let (holds, bound) = match self.bound {
            Bound::Most(most) => (measured.is_some_and(|value| value <= most), format!("<= {most}")),
            Bound::MostShare(share) => {
                let all = (summary.completed + summary.failed) as f64;
                let holds = all > 0.0 && measured.is_some_and(|value| value <= share * all);
                (holds, format!("<= {} %", share * 100.0))
            }
            Bound::Least(least) => (
                measured.is_some_and(|value| value >= least),
                format!(">= {least}"),
            ),
        };
        let unit = if matches!(self.metric, Metric::Latency(..)) {
            " ms"
        } else {
            ""
        };
        Judged {
            name: self.metric.name(),
            bound: bound + unit,
            measured,
            holds,
        }
    }
}

impl Metric {
    fn of(self, summary: &Summary) -> Option<f64> {
        match self {
            Self::Latency(latency, statistic) => {
                let sample = latency.of(summary);
                (!sample.is_empty()).then(|| statistic.of(sample))
            }
            Self::Errors => Some(summary.failed as f64),
            Self::OutputThroughput => Some(summary.output_throughput),
            Self::RequestThroughput => Some(summary.request_throughput),
            Self::RequestGoodput => summary.request_goodput,
        }
    }

    pub fn name(self) -> String {
        match self {
            Self::Latency(latency, Statistic::Mean) => format!("{}_mean", latency.name()),
            Self::Latency(latency, Statistic::Max) => format!("{}_max", latency.name()),
            Self::Latency(latency, Statistic::Percentile(percent)) => {
                format!("{}_{}", latency.name(), percentile_name(percent))
            }
            Self::Errors => "errors".to_owned(),
            Self::OutputThroughput => "output_throughput".to_owned(),
            Self::RequestThroughput => "request_throughput".to_owned(),
            Self::RequestGoodput => "request_goodput".to_owned(),
        }
    }
}

impl Latency {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::Itl => "itl",
            Self::E2el => "e2el",
        }
    }

    pub fn of(self, summary: &Summary) -> &Sample {
        match self {
            Self::Ttft => &summary.samples.ttft,
            Self::Tpot => &summary.samples.tpot,
            Self::Itl => &summary.samples.itl,
            Self::E2el => &summary.samples.e2el,
        }
    }
}

impl Statistic {
    fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Mean => sample.mean(),
            Self::Max => sample.max(),
            Self::Percentile(percent) => sample.percentile(percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::record;
    use crate::summary::{summarize, whole};

    #[test]
    fn conditions_are_read() {
        let slo: Slo = "ttft_p95=500ms, itl_p99.9=0.08s,e2el_mean=900us,errors=0.5%,output_throughput=20"
            .parse()
            .unwrap();
        let bounds: Vec<(String, Bound)> = slo.0.iter().map(|one| (one.metric.name(), one.bound)).collect();
        assert_eq!(
            bounds,
            [
                ("ttft_p95".to_owned(), Bound::Most(500.0)),
                ("itl_p99.9".to_owned(), Bound::Most(80.0)),
                ("e2el_mean".to_owned(), Bound::Most(0.9)),
                ("errors".to_owned(), Bound::MostShare(0.005)),
                ("output_throughput".to_owned(), Bound::Least(20.0)),
            ]
        );
    }

    #[test]
    fn what_is_no_condition_is_said() {
        for (text, says) in [
            ("", "METRIC=VALUE"),
            ("ttft_p95", "METRIC=VALUE"),
            ("ttft_p95=500", "needs a unit"),
            ("ttft_p101=1s", "from 0 to 100"),
            ("ttft=1s", "there are ttft"),
            ("latency_p95=1s", "there are ttft"),
            ("ttft_95=1s", "there are ttft"),
            ("errors=-1", "0 or more"),
            ("errors=NaN", "0 or more"),
            ("ttft_p95=msms", "no number"),
        ] {
            let said = format!("{:#}", text.parse::<Slo>().unwrap_err());
            assert!(said.contains(says), "{text}: {said}");
        }
    }

    #[test]
    fn a_step_keeps_its_conditions_or_does_not() {
        let records = [record(0, 100, 50), record(0, 200, 50)];
        let summary = summarize(&records, whole(&records), true, None);
        let holds = |text: &str| {
            let judged = text.parse::<Slo>().unwrap().judge(&summary);
            judged.iter().map(|one| one.holds).collect::<Vec<_>>()
        };
        assert_eq!(
            holds("ttft_p50=150ms,ttft_p50=149ms,errors=0,errors=0%"),
            [true, false, true, true]
        );
        assert_eq!(
            holds("ttft_max=200ms,itl_mean=49ms,output_throughput=1,request_throughput=1000"),
            [true, false, true, false]
        );
        let nothing = summarize(&[], whole(&[]), true, None);
        let slo: Slo = "ttft_p50=1s,errors=0%,errors=0".parse().unwrap();
        let judged: Vec<bool> = slo.judge(&nothing).iter().map(|one| one.holds).collect();
        assert_eq!(judged, [false, false, true]);
    }
}
