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

use crate::request::Token;

/// Words that must recur before what followed them is guessed; the longest that recurs is taken.
const NGRAM_MAX: usize = 3;
const NGRAM_MIN: usize = 2;
/// How far back they are looked for, tokens.
const LOOKBACK_MAX: usize = 16_384;
/// Guesses of a sequence whose luck is unknown.
const LENGTH_FIRST: usize = 2;
/// The end of the output that is compared with the prediction, tokens.
const SUFFIX_MAX: usize = 64;
/// How far before and behind the expected place the prediction is searched, tokens.
const WINDOW: usize = 4096;
/// Chances that pass unused after many wrong guesses in a row, at most; and after searches that found nothing.
const PAUSE_MAX: usize = 32;
const SEARCH_PAUSE_MAX: usize = 8;

/// One sequence's luck with its guesses: what they are worth, of each kind.
#[derive(Debug)]
pub(crate) struct Drafter {
    text: Luck,
    prediction: Luck,
    place: Place,
    /// Whether the latest guesses are from the prediction.
    from_prediction: bool,
}

/// How many guesses of one kind are worth their time.
#[derive(Debug)]
struct Luck {
    /// Guesses to make.
    length: usize,
    /// Chances to let pass.
    pause: usize,
    /// The pause that the next miss brings.
    next_pause: usize,
}

/// Where the output was in the prediction when it was last found there: the token at `at` followed `output` tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    at: usize,
    output: usize,
}

impl Luck {
    fn new(length: usize) -> Self {
        Self {
            length,
            pause: 0,
            next_pause: 1,
        }
    }

    /// Whether this chance is one to let pass.
    fn passes(&mut self) -> bool {
        let passes = self.pause > 0;
        self.pause = self.pause.saturating_sub(1);
        passes
    }

    /// A miss: fewer chances are used the longer this goes on.
    fn miss(&mut self, pause_max: usize) {
        self.pause = self.next_pause.min(pause_max);
        // A search that finds nothing does not make wrong guesses dearer.
        self.next_pause = (self.next_pause * 2).min(pause_max.max(self.next_pause));
    }

    /// Takes note of how many guesses were right. Some: as many and one more next time, or twice as many if all were.
    fn learn(&mut self, drafted: usize, accepted: usize, length_max: usize) {
        if accepted == 0 {
            self.length = 1;
            return self.miss(PAUSE_MAX);
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

impl Drafter {
    pub(crate) fn new() -> Self {
        Self {
            text: Luck::new(LENGTH_FIRST),
            // Whoever predicts an answer is trusted from the start.
            prediction: Luck::new(usize::MAX),
            place: Place::default(),
            from_prediction: false,
        }
    }

    /// Appends up to `limit` guesses to the tokens and returns how many. The first `prompt` of the tokens are the prompt.
    pub(crate) fn draft(
        &mut self,
        tokens: &mut Vec<Token>,
        prompt: usize,
        prediction: &[Token],
        limit: usize,
    ) -> usize {
        if limit == 0 {
            return 0;
        }
        if !prediction.is_empty()
            && let Some(at) = self.predict(&tokens[prompt..], prediction)
        {
            self.from_prediction = true;
            let count = self.prediction.length.min(limit).min(prediction.len() - at);
            tokens.extend(&prediction[at..at + count]);
            return count;
        }
        self.from_prediction = false;
        if self.text.passes() {
            return 0;
        }
        let Some(follows) = find(tokens) else {
            return 0;
        };
        let count = self.text.length.min(limit);
        // The copy may run into what it has copied: a text that repeats itself goes on doing so.
        for index in follows..follows + count {
            tokens.push(tokens[index]);
        }
        count
    }

    /// Where the output goes on in the prediction, if that has more there.
    fn predict(&mut self, output: &[Token], prediction: &[Token]) -> Option<usize> {
        if self.prediction.passes() {
            return None;
        }
        let expected = self.place.at + output.len() - self.place.output;
        let found = if follows(output, prediction, expected) {
            Some(expected)
        } else {
            find_predicted(output, prediction, expected)
        };
        match found {
            Some(at) => {
                let output = output.len();
                self.place = Place { at, output };
            }
            None => self.prediction.miss(SEARCH_PAUSE_MAX),
        }
        found
    }

    /// Takes note of how many guesses were right.
    pub(crate) fn learn(&mut self, drafted: usize, accepted: usize, length_max: usize) {
        let luck = if self.from_prediction {
            &mut self.prediction
        } else {
            &mut self.text
        };
        luck.learn(drafted, accepted, length_max);
    }

    /// Whether the latest guesses are from the prediction.
    pub(crate) fn is_predicting(&self) -> bool {
        self.from_prediction
    }
}

/// How much of the output's end is also in front of a place in the prediction, tokens.
fn common(output: &[Token], prediction: &[Token], place: usize) -> usize {
    let before = prediction[..place].iter().rev();
    let pairs = before.zip(output.iter().rev()).take(SUFFIX_MAX);
    pairs.take_while(|(a, b)| a == b).count()
}

/// What is enough to be sure of a place: a few words, or all there is.
fn enough(output: &[Token]) -> usize {
    NGRAM_MIN.min(output.len())
}

/// Whether the output goes on at this place, if the prediction has more there.
fn follows(output: &[Token], prediction: &[Token], place: usize) -> bool {
    place < prediction.len() && common(output, prediction, place) >= enough(output)
}

/// Where around the expected place most of the output's end, or all of it, is in front; of several such places the first that
/// is not before the expected one, or else the first.
fn find_predicted(output: &[Token], prediction: &[Token], expected: usize) -> Option<usize> {
    let places = expected.saturating_sub(WINDOW)..expected.saturating_add(WINDOW).min(prediction.len());
    let ranked = places.map(|place| {
        let common = common(output, prediction, place);
        (common, place >= expected, Reverse(place))
    });
    let (found, _, Reverse(place)) = ranked.max()?;
    (found >= enough(output)).then_some(place)
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
            text: Luck::new(limit),
            ..Drafter::new()
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
        let mut drafter = Drafter::new();
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

    /// What follows the output in the prediction, which is found as far as that goes, for each next token of the answer.
    fn guesses(answer: &[Token], prediction: &[Token]) -> usize {
        let mut drafter = Drafter::new();
        let (mut output, mut right) = (vec![answer[0]], 0);
        while output.len() < answer.len() {
            let mut tokens = [&[1, 2], output.as_slice()].concat();
            let from = tokens.len();
            let drafted = drafter.draft(&mut tokens, 2, prediction, 4);
            let accepted = tokens[from..]
                .iter()
                .zip(&answer[output.len()..])
                .take_while(|(guess, token)| guess == token)
                .count();
            if drafted > 0 {
                drafter.learn(drafted, accepted, 4);
            }
            right += if drafter.is_predicting() { accepted } else { 0 };
            let end = (output.len() + accepted + 1).min(answer.len());
            output = answer[..end].to_vec();
        }
        right
    }

    #[test]
    fn guesses_of_a_prediction_are_long_at_once() {
        let prediction: Vec<Token> = (100..200).collect();
        let mut drafter = Drafter::new();
        let mut tokens = vec![1, 2, 100];
        assert_eq!(drafter.draft(&mut tokens, 2, &prediction, 7), 7);
        assert_eq!(tokens[3..], prediction[1..8]);
        // Of five tokens four are guesses; the first comes without.
        assert!(guesses(&prediction, &prediction) >= 78);
        // A word more, one less, another: each costs a few guesses.
        let mut changed = prediction.clone();
        changed.insert(30, 7);
        changed.remove(60);
        changed[80] = 8;
        let right = guesses(&changed, &prediction);
        assert!((50..78).contains(&right), "{right}");
    }

    /// Where a text repeats itself, the place moves on with the output all the same.
    #[test]
    fn a_long_run_is_left_where_it_ends() {
        let mut prediction = vec![7; 300];
        prediction.extend(100..200);
        let right = guesses(&prediction, &prediction);
        assert!(right >= 315, "{right} of 399");
    }

    #[test]
    fn a_useless_prediction_is_soon_left_alone() {
        let (answer, prediction): (Vec<Token>, Vec<Token>) = ((0..2000).collect(), (5000..9000).collect());
        let mut drafter = Drafter::new();
        let searched = (1..answer.len()).filter(|end| {
            let mut tokens = answer[..*end].to_vec();
            let before = drafter.prediction.pause;
            drafter.draft(&mut tokens, 0, &prediction, 4);
            before == 0
        });
        let searched = searched.count();
        assert!((200..300).contains(&searched), "{searched}");
        // Two words that are in both, again and again, and never the same behind them.
        let answer: Vec<Token> = (0..900).flat_map(|at| [1, 2, 10 + at]).collect();
        let prediction: Vec<Token> = (0..900).flat_map(|at| [1, 2, 5000 + at]).collect();
        let mut drafter = Drafter::new();
        let mut wrong = 0;
        for end in 1..answer.len() {
            let mut tokens = answer[..end].to_vec();
            let drafted = drafter.draft(&mut tokens, 0, &prediction, 4);
            let right = tokens[end..].iter().zip(&answer[end..]);
            let accepted = right.take_while(|(guess, token)| guess == token).count();
            if drafted > 0 && drafter.is_predicting() {
                drafter.learn(drafted, accepted, 4);
                wrong += usize::from(accepted == 0);
            }
        }
        assert!(wrong < 120, "{wrong}");
    }
}
