//! Guesses at what a sequence will say next: what followed the last time it came to these words.
//!
//! A step that computes a few guessed tokens beside the one it must compute takes little longer, and those of the
//! guesses that sampling confirms are made for nothing. Answers that quote their prompt (summaries, code, extracted
//! data) are often guessed right (Saxena 2023, "prompt lookup decoding"). Guesses never change an answer: a token is
//! sampled at every position as ever, and a guess only saves the step if it is the same token.

use crate::request::Token;

/// Words that must recur before what followed them is guessed; the longest that recurs is taken.
const NGRAM_MAX: usize = 3;
const NGRAM_MIN: usize = 2;
/// How far back they are looked for, tokens.
const LOOKBACK_MAX: usize = 16_384;
/// Guesses of a sequence whose luck is unknown.
const LENGTH_FIRST: usize = 2;
/// Chances that pass unused after many wrong guesses in a row, at most.
const PAUSE_MAX: usize = 32;

/// One sequence's luck with its guesses: how many are worth their time.
#[derive(Debug)]
pub(crate) struct Drafter {
    /// Guesses to make.
    length: usize,
    /// Chances to let pass.
    pause: usize,
    /// The pause that the next miss brings.
    next_pause: usize,
}

impl Drafter {
    pub(crate) fn new() -> Self {
        Self {
            length: LENGTH_FIRST,
            pause: 0,
            next_pause: 1,
        }
    }

    /// Appends up to `limit` guesses to the tokens and returns how many.
    pub(crate) fn draft(&mut self, tokens: &mut Vec<Token>, limit: usize) -> usize {
        let count = self.length.min(limit);
        if count == 0 {
            return 0;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return 0;
        }
        let Some(follows) = find(tokens) else {
            return 0;
        };
        // The copy may run into what it has copied: a text that repeats itself goes on doing so.
        for index in follows..follows + count {
            tokens.push(tokens[index]);
        }
        count
    }

    /// Takes note of how many guesses were right. Some: as many and one more next time, or twice as many if all were.
    /// None: fewer chances are used the longer this goes on.
    pub(crate) fn learn(&mut self, drafted: usize, accepted: usize, length_max: usize) {
        if accepted == 0 {
            self.length = 1;
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
            return;
        }
        self.next_pause = 1;
        let length = if accepted == drafted {
            self.length.max(drafted) * 2
        } else {
            accepted + 1
        };
        self.length = length.min(length_max);
    }
}

/// What followed the latest earlier occurrence of the last tokens.
fn find(tokens: &[Token]) -> Option<usize> {
    let start = tokens.len().saturating_sub(LOOKBACK_MAX);
    let window = &tokens[start..];
    (NGRAM_MIN..=NGRAM_MAX).rev().find_map(|n| {
        let last = window.len().checked_sub(n)?;
        let (before, ngram) = (&window[..window.len() - 1], &window[last..]);
        let found = before.windows(n).rposition(|words| words == ngram)?;
        Some(start + found + n)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(text: &[Token], limit: usize) -> Vec<Token> {
        let mut tokens = text.to_vec();
        let mut drafter = Drafter {
            length: limit,
            ..Drafter::new()
        };
        let count = drafter.draft(&mut tokens, limit);
        assert_eq!((&tokens[..text.len()], tokens.len()), (text, text.len() + count));
        tokens.split_off(text.len())
    }

    #[test]
    fn the_longest_and_latest_words_are_continued() {
        assert_eq!(drafts(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        // Three words beat two, though two were said later.
        assert_eq!(drafts(&[1, 2, 3, 4, 9, 2, 3, 7, 1, 2, 3], 1), [4]);
        assert_eq!(drafts(&[2, 3, 4, 2, 3, 5, 0, 2, 3], 1), [5]);
        // One word is not enough, nor is the end itself.
        assert_eq!(drafts(&[3, 1, 2, 3], 4), []);
        assert_eq!(drafts(&[1, 2], 4), []);
        assert_eq!(drafts(&[1], 4), []);
        assert_eq!(drafts(&[1, 2, 3, 1, 2], 0), []);
    }

    #[test]
    fn repetitions_are_continued_past_the_end() {
        assert_eq!(drafts(&[7, 7, 7], 4), [7, 7, 7, 7]);
        assert_eq!(drafts(&[1, 2, 1, 2, 1], 5), [2, 1, 2, 1, 2]);
    }

    #[test]
    fn words_from_too_long_ago_are_forgotten() {
        let mut text = vec![1, 2, 3];
        text.extend(10..10 + LOOKBACK_MAX as Token - 4);
        text.extend([1, 2]);
        // The first token is just outside.
        assert_eq!(drafts(&text, 1), []);
        text.remove(100);
        assert_eq!(drafts(&text, 1), [3]);
    }

    #[test]
    fn right_guesses_bring_more_and_wrong_ones_pauses() {
        let mut drafter = Drafter::new();
        let draft = |drafter: &mut Drafter| drafter.draft(&mut vec![1, 2, 3, 1, 2], 100);
        assert_eq!(draft(&mut drafter), 2);
        drafter.learn(2, 2, 7);
        assert_eq!(draft(&mut drafter), 4);
        drafter.learn(4, 4, 7);
        assert_eq!(draft(&mut drafter), 7);
        drafter.learn(7, 2, 7);
        assert_eq!(draft(&mut drafter), 3);
        for pause in [1, 2, 4, 8, 16, 32, 32] {
            drafter.learn(1, 0, 7);
            for _ in 0..pause {
                assert_eq!(draft(&mut drafter), 0);
            }
            assert_eq!(draft(&mut drafter), 1);
        }
        drafter.learn(1, 1, 7);
        drafter.learn(2, 0, 7);
        assert_eq!((draft(&mut drafter), draft(&mut drafter)), (0, 1));
    }
}
