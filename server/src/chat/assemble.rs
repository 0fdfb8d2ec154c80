//! One choice's text out of its tokens: whole characters only, up to the first stop string, with the likelihoods of
//! exactly the tokens that the text shows.

use std::collections::VecDeque;

use rempart_engine::{Logprob, Sampled};
use rempart_text::{Detokenizer, StopMatcher, StopOutcome, Tokenizer};

use super::Rules;

/// A token with its likelihood and where its text begins.
#[derive(Debug, Clone)]
pub struct Entry {
    pub token: u32,
    /// `None` for the first token of a prompt.
    pub logprob: Option<f32>,
    pub top: Vec<Logprob>,
    /// In characters from the beginning of the choice's text.
    pub offset: usize,
}

/// What one event adds to a choice.
#[derive(Debug, Default)]
pub struct Piece {
    pub text: String,
    pub entries: Vec<Entry>,
    /// A stop string was found: the text is complete.
    pub stopped: bool,
}

/// The state of one choice's text.
pub struct Assembler {
    vocab_size: usize,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    logprobs: bool,
    /// Tokens still to come before a stop string may end the text.
    unstoppable: usize,
    /// Tokens whose text may still be held back by the matcher.
    held: VecDeque<Entry>,
    /// Characters the detokenizer gave, and of these the ones the matcher let through.
    given: usize,
    shown: usize,
}

impl Assembler {
    /// `offset`: characters of echoed prompt before this text.
    pub fn new(tokenizer: &Tokenizer, rules: &Rules, offset: usize) -> Result<Self, rempart_text::Error> {
        Ok(Self {
            vocab_size: tokenizer.vocab_size(),
            detokenizer: Detokenizer::continuing(tokenizer, rules.skip_special_tokens),
            matcher: StopMatcher::new(rules.stops.clone(), rules.include_stop)?,
            logprobs: rules.logprobs.is_some(),
            unstoppable: rules.min_tokens,
            held: VecDeque::new(),
            given: offset,
            shown: offset,
        })
    }

    /// Adds a token.
    pub fn token(&mut self, sampled: Sampled) -> Result<Piece, rempart_text::Error> {
        self.unstoppable = self.unstoppable.saturating_sub(1);
        if let Some(logprobs) = sampled.logprob.filter(|_| self.logprobs) {
            let (logprob, top) = (Some(logprobs.chosen), logprobs.top);
            self.held.push_back(Entry {
                token: sampled.token,
                logprob,
                top,
                offset: self.given,
            });
        }
        // Models pad their output layer: such a number can be sampled, and means nothing.
        if sampled.token as usize >= self.vocab_size {
            return Ok(Piece::default());
        }
        let text = self.detokenizer.push(sampled.token)?;
        Ok(self.text(&text))
    }

    /// Ends the text: gives out what was held back.
    pub fn finish(&mut self) -> Piece {
        let tail = self.detokenizer.finish();
        let mut piece = self.text(&tail);
        if !piece.stopped {
            let rest = self.matcher.finish();
            self.shown += rest.chars().count();
            piece.text.push_str(&rest);
            piece.entries.extend(self.held.drain(..));
        }
        piece
    }

    fn text(&mut self, text: &str) -> Piece {
        if text.is_empty() {
            return Piece::default();
        }
        self.given += text.chars().count();
        let (text, stopped) = if self.unstoppable > 0 {
            (self.matcher.pass(text), false)
        } else {
            match self.matcher.push(text) {
                StopOutcome::Text(text) => (text, false),
                StopOutcome::Stopped { text, .. } => (text, true),
            }
        };
        self.shown += text.chars().count();
        let visible = self
            .held
            .iter()
            .take_while(|entry| entry.offset < self.shown)
            .count();
        let entries = self.held.drain(..visible).collect();
        Piece {
            text,
            entries,
            stopped,
        }
    }
}

/// The entries of an echoed prompt, with the likelihoods the engine gave for it.
pub fn prompt_entries(
    tokenizer: &Tokenizer,
    skip_special: bool,
    prompt: &[u32],
    logprobs: Vec<Option<rempart_engine::Logprobs>>,
) -> Result<Vec<Entry>, rempart_text::Error> {
    let mut detokenizer = Detokenizer::new(tokenizer, skip_special);
    let mut offset = 0;
    let mut entries = Vec::with_capacity(prompt.len());
    for (token, logprobs) in prompt.iter().zip(logprobs) {
        let (logprob, top) = logprobs.map_or((None, Vec::new()), |l| (Some(l.chosen), l.top));
        entries.push(Entry {
            token: *token,
            logprob,
            top,
            offset,
        });
        if (*token as usize) < tokenizer.vocab_size() {
            offset += detokenizer.push(*token)?.chars().count();
        }
    }
    Ok(entries)
}
