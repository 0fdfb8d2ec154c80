//! Guesses at what a sequence will say next: what followed the last time it came to these words.
//!
//! A step that computes a few guessed tokens beside the one it must compute takes little longer, and those of the
//! guesses that sampling confirms are made for nothing. Answers that quote their prompt (summaries, code, extracted
//! data) are often guessed right (Saxena 2023, "prompt lookup decoding"). Guesses never change an answer: a token is
//! sampled at every position as ever, and a guess only saves the step if it is the same token.
//!
//! A client that knows most of an answer (a file with one change) can say so: while the output stays with its prediction,
//! what comes next there is the guess.

use std::cmp::Reverse;

use crate::request::{Predicted, Token};

/// Words that must recur before what followed them is guessed; the longest that recurs is taken.
const NGRAM_MAX: usize = 3;
const NGRAM_MIN: usize = 2;
/// How far back they are looked for, tokens.
const LOOKBACK_MAX: usize = 16_384;
/// Guesses of a sequence whose luck is unknown.
const LENGTH_FIRST: usize = 2;
/// The end of the output that is compared with the prediction, tokens: what a search may cost.
const SUFFIX_MAX: usize = 64;
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
    /// Where the output was in the prediction when it was last found there.
    place: usize,
    /// Whether the latest guesses are from the prediction.
    from_prediction: bool,
    predicted: Predicted,
}

impl Drafter {
    /// Of a sequence that may have a prediction, which deserves trust from the start.
    pub(crate) fn new(prediction: &[Token]) -> Self {
        Self {
            length: if prediction.is_empty() {
                LENGTH_FIRST
            } else {
                usize::MAX
            },
            pause: 0,
            next_pause: 1,
            place: 0,
            from_prediction: false,
            predicted: Predicted::default(),
        }
    }

    /// What became of guesses from the prediction.
    pub(crate) fn predicted(&self) -> Predicted {
        self.predicted
    }

    /// Appends up to `limit` guesses to the tokens and returns how many. The first `prompt` of the tokens are the prompt.
    pub(crate) fn draft(
        &mut self,
        tokens: &mut Vec<Token>,
        prompt: usize,
        prediction: &[Token],
        limit: usize,
    ) -> usize {
        let count = self.length.min(limit);
        if count == 0 {
            return 0;
        }
        self.from_prediction = false;
        if let Some(place) = find_predicted(&tokens[prompt..], prediction, self.place) {
            let guesses = &prediction[place..];
            let guesses = &guesses[..count.min(guesses.len())];
            (self.place, self.from_prediction) = (place, true);
            tokens.extend(guesses);
            return guesses.len();
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
        if self.from_prediction {
            self.predicted.accepted += accepted;
            self.predicted.rejected += drafted - accepted;
        }
        if accepted == 0 {
            self.length = 1;
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
            return;
        }
        self.next_pause = 1;
        let length = if accepted == drafted {
            self.length.max(drafted).saturating_mul(2)
        } else {
            accepted + 1
        };
        self.length = length.min(length_max);
    }
}

/// Where the output goes on in the prediction, if that has more there: where most of its end, or all of it, is the same.
/// Of several such places the first that is not before `earliest`, or else the first.
fn find_predicted(output: &[Token], prediction: &[Token], earliest: usize) -> Option<usize> {
    let suffix = &output[output.len().saturating_sub(SUFFIX_MAX)..];
    let common = |place: usize| {
        let before = prediction[..place].iter().rev();
        before
            .zip(suffix.iter().rev())
            .take_while(|(a, b)| a == b)
            .count()
    };
    let enough = NGRAM_MIN.min(output.len());
    let places = (0..prediction.len()).map(|place| (common(place), place >= earliest, Reverse(place)));
    let (found, _, Reverse(place)) = places.max()?;
    (found >= enough).then_some(place)
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
            ..Drafter::new(&[])
        };
        let count = drafter.draft(&mut tokens, 0, &[], limit);
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
        let mut drafter = Drafter::new(&[]);
        let draft = |drafter: &mut Drafter| drafter.draft(&mut vec![1, 2, 3, 1, 2], 0, &[], 100);
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

    #[test]
    fn a_prediction_is_followed_and_found_again() {
        let prediction = [5, 6, 7, 8, 5, 6, 9, 4];
        let guess = |output: &[Token], earliest| {
            let found = find_predicted(output, &prediction, earliest);
            found.map(|place| prediction[place])
        };
        // From its first token, and wherever all of the output so far is its beginning.
        assert_eq!(guess(&[], 0), Some(5));
        assert_eq!(guess(&[5], 0), Some(6));
        assert_eq!(guess(&[5, 6, 7], 0), Some(8));
        // Something else was said, and then what it goes on with.
        assert_eq!(guess(&[5, 1], 1), None);
        assert_eq!(guess(&[5, 1, 7], 1), None, "one word is not enough");
        assert_eq!(guess(&[5, 1, 7, 8], 1), Some(5));
        // Of two places the one that is still to come; and never backwards if more of the text agrees further on.
        assert_eq!((guess(&[1, 5, 6], 0), guess(&[1, 5, 6], 3)), (Some(7), Some(9)));
        assert_eq!(guess(&[1, 7, 8, 5, 6], 0), Some(9));
        assert_eq!(guess(&prediction, 7), None, "it is over");
        assert_eq!(find_predicted(&[], &[], 0), None);
    }

    #[test]
    fn guesses_of_a_prediction_are_long_at_once_and_counted() {
        let prediction: Vec<Token> = (100..120).collect();
        let mut drafter = Drafter::new(&prediction);
        let mut tokens = vec![1, 2, 100];
        assert_eq!(drafter.draft(&mut tokens, 2, &prediction, 7), 7);
        assert_eq!(tokens[3..], prediction[1..8]);
        drafter.learn(7, 5, 7);
        tokens.truncate(8);
        tokens.extend([3, 3]);
        assert_eq!(
            drafter.draft(&mut tokens, 2, &prediction, 7),
            0,
            "it went its own way"
        );
        tokens.extend([110, 111]);
        assert_eq!(drafter.draft(&mut tokens, 2, &prediction, 7), 6);
        drafter.learn(6, 6, 7);
        let (accepted, rejected) = (11, 2);
        assert_eq!(drafter.predicted(), Predicted { accepted, rejected });
    }
}
