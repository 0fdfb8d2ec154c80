//! What one choice says out of its tokens: whole characters only, the parts told apart, content up to the first stop string,
//! with the likelihoods of exactly the tokens that were told.

use std::collections::VecDeque;

use rempart_engine::{Logprob, Sampled};
use rempart_text::{Detokenizer, Part, Reader, StopMatcher, StopOutcome, Tokenizer};

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

/// Something that a choice says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Content(String),
    Reasoning(String),
    /// The choice's call of this number begins.
    Call {
        index: usize,
        id: String,
        name: String,
    },
    /// More arguments of a call.
    Arguments {
        index: usize,
        text: String,
    },
}

/// What one event adds to a choice.
#[derive(Debug, Default)]
pub struct Piece {
    pub said: Vec<Said>,
    pub entries: Vec<Entry>,
    /// The stop string that was found, by its number: the choice is complete.
    pub stop: Option<usize>,
}

impl Piece {
    /// Whether there is nothing to tell.
    pub fn is_silent(&self) -> bool {
        self.said.is_empty() && self.entries.is_empty() && self.stop.is_none()
    }
}

/// The state of one choice.
pub struct Assembler {
    vocab_size: usize,
    detokenizer: Detokenizer,
    reader: Reader,
    matcher: StopMatcher,
    logprobs: bool,
    short_ids: bool,
    /// Tokens still to come before a stop string may end the content.
    unstoppable: usize,
    /// Tokens whose text may still be held back.
    held: VecDeque<Entry>,
    /// Characters the detokenizer gave, and of these the ones that were told or passed over.
    given: usize,
    told: usize,
    calls: usize,
    reasoning_tokens: usize,
}

impl Assembler {
    /// `offset`: characters of echoed prompt before this text.
    pub fn new(tokenizer: &Tokenizer, rules: &Rules, offset: usize) -> Result<Self, rempart_text::Error> {
        let reading = &rules.reading;
        let detokenizer = Detokenizer::continuing(tokenizer, rules.skip_special_tokens);
        Ok(Self {
            vocab_size: tokenizer.vocab_size(),
            detokenizer: detokenizer.showing(reading.shown.clone()),
            reader: Reader::new(reading.reasoning, reading.calls.clone(), reading.begun),
            matcher: StopMatcher::new(rules.stops.clone(), rules.include_stop)?,
            logprobs: rules.logprobs.is_some(),
            short_ids: reading.short_ids,
            unstoppable: rules.min_tokens,
            held: VecDeque::new(),
            given: offset,
            told: offset,
            calls: 0,
            reasoning_tokens: 0,
        })
    }

    /// Calls that were begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Tokens of the reasoning, with its markers.
    pub fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
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
        let reasoned = self.reader.is_reasoning();
        let text = self.detokenizer.push(sampled.token)?;
        let piece = self.text(&text);
        self.reasoning_tokens += usize::from(reasoned || self.reader.is_reasoning());
        Ok(piece)
    }

    /// Ends the choice: gives out what was held back.
    pub fn finish(&mut self) -> Piece {
        let tail = self.detokenizer.finish();
        let mut piece = self.text(&tail);
        if piece.stop.is_none() {
            let parts = self.reader.finish();
            self.parts(parts, &mut piece);
        }
        if piece.stop.is_none() {
            self.release(&mut piece.said);
            piece.entries.extend(self.held.drain(..));
        }
        piece
    }

    fn text(&mut self, text: &str) -> Piece {
        let mut piece = Piece::default();
        if !text.is_empty() {
            self.given += text.chars().count();
            let parts = self.reader.push(text);
            self.parts(parts, &mut piece);
        }
        piece
    }

    fn parts(&mut self, parts: Vec<Part>, piece: &mut Piece) {
        for part in parts {
            if piece.stop.is_some() {
                break;
            }
            let Part::Content(text) = part else {
                self.release(&mut piece.said);
                self.other_part(part, &mut piece.said);
                continue;
            };
            let (text, stop) = if self.unstoppable > 0 {
                (self.matcher.pass(&text), None)
            } else {
                match self.matcher.push(&text) {
                    StopOutcome::Text(text) => (text, None),
                    StopOutcome::Stopped { text, index } => (text, Some(index)),
                }
            };
            self.content(text, &mut piece.said);
            piece.stop = stop;
        }
        let visible = self.held.iter().take_while(|entry| entry.offset < self.told);
        let visible = visible.count();
        piece.entries.extend(self.held.drain(..visible));
    }

    /// A part in which stop strings mean nothing.
    fn other_part(&mut self, part: Part, said: &mut Vec<Said>) {
        match part {
            Part::Content(_) => {}
            Part::Syntax(chars) => self.told += chars,
            Part::Reasoning(text) => {
                self.told += text.chars().count();
                said.push(Said::Reasoning(text));
            }
            Part::Call(name) => {
                said.push(Said::Call {
                    index: self.calls,
                    id: new_id(self.short_ids),
                    name,
                });
                self.calls += 1;
            }
            Part::Arguments(text) => {
                self.told += text.chars().count();
                let index = self.calls.saturating_sub(1);
                said.push(Said::Arguments { index, text });
            }
        }
    }

    /// Gives out what the beginning of a stop string held back.
    fn release(&mut self, said: &mut Vec<Said>) {
        let text = self.matcher.finish();
        self.content(text, said);
    }

    fn content(&mut self, text: String, said: &mut Vec<Said>) {
        if !text.is_empty() {
            self.told += text.chars().count();
            said.push(Said::Content(text));
        }
    }
}

/// An identifier for a call: nine letters and digits where a chat template takes no other.
fn new_id(short: bool) -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    if short {
        unique[..9].to_owned()
    } else {
        format!("call_{unique}")
    }
}

/// The entries of an echoed prompt, with the likelihoods the engine gave for it, and `top` alternatives.
pub fn prompt_entries(
    tokenizer: &Tokenizer,
    skip_special: bool,
    prompt: &[u32],
    scores: &[Option<rempart_engine::Logprobs>],
    top: u32,
) -> Result<Vec<Entry>, rempart_text::Error> {
    let mut detokenizer = Detokenizer::new(tokenizer, skip_special);
    let mut offset = 0;
    let mut entries = Vec::with_capacity(prompt.len());
    for (token, score) in prompt.iter().zip(scores) {
        let best = score.iter().flat_map(|score| &score.top).take(top as usize);
        entries.push(Entry {
            token: *token,
            logprob: score.as_ref().map(|score| score.chosen),
            top: best.copied().collect(),
            offset,
        });
        if (*token as usize) < tokenizer.vocab_size() {
            offset += detokenizer.push(*token)?.chars().count();
        }
    }
    Ok(entries)
}
