//! The model as the HTTP side sees it.

use rempart_text::{Infill, Tokenizer};

use crate::chat::template::Chat;
use crate::engine_thread::EngineHandle;
use crate::grammar::Grammars;
use crate::http::error::ApiError;

/// A loaded model and the engine that runs it. After loading nothing in it changes.
pub struct Model {
    /// What clients may ask for; the first is what answers say.
    pub names: Vec<String>,
    pub tokenizer: Tokenizer,
    /// `None` for a base model: it completes, and cannot chat.
    pub chat: Option<Chat>,
    /// `None` for a model that can't fill in.
    pub infill: Option<Infill>,
    /// Tokens of prompt and answer together.
    pub context_length: usize,
    pub vocab_size: usize,
    pub eos_tokens: Vec<u32>,
    /// The formats that answers can follow.
    pub grammars: Grammars,
    /// Unix time in seconds.
    pub created: i64,
    pub engine: EngineHandle,
}

impl Model {
    /// The name that answers carry.
    pub fn id(&self) -> &str {
        &self.names[0]
    }

    /// Refuses any name but this model's. Requests reach it by their model's name, so that no other should come.
    pub fn check_name(&self, asked: &str) -> Result<(), ApiError> {
        if self.names.iter().any(|name| name == asked) {
            return Ok(());
        }
        Err(ApiError::model_not_found(asked, &self.names))
    }

    /// A token's bytes; empty for a number outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.tokenizer
            .token_bytes(token)
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }
}
