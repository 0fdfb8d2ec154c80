//! Text of about so many tokens: common words, nearly all of which are one token to the tokenizers in use.

use std::fmt::Write as _;

use rand::Rng;
use rand::seq::IndexedRandom as _;

const WORDS: &[&str] = &[
    "about",
    "above",
    "after",
    "again",
    "air",
    "all",
    "almost",
    "along",
    "also",
    "always",
    "and",
    "animal",
    "answer",
    "around",
    "ask",
    "away",
    "back",
    "because",
    "before",
    "begin",
    "below",
    "between",
    "big",
    "book",
    "both",
    "boy",
    "build",
    "call",
    "came",
    "car",
    "carry",
    "change",
    "city",
    "close",
    "come",
    "country",
    "cut",
    "day",
    "did",
    "do",
    "door",
    "down",
    "each",
    "earth",
    "eat",
    "end",
    "enough",
    "even",
    "every",
    "example",
    "eye",
    "face",
    "family",
    "far",
    "father",
    "feet",
    "few",
    "find",
    "first",
    "follow",
    "food",
    "for",
    "found",
    "four",
    "from",
    "get",
    "girl",
    "give",
    "go",
    "good",
    "great",
    "group",
    "grow",
    "had",
    "hand",
    "hard",
    "has",
    "have",
    "head",
    "hear",
    "help",
    "here",
    "high",
    "home",
    "house",
    "idea",
    "if",
    "important",
    "into",
    "just",
    "keep",
    "kind",
    "know",
    "land",
    "large",
    "last",
    "later",
    "learn",
    "leave",
    "left",
    "letter",
    "life",
    "light",
    "line",
    "list",
    "little",
    "live",
    "long",
    "look",
    "made",
    "make",
    "man",
    "many",
    "may",
    "mean",
    "might",
    "more",
    "most",
    "mother",
    "mountain",
    "move",
    "much",
    "music",
    "must",
    "name",
    "near",
    "need",
    "never",
    "new",
    "next",
    "night",
    "number",
    "of",
    "off",
    "often",
    "old",
    "once",
    "one",
    "only",
    "open",
    "other",
    "over",
    "own",
    "page",
    "paper",
    "part",
    "people",
    "place",
    "plant",
    "play",
    "point",
    "put",
    "question",
    "quick",
    "read",
    "really",
    "right",
    "river",
    "run",
    "said",
    "same",
    "saw",
    "say",
    "school",
    "sea",
    "second",
    "see",
    "sentence",
    "set",
    "should",
    "show",
    "side",
    "small",
    "some",
    "song",
    "soon",
    "sound",
    "spell",
    "start",
    "state",
    "still",
    "stop",
    "story",
    "study",
    "such",
    "take",
    "talk",
    "tell",
    "than",
    "that",
    "them",
    "then",
    "there",
    "these",
    "thing",
    "think",
    "those",
    "thought",
    "three",
    "through",
    "time",
    "together",
    "too",
    "took",
    "tree",
    "try",
    "turn",
    "two",
    "under",
    "until",
    "up",
    "use",
    "very",
    "walk",
    "want",
    "watch",
    "water",
    "way",
    "well",
    "went",
    "were",
    "what",
    "when",
    "where",
    "which",
    "while",
    "white",
    "who",
    "why",
    "will",
    "with",
    "without",
    "word",
    "work",
    "world",
    "would",
    "write",
    "year",
    "young",
    "your",
];

/// How words become tokens: `tokens = fixed + per_word * words`, the fixed ones being those of a chat template and the like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Words {
    pub per_word: f64,
    pub fixed: f64,
}

impl Words {
    /// Where no server has told: a token for each word.
    pub(crate) const APPROXIMATE: Self = Self {
        per_word: 1.0,
        fixed: 0.0,
    };

    /// From two prompts of known words that a server has counted. `None` where it counts nothing that makes sense.
    pub(crate) fn fitted(first: (usize, u32), second: (usize, u32)) -> Option<Self> {
        let words = second.0 as f64 - first.0 as f64;
        let per_word = (f64::from(second.1) - f64::from(first.1)) / words;
        let fixed = f64::from(first.1) - per_word * first.0 as f64;
        (words > 0.0 && (0.5..=8.0).contains(&per_word)).then_some(Self { per_word, fixed })
    }

    /// Words of a whole prompt of as many tokens; at least one.
    pub(crate) fn of_prompt(&self, tokens: u32) -> usize {
        (((f64::from(tokens) - self.fixed) / self.per_word).round() as usize).max(1)
    }

    /// Words of a part of a prompt.
    pub(crate) fn of_part(&self, tokens: u32) -> usize {
        (f64::from(tokens) / self.per_word).round() as usize
    }
}

/// Appends words, each with a blank in front but for the first of a text.
pub(super) fn write(text: &mut String, rng: &mut impl Rng, words: usize) {
    for _ in 0..words {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS.choose(rng).copied().unwrap_or("word"));
    }
}

/// Words that no other text begins with, so that no cache of prefixes knows them.
pub(crate) fn unique(rng: &mut impl Rng, words: usize) -> String {
    let mut text = String::with_capacity(words * 6 + 16);
    // Writing to a text can't fail.
    let _ = write!(text, "{:07}", rng.random_range(0..10_000_000_u32));
    write(&mut text, rng, words.saturating_sub(1));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{self, Use};

    #[test]
    fn a_line_through_two_counts_gives_words() {
        let words = Words::fitted((40, 62), (240, 302)).unwrap();
        assert!((words.per_word - 1.2).abs() < 1e-9 && (words.fixed - 14.0).abs() < 1e-9);
        assert_eq!(words.of_prompt(302), 240);
        assert_eq!(words.of_prompt(1), 1);
        assert_eq!(words.of_part(12), 10);
        assert_eq!(Words::fitted((40, 10), (240, 10)), None);
        assert_eq!(Words::fitted((40, 10), (40, 20)), None);
    }

    #[test]
    fn texts_have_their_words_and_a_seed_repeats_them() {
        let text = |index| unique(&mut rng::of(7, Use::Prompt, index), 100);
        assert_eq!(text(1).split(' ').count(), 100);
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
