//! Which load to try next: a sweep until more clients bring no more, and a search for the highest rate that keeps an SLO.

/// Doubles the clients until throughput hardly grows any more.
#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    most: usize,
    seen: Vec<Point>,
}

/// What a number of clients came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Point {
    pub clients: usize,
    /// Tokens or requests a second.
    pub throughput: f64,
    /// Of a request.
    pub latency: f64,
}

/// A doubling that brings less than this is no gain.
const GAIN_MIN: f64 = 1.05;
/// So many of them in a row end a sweep: one may be noise.
const FLAT_MAX: usize = 2;

impl Sweep {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            seen: Vec::new(),
        }
    }

    /// The next number of clients; `None` where it is over.
    pub(crate) fn next(&self) -> Option<usize> {
        let Some(last) = self.seen.last() else {
            return Some(1);
        };
        let flat = self
            .seen
            .windows(2)
            .rev()
            .take_while(|pair| pair[1].throughput < pair[0].throughput * GAIN_MIN)
            .count();
        if flat >= FLAT_MAX || last.throughput <= 0.0 || last.clients >= self.most {
            return None;
        }
        Some((last.clients * 2).min(self.most))
    }

    pub(crate) fn tell(&mut self, point: Point) {
        self.seen.push(point);
    }

    /// Where throughput divided by latency is highest (Kleinrock's power): beyond, requests wait for longer than more is done.
    pub(crate) fn knee(&self) -> Option<Point> {
        let power = |point: &Point| point.throughput / point.latency.max(f64::MIN_POSITIVE);
        let worked = self.seen.iter().filter(|point| point.throughput > 0.0).copied();
        worked.max_by(|a, b| power(a).total_cmp(&power(b)))
    }
}

/// Looks for the highest rate at which something holds, between one where it should and one where it should not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bisection {
    low: f64,
    high: f64,
    precision: f64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    TryLow,
    TryHigh,
    Between,
    Over { held: bool },
}

impl Bisection {
    /// `precision` is the share by which the rates that hold and do not may differ at the end.
    pub(crate) fn new(low: f64, high: f64, precision: f64) -> Self {
        Self {
            low,
            high,
            precision,
            state: State::TryLow,
        }
    }

    /// The rate to try next; `None` where it is over.
    pub(crate) fn next(&self) -> Option<f64> {
        match self.state {
            State::TryLow => Some(self.low),
            State::TryHigh => Some(self.high),
            State::Between => Some((self.low * self.high).sqrt()),
            State::Over { .. } => None,
        }
    }

    /// Takes whether it held at the rate that `next` gave.
    pub(crate) fn tell(&mut self, held: bool) {
        let Some(rate) = self.next() else {
            return;
        };
        self.state = match (self.state, held) {
            (State::TryLow, true) => State::TryHigh,
            (State::TryLow, false) => State::Over { held: false },
            (State::TryHigh, true) => {
                self.low = rate;
                State::Over { held: true }
            }
            (_, true) => {
                self.low = rate;
                State::Between
            }
            (_, false) => {
                self.high = rate;
                State::Between
            }
        };
        if self.state == State::Between && self.high <= self.low * (1.0 + self.precision) {
            self.state = State::Over { held: true };
        }
    }

    /// The highest rate that held; `None` where not even the lowest did, or where the search is not over.
    pub(crate) fn found(&self) -> Option<f64> {
        (self.state == State::Over { held: true }).then_some(self.low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(most: usize, server: impl Fn(f64) -> (f64, f64)) -> (Vec<usize>, Sweep) {
        let (mut sweep, mut tried) = (Sweep::new(most), Vec::new());
        while let Some(clients) = sweep.next() {
            let (throughput, latency) = server(clients as f64);
            tried.push(clients);
            sweep.tell(Point {
                clients,
                throughput,
                latency,
            });
        }
        (tried, sweep)
    }

    /// A server that works on eight requests at a time, one second each.
    fn eight(clients: f64) -> (f64, f64) {
        (clients.min(8.0), (clients / 8.0).max(1.0))
    }

    #[test]
    fn a_sweep_ends_behind_the_knee() {
        let (tried, swept) = sweep(1024, eight);
        assert_eq!(tried, [1, 2, 4, 8, 16, 32]);
        assert_eq!(swept.knee().unwrap().clients, 8);
    }

    #[test]
    fn a_sweep_ends_at_its_limit_and_where_nothing_works() {
        assert_eq!(sweep(6, eight).0, [1, 2, 4, 6]);
        let (tried, swept) = sweep(64, |_| (0.0, 0.0));
        assert_eq!((tried, swept.knee()), (vec![1], None));
    }

    fn search(low: f64, high: f64, holds: impl Fn(f64) -> bool) -> (Option<f64>, usize) {
        let (mut search, mut tries) = (Bisection::new(low, high, 0.05), 0);
        while let Some(rate) = search.next() {
            search.tell(holds(rate));
            tries += 1;
        }
        (search.found(), tries)
    }

    #[test]
    fn a_search_closes_in_on_the_rate() {
        let (found, tries) = search(1.0, 64.0, |rate| rate <= 10.0);
        assert!(
            found.is_some_and(|rate| rate <= 10.0 && rate > 10.0 / 1.05),
            "{found:?}"
        );
        assert!(tries <= 10, "{tries}");
    }

    #[test]
    fn a_search_may_end_at_either_end() {
        assert_eq!(search(1.0, 64.0, |_| false), (None, 1));
        assert_eq!(search(1.0, 64.0, |_| true), (Some(64.0), 2));
    }
}
