//! Filling in the middle: the control tokens by which a model is given what comes before and after a gap.
//! (Bavarian et al. 2022, "Efficient training of language models to fill in the middle", in its prefix-suffix-middle order.)

use crate::Tokenizer;

/// Spellings in use: in front of what comes before, of what comes after, and of what is asked for.
const SPELLINGS: [[&str; 3]; 4] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
];
/// Tokens that such models write where a file ends.
const ENDS: [&str; 4] = ["<|fim_pad|>", "<|file_sep|>", "<|repo_name|>", "<file_sep>"];

/// The tokens of a vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Infill {
    pub prefix: u32,
    pub suffix: u32,
    pub middle: u32,
    /// Tokens that end what is filled in, beside those that end any text.
    pub ends: Vec<u32>,
}

impl Tokenizer {
    /// The tokens for filling in, if the vocabulary has them.
    pub fn infill(&self) -> Option<Infill> {
        let mut all = SPELLINGS.iter().filter_map(|[prefix, suffix, middle]| {
            Some(Infill {
                prefix: self.single_token(prefix)?,
                suffix: self.single_token(suffix)?,
                middle: self.single_token(middle)?,
                ends: ENDS.iter().filter_map(|end| self.single_token(end)).collect(),
            })
        });
        all.next()
    }
}
