//! The vocabulary as the compiler of grammars sees it: the bytes of each token, and the real tokenizer for what is forced.

use llguidance::toktrie::{TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use rempart_text::{Segment, Tokenizer};

pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

impl Vocabulary {
    /// `None` where no token ends a text.
    pub(super) fn new(tokenizer: Tokenizer, vocab_size: usize, eos_tokens: &[u32]) -> Option<Self> {
        let size = u32::try_from(vocab_size).ok()?;
        let info = TokRxInfo::new(size, *eos_tokens.first()?);
        let words: Vec<Vec<u8>> = (0..size).map(|token| word(&tokenizer, token)).collect();
        let trie = TokTrie::from(&info, &words).with_eos_tokens(eos_tokens);
        Some(Self { tokenizer, trie })
    }
}

/// A token's bytes, empty where it has none; those of a control token are marked, as no text is made of it.
fn word(tokenizer: &Tokenizer, token: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(token).unwrap_or_default();
    let mut word = Vec::with_capacity(bytes.len() + 1);
    if tokenizer.is_control(token) {
        word.push(TokTrie::SPECIAL_TOKEN_MARKER);
    }
    word.extend_from_slice(bytes);
    word
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let text = std::str::from_utf8(bytes).ok();
        let tokens = text.and_then(|text| self.tokenizer.encode(&[Segment::Text(text)], false).ok());
        // A tokenizer that begins every text with a blank does not say these bytes.
        let tokens = tokens.filter(|tokens| self.trie.decode_raw(tokens) == bytes);
        tokens.unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }
}
