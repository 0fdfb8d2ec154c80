//! Numbers about numbers, as numpy defines them.

/// The percentiles that every result tells.
pub(crate) const PERCENTILES: [f64; 4] = [50.0, 90.0, 95.0, 99.0];

/// Values in their order.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    pub fn values(&self) -> &[f64] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// 0 of no values, as vLLM has it.
    pub fn mean(&self) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        self.0.iter().sum::<f64>() / self.0.len() as f64
    }

    /// Of the whole population: divided by the count, as numpy does.
    pub fn std(&self) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        let mean = self.mean();
        let squares = self.0.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        (squares / self.0.len() as f64).sqrt()
    }

    pub fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(0.0)
    }

    /// With numpy's method `linear`: between the two nearest values in proportion. 0 of no values.
    pub fn percentile(&self, percent: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else {
            return 0.0;
        };
        let at = last as f64 * (percent / 100.0).clamp(0.0, 1.0);
        let below = at.floor() as usize;
        let above = (below + 1).min(last);
        self.0[below] + (self.0[above] - self.0[below]) * (at - below as f64)
    }
}

/// A percentile's name: 99 is `p99`, 99.9 is `p99.9`.
pub(crate) fn percentile_name(percent: f64) -> String {
    format!("p{percent}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * b.abs().max(1.0)
    }

    /// Expected values are numpy's: `numpy.percentile([…], q)` and `numpy.std`.
    #[test]
    fn percentiles_are_numpys() {
        let sample = Sample::new(vec![15.0, 20.0, 35.0, 40.0, 50.0]);
        for (percent, expected) in [
            (0.0, 15.0),
            (5.0, 16.0),
            (30.0, 23.0),
            (40.0, 29.0),
            (50.0, 35.0),
            (95.0, 48.0),
            (100.0, 50.0),
        ] {
            assert!(
                near(sample.percentile(percent), expected),
                "{percent}: {}",
                sample.percentile(percent)
            );
        }
        let sample = Sample::new((1..=1000).rev().map(f64::from).collect());
        for (percent, expected) in [
            (50.0, 500.5),
            (90.0, 900.1),
            (95.0, 950.05),
            (99.0, 990.01),
            (99.9, 999.001),
        ] {
            assert!(
                near(sample.percentile(percent), expected),
                "{percent}: {}",
                sample.percentile(percent)
            );
        }
        assert!(near(
            Sample::new(vec![2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).std(),
            2.0
        ));
        assert!(near(sample.mean(), 500.5) && near(sample.max(), 1000.0));
    }

    #[test]
    fn few_values_have_percentiles_too() {
        assert!(near(Sample::default().percentile(99.0), 0.0));
        assert!(near(Sample::new(vec![7.0]).percentile(99.0), 7.0));
        assert!(near(Sample::new(vec![2.0, 1.0]).percentile(50.0), 1.5));
        assert_eq!(
            (percentile_name(99.0), percentile_name(99.9)),
            ("p99".to_owned(), "p99.9".to_owned())
        );
    }
}
