//! What is asked: texts made of words, texts out of a file, or texts as long as a trace says.

mod file;
mod synthetic;
mod trace;
mod words;

pub(crate) use file::Listed;
pub(crate) use synthetic::{Lengths, Synthetic};
pub(crate) use trace::Trace;
pub(crate) use words::{Words, unique};

use anyhow::ensure;

/// What one request asks. Its texts go to the server and nowhere else.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub prompt: String,
    /// What is to be ranked by the prompt; empty where nothing is.
    pub documents: Vec<String>,
    /// About how many tokens all texts are.
    pub input_tokens: u32,
    pub output_tokens: u32,
}

/// A source of requests.
pub(crate) enum Dataset {
    Synthetic(Synthetic),
    Listed(Listed),
    Trace(Trace),
}

impl Dataset {
    /// What the `index`th request of a step asks. The same is asked each time, but for synthetic texts, which differ by step so
    /// that the second does not find the first one's in a cache.
    pub(crate) fn item(&self, step: usize, index: usize) -> Item {
        match self {
            Self::Synthetic(synthetic) => synthetic.item(step, index),
            Self::Listed(listed) => listed.item(index),
            Self::Trace(trace) => trace.item(step, index),
        }
    }

    /// Of what a file asked for, in its order; `None` where texts are made.
    pub(crate) fn digest(&self) -> Option<&str> {
        match self {
            Self::Synthetic(_) => None,
            Self::Listed(listed) => Some(&listed.digest),
            Self::Trace(trace) => Some(&trace.digest),
        }
    }

    /// Output tokens that a step's requests may have together.
    pub(crate) fn output_tokens(&self, requests: usize) -> u64 {
        match self {
            Self::Synthetic(synthetic) => synthetic.output_tokens(requests),
            Self::Listed(listed) => listed.output_tokens(requests),
            Self::Trace(trace) => trace.output_tokens(requests),
        }
    }

    /// Takes what a server has told of its tokenizer.
    pub(crate) fn calibrate(&mut self, fitted: Words) {
        match self {
            Self::Synthetic(synthetic) => synthetic.words = fitted,
            Self::Trace(trace) => trace.words = fitted,
            Self::Listed(_) => {}
        }
    }

    /// Whether its texts are made of words to a length.
    pub(crate) fn is_made(&self) -> bool {
        !matches!(self, Self::Listed(_))
    }
}

/// Refuses a number of tokens that no model takes.
fn check_tokens(what: &str, tokens: u64, most: u32) -> anyhow::Result<u32> {
    ensure!(
        (1..=u64::from(most)).contains(&tokens),
        "{what}: {tokens} tokens, where 1 to {most} can be"
    );
    Ok(tokens as u32)
}
