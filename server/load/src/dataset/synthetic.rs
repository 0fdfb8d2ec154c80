//! Random texts, behind prefixes that many share where that is asked for.

use anyhow::ensure;
use rand::Rng;

use super::words::{self, Words};
use super::{Item, check_tokens};
use crate::limits::{OUTPUT_TOKENS_MAX, PROMPT_TOKENS_MAX};
use crate::rng::{self, Use};

/// How long texts are, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    pub input: u32,
    pub output: u32,
    /// Lengths are drawn evenly from `length * (1 - ratio)` to `length * (1 + ratio)`.
    pub range_ratio: f64,
    /// Of the prefix that requests share, in front of the input; 0 for none.
    pub prefix: u32,
    /// Different prefixes; each request has one of them, in turn.
    pub prefixes: u32,
    /// Documents of a request for a ranking, as long as the input each.
    pub documents: u32,
}

impl Lengths {
    /// # Errors
    /// Where a length is out of range.
    pub(crate) fn check(self) -> anyhow::Result<Self> {
        check_tokens("--random-input-len", self.input.into(), PROMPT_TOKENS_MAX)?;
        check_tokens("--random-output-len", self.output.into(), OUTPUT_TOKENS_MAX / 2)?;
        ensure!(
            (0.0..1.0).contains(&self.range_ratio),
            "--random-range-ratio {}: must be at least 0 and less than 1",
            self.range_ratio
        );
        ensure!(
            self.prefix <= PROMPT_TOKENS_MAX,
            "--prefix-len: at most {PROMPT_TOKENS_MAX}"
        );
        ensure!(self.prefixes >= 1, "--num-prefixes: at least 1");
        Ok(self)
    }
}

pub(crate) struct Synthetic {
    pub seed: u64,
    pub lengths: Lengths,
    pub words: Words,
}

/// Words of a query, for which documents are ranked.
const QUERY_WORDS: usize = 16;

impl Synthetic {
    pub(crate) fn item(&self, step: usize, index: usize) -> Item {
        let lengths = self.lengths;
        let name = (step as u64) << 32 | index as u64;
        let mut drawn = rng::of(self.seed, Use::Length, name);
        let input = draw(&mut drawn, lengths.input, lengths.range_ratio);
        let output = draw(&mut drawn, lengths.output, lengths.range_ratio);
        let mut rng = rng::of(self.seed, Use::Prompt, name);
        if lengths.documents > 0 {
            let words = self.words.of_prompt(input);
            let documents = (0..lengths.documents)
                .map(|_| words::unique(&mut rng, words))
                .collect();
            return Item {
                prompt: words::unique(&mut rng, QUERY_WORDS),
                documents,
                input_tokens: input.saturating_mul(lengths.documents),
                output_tokens: output,
            };
        }
        let own = words::unique(&mut rng, self.words.of_prompt(input));
        let prompt = match lengths.prefix {
            0 => own,
            tokens => format!(
                "{} {own}",
                self.prefix(index as u64 % u64::from(lengths.prefixes), tokens)
            ),
        };
        Item {
            prompt,
            documents: Vec::new(),
            input_tokens: input.saturating_add(lengths.prefix),
            output_tokens: output,
        }
    }

    fn prefix(&self, which: u64, tokens: u32) -> String {
        words::unique(
            &mut rng::of(self.seed, Use::Prefix, which),
            self.words.of_part(tokens).max(1),
        )
    }

    pub(crate) fn output_tokens(&self, requests: usize) -> u64 {
        let longest = f64::from(self.lengths.output) * (1.0 + self.lengths.range_ratio);
        (longest.ceil() as u64).saturating_mul(requests as u64)
    }
}

fn draw(rng: &mut impl Rng, tokens: u32, ratio: f64) -> u32 {
    let (low, high) = (
        f64::from(tokens) * (1.0 - ratio),
        f64::from(tokens) * (1.0 + ratio),
    );
    rng.random_range((low.floor() as u32).max(1)..=(high.ceil() as u32).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synthetic(lengths: Lengths) -> Synthetic {
        Synthetic {
            seed: 3,
            lengths,
            words: Words::APPROXIMATE,
        }
    }

    const LENGTHS: Lengths = Lengths {
        input: 100,
        output: 20,
        range_ratio: 0.5,
        prefix: 0,
        prefixes: 1,
        documents: 0,
    };

    #[test]
    fn lengths_are_drawn_from_their_range() {
        let data = synthetic(LENGTHS);
        let items: Vec<Item> = (0..500).map(|index| data.item(0, index)).collect();
        let inputs = || items.iter().map(|item| item.input_tokens);
        assert!(
            inputs().min() >= Some(50) && inputs().min() < Some(56),
            "{:?}",
            inputs().min()
        );
        assert!(
            inputs().max() <= Some(150) && inputs().max() > Some(144),
            "{:?}",
            inputs().max()
        );
        for item in &items {
            assert_eq!(item.prompt.split(' ').count() as u32, item.input_tokens);
            assert!((10..=30).contains(&item.output_tokens));
        }
        let fixed = Lengths {
            range_ratio: 0.0,
            ..LENGTHS
        };
        assert!((0..50).all(|index| synthetic(fixed).item(0, index).input_tokens == 100));
    }

    #[test]
    fn steps_differ_and_seeds_repeat() {
        let data = synthetic(LENGTHS);
        assert!(data.item(0, 1).prompt != data.item(1, 1).prompt);
        assert!(data.item(1, 1) == synthetic(LENGTHS).item(1, 1));
    }

    #[test]
    fn prefixes_are_shared_in_turn() {
        let data = synthetic(Lengths {
            prefix: 50,
            prefixes: 2,
            ..LENGTHS
        });
        let head = |index| {
            data.item(0, index)
                .prompt
                .split(' ')
                .take(50)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(head(0), head(2));
        assert_ne!(head(0), head(1));
        let tail = |index| data.item(0, index).prompt.split(' ').nth(50).map(str::to_owned);
        assert_ne!(tail(0), tail(2));
    }

    #[test]
    fn documents_are_as_many_as_asked() {
        let data = synthetic(Lengths {
            documents: 8,
            ..LENGTHS
        });
        assert_eq!(data.item(0, 0).documents.len(), 8);
    }

    #[test]
    fn lengths_out_of_range_are_named() {
        let bad = Lengths {
            range_ratio: 1.0,
            ..LENGTHS
        };
        assert!(
            bad.check()
                .unwrap_err()
                .to_string()
                .contains("--random-range-ratio")
        );
        let bad = Lengths { input: 0, ..LENGTHS };
        assert!(
            bad.check()
                .unwrap_err()
                .to_string()
                .contains("--random-input-len")
        );
    }
}
