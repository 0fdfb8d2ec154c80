//! A tokenizer rebuilt from GGUF metadata.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::added::{Added, AddedTokens};
use super::around::Around;
use super::pieces::{Decoding, Pieces};
use super::pipeline::{CratePipeline, Pipeline};
use super::scored::Scored;
use super::{Inner, Roles, VOCAB_MAX};
use crate::{Error, GgufVocab};

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const NORMAL: i32 = 1;

/// The values of `tokenizer.ggml.pre` that are understood.
pub const KNOWN_PRE_TOKENIZERS: [&str; 5] = ["default", "gpt-2", "llama-bpe", "qwen2", "smollm"];

/// Words of Llama 3: digits in threes.
pub(super) const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Qwen 2 and 3: digits one by one.
pub(super) const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The kind of a tokenizer decides what absent keys mean.
struct Kind {
    pipeline: Pipeline,
    decoding: Decoding,
    adds_bos: bool,
}

pub(super) fn load(vocab: &GgufVocab) -> Result<Inner, Error> {
    let types = check(vocab)?;
    let kind = match vocab.model.as_str() {
        "gpt2" => byte_level(vocab, &types)?,
        "llama" => sentence_piece(vocab, &types)?,
        other => {
            return Err(Error::Unsupported(format!(
                "model {other:?}; known: \"gpt2\", \"llama\""
            )));
        }
    };
    let Kind {
        pipeline,
        decoding,
        adds_bos,
    } = kind;
    let mut added: Vec<Added> = types
        .iter()
        .zip(&vocab.tokens)
        .enumerate()
        .filter(|(_, (kind, _))| matches!(**kind, CONTROL | UNKNOWN | USER_DEFINED))
        .map(|(id, (kind, token))| Added::plain(id as u32, token.clone(), *kind != USER_DEFINED))
        .collect();
    if matches!(pipeline, Pipeline::Scored(_)) {
        // The converter writes blanks here where SentencePiece has "▁"; blanks of a text are merged by their scores.
        for token in added
            .iter_mut()
            .filter(|token| token.content.trim_matches(' ').is_empty())
        {
            token.content = token.content.replace(' ', "▁");
        }
    }
    let bytes = types.iter().zip(&vocab.tokens).map(|(kind, token)| {
        Some(if matches!(*kind, CONTROL | UNKNOWN | USER_DEFINED) {
            decoding.added_bytes(token)
        } else {
            decoding.bytes(token)
        })
    });
    let pieces = Pieces::new(bytes, decoding.lead)?;
    let own = (types.iter().zip(&vocab.tokens))
        .filter(|(kind, _)| is_spelt(**kind))
        .map(|(_, token)| token.as_str());
    let one = |wanted: bool, id: Option<u32>| -> Vec<u32> { id.filter(|_| wanted).into_iter().collect() };
    let prefix = one(vocab.add_bos.unwrap_or(adds_bos), vocab.bos);
    let suffix = one(vocab.add_eos.unwrap_or(false), vocab.eos);
    Ok(Inner {
        token_bytes_max: pipeline.token_bytes_max(own, &added, ToOwned::to_owned),
        added: AddedTokens::new(added, vocab.tokens.len(), vocab.unknown, ToOwned::to_owned)?,
        pipeline,
        pieces,
        alone: Around::single(&prefix, &suffix),
        pair: None,
        prefix,
        suffix,
        roles: Roles {
            bos: vocab.bos,
            eos: vocab.eos,
            unknown: vocab.unknown,
            padding: vocab.padding,
        },
    })
}

/// Whether the model itself spells text with tokens of this kind.
fn is_spelt(kind: i32) -> bool {
    !matches!(kind, CONTROL | UNKNOWN)
}

/// The sizes and ids agree; returns a type for every token.
fn check(vocab: &GgufVocab) -> Result<Vec<i32>, Error> {
    let size = vocab.tokens.len();
    if size == 0 || size > VOCAB_MAX {
        return Err(Error::Load(format!("{size} tokens, expected 1 to {VOCAB_MAX}")));
    }
    let mut types = match &vocab.token_types {
        Some(types) if types.len() == size => types.clone(),
        Some(types) => {
            return Err(Error::Load(format!(
                "{} token types for {size} tokens",
                types.len()
            )));
        }
        None => vec![NORMAL; size],
    };
    let roles = [
        ("bos", vocab.bos),
        ("eos", vocab.eos),
        ("unknown", vocab.unknown),
        ("padding", vocab.padding),
    ];
    for (role, id) in roles {
        let Some(id) = id else { continue };
        let kind = types.get_mut(id as usize).ok_or_else(|| {
            Error::Load(format!(
                "the {role} token {id} is not in the vocabulary of {size} tokens"
            ))
        })?;
        // Files without types, and some with, leave these as ordinary tokens.
        if *kind != UNKNOWN {
            *kind = CONTROL;
        }
    }
    Ok(types)
}

fn byte_level(vocab: &GgufVocab, types: &[i32]) -> Result<Kind, Error> {
    let merges = vocab.merges.as_deref().unwrap_or_default();
    if merges.is_empty() {
        return Err(Error::Load("a \"gpt2\" vocabulary without merges".to_owned()));
    }
    let (mut tokens, mut longest) = (Vocab::with_capacity(vocab.tokens.len()), 0);
    for (id, token) in vocab.tokens.iter().enumerate() {
        if is_spelt(types[id]) {
            longest = longest.max(token.len());
            tokens.entry(token.clone()).or_insert(id as u32);
        }
    }
    let mut pairs = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        // The builder looks all three tokens up, and has room for none that is longer than the longest.
        let pair = merge
            .split_once(' ')
            .filter(|(left, right)| left.len() + right.len() <= longest);
        let (left, right) = pair.ok_or_else(|| Error::Load(format!("merge {index} names no tokens")))?;
        pairs.push((left.to_owned(), right.to_owned()));
    }
    let pre = Pre::named(vocab.pre.as_deref())?;
    let model = BPE::builder()
        .vocab_and_merges(tokens, pairs)
        .ignore_merges(pre.whole_words)
        .build()
        .map_err(|error| Error::Load(error.to_string()))?;
    Ok(Kind {
        // Of the added tokens only the normalized ones matter to it, and a GGUF file has none.
        pipeline: Pipeline::Crate(Box::new(CratePipeline::new(
            pre.normalizer,
            Some(pre.words),
            ModelWrapper::BPE(model),
            &[],
        ))),
        decoding: Decoding::byte_level(),
        adds_bos: pre.adds_bos,
    })
}

fn sentence_piece(vocab: &GgufVocab, types: &[i32]) -> Result<Kind, Error> {
    let space_prefix = vocab.add_space_prefix.unwrap_or(true);
    Ok(Kind {
        pipeline: Pipeline::Scored(Scored::new(vocab, types, space_prefix)?),
        decoding: Decoding::sentence_piece(space_prefix),
        adds_bos: true,
    })
}

/// What a name of a pre-tokenizer stands for.
struct Pre {
    normalizer: Option<NormalizerWrapper>,
    words: PreTokenizerWrapper,
    /// A word that is a token stays whole, whatever the merges say.
    whole_words: bool,
    adds_bos: bool,
}

impl Pre {
    fn named(name: Option<&str>) -> Result<Self, Error> {
        let gpt2 = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true));
        let plain = |words| Self {
            normalizer: None,
            words,
            whole_words: false,
            adds_bos: false,
        };
        Ok(match name.unwrap_or("default") {
            "default" | "gpt-2" => plain(gpt2),
            "smollm" => {
                let digits = PreTokenizerWrapper::Digits(Digits::new(true));
                plain(PreTokenizerWrapper::Sequence(Sequence::new(vec![digits, gpt2])))
            }
            "llama-bpe" => Self {
                whole_words: true,
                adds_bos: true,
                ..plain(words(LLAMA3_WORDS)?)
            },
            "qwen2" => Self {
                normalizer: Some(NormalizerWrapper::NFC(NFC)),
                ..plain(words(QWEN2_WORDS)?)
            },
            other => {
                let known = KNOWN_PRE_TOKENIZERS.join(", ");
                return Err(Error::Unsupported(format!(
                    "pre-tokenizer {other:?}; known: {known}"
                )));
            }
        })
    }
}

/// Words by a regular expression, then bytes as printable characters.
fn words(pattern: &str) -> Result<PreTokenizerWrapper, Error> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .map_err(|error| Error::Load(format!("pre-tokenizer: {error}")))?;
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(vec![
        PreTokenizerWrapper::Split(split),
        PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)),
    ])))
}
