//! How much prefill fits beside streams that decode, learnt from the time that steps take.
//!
//! A step is taken to cost a fixed time, a time for each sequence that decodes, and a time for each token of prefill.
//! None of the three is assumed: a Kalman filter corrects them after every step. They may drift, because contexts
//! grow and other processes come and go; a step far off what was expected counts only as far as it is believable.

use std::time::Duration;

/// The share of the target that a step is planned to take: the rest is for delivery, and for steps that take longer
/// than planned.
const PLANNED_SHARE: f64 = 0.9;

/// Prefill gets at least this many tokens of every step, whatever is believed of their cost: a wrong belief must not
/// hold a prompt up, and only steps with prefill correct it. That a prompt doesn't take too many steps, each of which
/// reads all weights, is what [`StepCost::prefill_within`] sees to.
const PREFILL_TOKENS_MIN: usize = 16;

/// How large the fixed part of the first step is thought to be.
const FIXED_SHARE: f64 = 0.25;
/// How far a cost may drift with each step, relative to a step that consists of it.
const DRIFT: f64 = 0.05;
/// How far a step's time strays from its cost, relative.
const NOISE: f64 = 0.1;
/// Deviations beyond this many times what was likely count as this.
const SURPRISE_MAX: f64 = 3.0;

/// What a step computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// Sequences that decoded.
    pub(super) decodes: usize,
    /// Tokens of prefill.
    pub(super) prefill: usize,
}

/// Sizes the prefill of the next step so that decoding streams keep their inter-token latency.
#[derive(Debug)]
pub(super) struct Budget {
    /// `None`: prefill takes all that a step may compute.
    target: Option<Duration>,
    /// What a step may compute at most.
    step_tokens_max: usize,
    cost: Option<StepCost>,
}

impl Budget {
    pub(super) fn new(target: Option<Duration>, step_tokens_max: usize) -> Self {
        Self {
            target,
            step_tokens_max,
            cost: None,
        }
    }

    /// The most tokens of prefill that a step with so many decoding sequences should compute.
    pub(super) fn prefill(&self, decodes: usize) -> usize {
        let Some(target) = self.target else {
            return self.step_tokens_max;
        };
        let planned_s = target.as_secs_f64() * PLANNED_SHARE;
        let tokens = self
            .cost
            .as_ref()
            .map_or(0, |cost| cost.prefill_within(decodes, planned_s));
        tokens.max(PREFILL_TOKENS_MIN).min(self.step_tokens_max)
    }

    /// Learns from a step.
    pub(super) fn observe(&mut self, work: Work, took: Duration) {
        // A clock that did not advance tells nothing.
        if self.target.is_none() || took.is_zero() || work.decodes + work.prefill == 0 {
            return;
        }
        // A lone first token, as of the warm-up, says too little to begin with.
        if self.cost.is_none() && work.decodes + work.prefill < 2 {
            return;
        }
        let (counts, seconds) = (work.counts(), took.as_secs_f64());
        self.cost
            .get_or_insert_with(|| StepCost::unknown(counts, seconds))
            .correct(counts, seconds);
    }
}

impl Work {
    /// How often a step pays each cost of [`StepCost`].
    fn counts(self) -> [f64; 3] {
        [1.0, self.decodes as f64, self.prefill as f64]
    }
}

/// Seconds a step takes: in any case, for each sequence that decodes, for each token of prefill.
#[derive(Debug)]
struct StepCost {
    mean: [f64; 3],
    covariance: [[f64; 3]; 3],
}

impl StepCost {
    /// Nothing is known but the size of things: a step took this long, so no token of it took longer than its share, and
    /// most of it was for its tokens. What is fixed would otherwise seem to be as much as prefill, which then got as
    /// much time as that: a step like the one before, from which nothing new is learnt.
    fn unknown([_, decodes, prefill]: [f64; 3], seconds: f64) -> Self {
        let step = (seconds * FIXED_SHARE).powi(2);
        let token = (seconds / (decodes + prefill)).powi(2);
        Self {
            mean: [0.0; 3],
            covariance: [[step, 0.0, 0.0], [0.0, token, 0.0], [0.0, 0.0, token]],
        }
    }

    fn predict(&self, counts: [f64; 3]) -> f64 {
        dot(self.mean, counts)
    }

    fn correct(&mut self, counts: [f64; 3], seconds: f64) {
        // The larger of the two: a step that seems to have taken almost no time must not pass for an exact one.
        let expected = self.predict(counts);
        let scale = expected.max(seconds);
        for (index, count) in counts.into_iter().enumerate() {
            // A cost that this step did not pay is remembered as it was. What several steps in a row can't tell
            // apart becomes uncertain, but never more so than it was at first.
            if count > 0.0 {
                let all = (scale / count).powi(2);
                let variance = &mut self.covariance[index][index];
                if *variance < all {
                    *variance += all * DRIFT.powi(2);
                }
            }
        }
        let shared = self.covariance.map(|row| dot(row, counts));
        let variance = dot(shared, counts).max(0.0) + (NOISE * scale).powi(2);
        let limit = SURPRISE_MAX * variance.sqrt();
        let surprise = (seconds - expected).clamp(-limit, limit);
        for row in 0..3 {
            self.mean[row] = (self.mean[row] + shared[row] * surprise / variance).max(0.0);
            for column in 0..3 {
                self.covariance[row][column] -= shared[row] * shared[column] / variance;
            }
        }
    }

    /// How many tokens of prefill fit in a step of `planned_s` beside so many decoding sequences. Prefill always gets
    /// as much time as decoding takes: where decoding alone takes the whole target, tokens come half as often while
    /// a prompt is computed, the prompt takes twice its time, and at most half of the time goes into reading weights.
    #[expect(clippy::cast_sign_loss, reason = "no cost is negative")]
    fn prefill_within(&self, decodes: usize, planned_s: f64) -> usize {
        let [fixed, decode, prefill] = self.mean;
        let decodes_s = fixed + decode * decodes as f64;
        // Without a cost this is as many as there can be, or none if there is no time either.
        ((planned_s - decodes_s).max(decodes_s) / prefill) as usize
    }
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with known costs, in milliseconds, and noise of some per cent.
    struct Machine {
        costs: [f64; 3],
        noise_percent: u64,
        drawn: u64,
    }

    impl Machine {
        fn new(costs: [f64; 3]) -> Self {
            Self {
                costs,
                noise_percent: 5,
                drawn: 0,
            }
        }

        fn draw(&mut self) -> u64 {
            self.drawn += 1;
            rempart_engine::rng::draw(1, self.drawn)
        }

        fn took_ms(&mut self, work: Work) -> f64 {
            let percent = (self.draw() % (2 * self.noise_percent + 1)) as f64 - self.noise_percent as f64;
            dot(self.costs, work.counts()) * (1.0 + percent / 100.0)
        }

        /// Steps as the engine takes them: prompts arrive now and then, decoding goes on.
        fn run(&mut self, budget: &mut Budget, steps: usize) {
            let mut pending = 0;
            for _ in 0..steps {
                if self.draw().is_multiple_of(8) {
                    pending += 20 + self.draw() as usize % 600;
                }
                let decodes = self.draw() as usize % 9;
                let limit = if decodes > 0 { budget.prefill(decodes) } else { 512 };
                let prefill = pending.min(limit).min(512 - decodes);
                pending -= prefill;
                let work = Work { decodes, prefill };
                let took = self.took_ms(work);
                budget.observe(work, Duration::from_secs_f64(took / 1e3));
            }
        }

        /// How long a step takes that uses its budget, without noise.
        fn full_step_ms(&self, budget: &Budget, decodes: usize) -> f64 {
            let work = Work {
                decodes,
                prefill: budget.prefill(decodes),
            };
            dot(self.costs, work.counts())
        }
    }

    fn budget(target_ms: u64) -> Budget {
        Budget::new(Some(Duration::from_millis(target_ms)), 512)
    }

    fn near(value: f64, wanted: f64, percent: f64) -> bool {
        (value - wanted).abs() <= wanted * percent / 100.0
    }

    #[test]
    fn steps_come_to_take_what_was_planned_on_machines_of_any_speed() {
        // From a fast accelerator to a large model on a slow processor.
        for speed in [0.01, 1.0, 40.0] {
            let mut machine = Machine::new([10.0, 1.0, 0.5].map(|ms| ms * speed));
            let mut budget = budget(1);
            budget.target = Some(Duration::from_secs_f64(0.1 * speed));
            machine.run(&mut budget, 200);
            for decodes in [1, 4, 8] {
                let took = machine.full_step_ms(&budget, decodes);
                assert!(near(took, 90.0 * speed, 15.0), "{decodes} decode: {took} ms");
            }
        }
    }

    #[test]
    fn two_steps_are_enough_for_a_first_idea() {
        let mut budget = budget(100);
        let mut machine = Machine::new([20.0, 0.0, 1.0]);
        for (decodes, prefill) in [(0, 512), (1, 0)] {
            let work = Work { decodes, prefill };
            let took = machine.took_ms(work);
            budget.observe(work, Duration::from_secs_f64(took / 1e3));
        }
        let took = machine.full_step_ms(&budget, 1);
        assert!(near(took, 90.0, 30.0), "{took} ms");
    }

    #[test]
    fn a_change_is_followed() {
        let mut machine = Machine::new([10.0, 1.0, 0.5]);
        let mut budget = budget(100);
        machine.run(&mut budget, 200);
        for factor in [3.0, 1.0 / 3.0] {
            machine.costs = machine.costs.map(|ms| ms * factor);
            machine.run(&mut budget, 60);
            let took = machine.full_step_ms(&budget, 2);
            assert!(near(took, 90.0, 20.0), "after {factor}: {took} ms");
        }
    }

    #[test]
    fn the_cost_of_prefill_is_kept_over_long_decoding() {
        let mut machine = Machine::new([10.0, 1.0, 0.5]);
        let mut budget = budget(100);
        machine.run(&mut budget, 200);
        for _ in 0..100_000 {
            let work = Work {
                decodes: 1,
                prefill: 0,
            };
            let took = machine.took_ms(work);
            budget.observe(work, Duration::from_secs_f64(took / 1e3));
        }
        let took = machine.full_step_ms(&budget, 1);
        assert!(near(took, 90.0, 15.0), "{took} ms");
    }

    #[test]
    fn a_quick_warm_up_does_not_loosen_the_first_limit() {
        for warm_up_us in [1, 50, 5_000] {
            let mut budget = budget(10);
            let work = |prefill| Work { decodes: 0, prefill };
            budget.observe(work(1), Duration::from_micros(warm_up_us));
            budget.observe(work(64), Duration::from_millis(64));
            assert_eq!(budget.prefill(1), PREFILL_TOKENS_MIN, "{warm_up_us}");
        }
    }

    #[test]
    fn one_odd_step_changes_little() {
        for odd_ms in [0.0, 0.001, 10_000.0] {
            let mut machine = Machine::new([10.0, 1.0, 0.5]);
            let mut budget = budget(100);
            machine.run(&mut budget, 200);
            let work = Work {
                decodes: 2,
                prefill: 100,
            };
            budget.observe(work, Duration::from_secs_f64(odd_ms / 1e3));
            let took = machine.full_step_ms(&budget, 2);
            assert!(near(took, 90.0, 35.0), "after {odd_ms} ms: {took} ms");
            machine.run(&mut budget, 20);
            let took = machine.full_step_ms(&budget, 2);
            assert!(near(took, 90.0, 15.0), "later, after {odd_ms} ms: {took} ms");
        }
    }

    #[test]
    fn prompts_advance_even_if_decoding_takes_the_whole_target() {
        let mut machine = Machine::new([80.0, 20.0, 0.5]);
        let mut budget = budget(100);
        machine.run(&mut budget, 200);
        // As long as the decoding takes: 160 ms.
        let took = machine.full_step_ms(&budget, 4);
        assert!(near(took, 320.0, 15.0), "{took} ms");
        machine.costs = [1.0, 0.1, 50.0];
        machine.run(&mut budget, 200);
        assert_eq!(budget.prefill(4), PREFILL_TOKENS_MIN);
    }

    #[test]
    fn nothing_is_limited_without_a_target_and_little_allowed_without_knowledge() {
        let mut off = Budget::new(None, 512);
        Machine::new([10.0, 1.0, 0.5]).run(&mut off, 20);
        assert_eq!(off.prefill(1), 512);
        assert_eq!(budget(100).prefill(1), PREFILL_TOKENS_MIN);
    }
}
