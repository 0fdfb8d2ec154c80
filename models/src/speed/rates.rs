//! What a device does in a second, and how long a step then takes.

use rempart_kernels::Format;

use super::work::{self, Product, Step, Work};

/// How fast a device multiplies by weights of one format.
#[derive(Clone, Debug, PartialEq)]
pub struct FormatRates {
    /// How the weights are stored.
    pub format: Format,
    /// Rows of a batch, rising, and the seconds that one weight takes with so many, the start of the operation left out.
    pub points: Vec<(usize, f64)>,
}

impl FormatRates {
    /// Seconds for one weight with `rows` rows: on the line between the points beside, and in proportion behind the last.
    pub fn seconds(&self, rows: usize) -> f64 {
        let Some(&(last_rows, last)) = self.points.last() else {
            return 0.0;
        };
        let behind = self.points.partition_point(|&(known, _)| known < rows);
        match (
            behind.checked_sub(1).map(|before| self.points[before]),
            self.points.get(behind),
        ) {
            (_, None) => last * rows as f64 / last_rows as f64,
            (None, Some(&(_, first))) => first,
            (Some((low, from)), Some(&(high, to))) => {
                from + (to - from) * (rows - low) as f64 / (high - low) as f64
            }
        }
    }
}

/// What a device takes for each part of a step, in seconds.
#[derive(Clone, Debug, PartialEq)]
pub struct Rates {
    /// For a weight, by its format.
    pub formats: Vec<FormatRates>,
    /// For a byte of keys and values that a sequence reads as it decodes.
    pub kv_byte: f64,
    /// For a multiplication of a prompt's attention.
    pub attention: f64,
    /// For a number that passes through what lies between products.
    pub element: f64,
    /// For a logit of a token that is sampled.
    pub logit: f64,
    /// For starting an operation.
    pub start: f64,
}

/// Seconds of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts {
    /// Multiplying by weights.
    pub products: f64,
    /// Reading keys and values, and multiplying by them.
    pub attention: f64,
    /// What lies between, choosing a token, and starting operations.
    pub between: f64,
}

impl Parts {
    /// All of them.
    pub fn sum(&self) -> f64 {
        self.products + self.attention + self.between
    }
}

impl Rates {
    /// Seconds that a step takes.
    pub fn seconds(&self, work: &Work, step: &Step) -> f64 {
        self.parts(work, step).sum()
    }

    /// What a step takes them for.
    pub fn parts(&self, work: &Work, step: &Step) -> Parts {
        let attention = if step.tokens == 1 {
            work.kv_bytes(step) * self.kv_byte
        } else {
            work.attention(step) * self.attention
        };
        let logits = if step.sampled {
            step.sequences * work.config().vocab_size
        } else {
            0
        };
        let elements = work.elements() * (step.sequences * step.tokens) as f64;
        Parts {
            products: work
                .products
                .iter()
                .map(|product| self.product(product, step))
                .sum(),
            attention,
            between: elements * self.element + logits as f64 * self.logit + work.operations() * self.start,
        }
    }

    /// Tokens per second of `sequences` that decode together, each in the middle of `context` tokens.
    pub fn decode(&self, work: &Work, sequences: usize, context: usize) -> f64 {
        let step = Step {
            sequences,
            tokens: 1,
            context: context.max(1),
            sampled: true,
        };
        sequences as f64 / self.seconds(work, &step)
    }

    /// Seconds until a prompt of `tokens` is computed and has its first token, in chunks of at most `chunk`.
    pub fn prefill(&self, work: &Work, tokens: usize, chunk: usize) -> f64 {
        let mut seconds = 0.0;
        let mut done = 0;
        while done < tokens {
            let now = (tokens - done).min(chunk.max(1));
            done += now;
            let step = Step {
                sequences: 1,
                tokens: now,
                context: done,
                sampled: done == tokens,
            };
            seconds += self.seconds(work, &step);
        }
        seconds
    }

    fn product(&self, product: &Product, step: &Step) -> f64 {
        let rows = work::rows(product, step);
        let rates = self.formats.iter().find(|rates| rates.format == product.format);
        match rates {
            Some(rates) if rows > 0 => product.weights() * rates.seconds(rows),
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvDtype, config::tests::tiny};

    fn rates() -> Rates {
        let points = vec![(1, 1e-9), (9, 5e-9), (20, 16e-9)];
        Rates {
            formats: vec![FormatRates {
                format: Format::Q8_0,
                points,
            }],
            kv_byte: 0.0,
            attention: 0.0,
            element: 0.0,
            logit: 0.0,
            start: 0.0,
        }
    }

    #[test]
    fn between_points_is_a_line_and_behind_them_a_proportion() {
        let close = |rows: usize, expected: f64| {
            let seconds = rates().formats[0].seconds(rows);
            assert!((seconds / expected - 1.0).abs() < 1e-9, "{rows} rows: {seconds}");
        };
        close(1, 1e-9);
        close(5, 3e-9);
        close(9, 5e-9);
        close(20, 16e-9);
        close(40, 32e-9);
    }

    #[test]
    fn a_step_takes_what_its_parts_take() {
        // Two blocks of q, k, v, o, gate, up, down, and a tied head, as `tiny` has them.
        let block = 64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 128;
        let work = Work::of_shape(&tiny(), Format::Q8_0, KvDtype::Int8);
        assert!((work.weights() - f64::from(2 * block + 1000 * 64)).abs() < 0.5);
        let decode = rates().decode(&work, 1, 100);
        let expected = f64::from(2 * block + 64_000) * 1e-9;
        assert!((decode * expected - 1.0).abs() < 1e-9, "{decode}");
        // The head meets one row of twenty.
        let prefill = rates().prefill(&work, 20, 20);
        let expected = f64::from(2 * block).mul_add(16e-9, 64_000.0 * 1e-9);
        assert!((prefill / expected - 1.0).abs() < 1e-9, "{prefill}");
        // Two chunks are two steps, of which the first has no head.
        let chunks = rates().prefill(&work, 10, 9);
        let expected = f64::from(2 * block).mul_add(6e-9, 64_000.0 * 1e-9);
        assert!((chunks / expected - 1.0).abs() < 1e-9, "{chunks}");
    }

    #[test]
    fn what_takes_no_weights_counts_by_itself() {
        let work = Work::of_shape(&tiny(), Format::Q8_0, KvDtype::F32);
        let step = Step {
            sequences: 3,
            tokens: 1,
            context: 100,
            sampled: true,
        };
        // Two layers, keys and values of two heads of 16, four bytes each.
        assert!((work.kv_bytes(&step) - f64::from(3 * 100 * 2 * 2 * 2 * 16 * 4)).abs() < 0.5);
        let prompt = Step {
            sequences: 1,
            tokens: 4,
            context: 6,
            sampled: false,
        };
        // 3 + 4 + 5 + 6 pairs in each of two layers, four heads of 16, scores and values.
        assert!((work.attention(&prompt) - f64::from(18 * 2 * 64 * 2)).abs() < 0.5);
        let only_kv = Rates {
            formats: Vec::new(),
            kv_byte: 1e-6,
            ..rates()
        };
        assert!((only_kv.seconds(&work, &step) / (work.kv_bytes(&step) * 1e-6) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_window_is_all_that_is_seen() {
        let mut config = tiny();
        config.windows = vec![Some(4), None];
        let work = Work::of_shape(&config, Format::Q8_0, KvDtype::F32);
        let prompt = Step {
            sequences: 1,
            tokens: 2,
            context: 10,
            sampled: false,
        };
        assert!((work.attention(&prompt) - f64::from((4 + 4 + 9 + 10) * 64 * 2)).abs() < 0.5);
    }
}
