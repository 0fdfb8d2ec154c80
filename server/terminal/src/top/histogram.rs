//! Histograms as Prometheus has them, what came into one between two pages, and percentiles of that.

/// Counts of observations that were at most so large, by ascending limit; the last limit is infinite.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Histogram(Vec<(f64, f64)>);

impl Histogram {
    /// Adds the count of a bucket, which other series may have, too: engines of a model, or all models.
    pub(crate) fn add(&mut self, limit: f64, count: f64) {
        if limit.is_nan() || !count.is_finite() || count < 0.0 {
            return;
        }
        match self.0.binary_search_by(|(other, _)| other.total_cmp(&limit)) {
            Ok(at) => self.0[at].1 += count,
            Err(at) => self.0.insert(at, (limit, count)),
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (limit, count) in &other.0 {
            self.add(*limit, *count);
        }
    }

    /// What came since an earlier page. Where a server has begun anew, or its buckets are others, that is all there is.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let same = self.0.len() == before.0.len()
            && self
                .0
                .iter()
                .zip(&before.0)
                .all(|(now, then)| now.0.total_cmp(&then.0).is_eq() && now.1 >= then.1);
        if !same {
            return self.clone();
        }
        let grown = self.0.iter().zip(&before.0);
        Self(grown.map(|(now, then)| (now.0, now.1 - then.1)).collect())
    }

    /// The observation that a share of all, from 0 to 1, is at most; `None` where there is none.
    ///
    /// As `histogram_quantile` of Prometheus has it (`bucketQuantile` in promql/quantile.go): evenly spread within a bucket, whose
    /// lower limit is the one before or 0, and the highest finite limit for what is above that.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let (top, total) = *self.0.last()?;
        if !top.is_infinite() || self.0.len() < 2 || total <= 0.0 {
            return None;
        }
        let rank = share * total;
        let finite = &self.0[..self.0.len() - 1];
        let Some(at) = finite.iter().position(|(_, count)| *count >= rank) else {
            return finite.last().map(|(limit, _)| *limit);
        };
        let (limit, count) = finite[at];
        if at == 0 && limit <= 0.0 {
            return Some(limit);
        }
        let (start, below) = at.checked_sub(1).map_or((0.0, 0.0), |before| finite[before]);
        let within = count - below;
        if within <= 0.0 {
            return Some(limit);
        }
        Some(start + (limit - start) * (rank - below) / within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(buckets: &[(f64, f64)]) -> Histogram {
        let mut histogram = Histogram::default();
        for (limit, count) in buckets.iter().rev() {
            histogram.add(*limit, *count);
        }
        histogram
    }

    const INF: f64 = f64::INFINITY;

    /// Figures worked out by hand with Prometheus' rules.
    #[test]
    fn quantiles_are_those_of_prometheus() {
        let histogram = of(&[(0.1, 10.0), (0.2, 30.0), (0.4, 40.0), (INF, 50.0)]);
        let near = |share: f64, expected: f64| {
            let found = histogram.quantile(share).unwrap();
            assert!((found - expected).abs() < 1e-12, "{share}: {found}");
        };
        near(0.0, 0.0);
        near(0.1, 0.05);
        near(0.5, 0.175);
        near(0.8, 0.4);
        near(0.99, 0.4);
        assert_eq!(
            of(&[(-1.0, 5.0), (1.0, 5.0), (INF, 5.0)]).quantile(0.5),
            Some(-1.0)
        );
        assert_eq!(of(&[(1.0, 0.0), (2.0, 4.0), (INF, 4.0)]).quantile(0.5), Some(1.5));
    }

    #[test]
    fn nothing_comes_of_nothing() {
        for empty in [
            Histogram::default(),
            of(&[(INF, 3.0)]),
            of(&[(1.0, 3.0)]),
            of(&[(1.0, 0.0), (INF, 0.0)]),
        ] {
            assert_eq!(empty.quantile(0.5), None, "{empty:?}");
        }
        assert_eq!(
            of(&[(f64::NAN, 1.0), (1.0, -1.0), (INF, f64::NAN)]),
            Histogram::default()
        );
    }

    #[test]
    fn what_came_between_pages_is_told_and_a_restart_begins_anew() {
        let (before, now) = (of(&[(1.0, 2.0), (INF, 3.0)]), of(&[(1.0, 2.0), (INF, 7.0)]));
        assert_eq!(now.since(&before), of(&[(1.0, 0.0), (INF, 4.0)]));
        assert_eq!(before.since(&now), before);
        assert_eq!(now.since(&Histogram::default()), now);
    }
}
