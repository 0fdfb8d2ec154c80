//! A tokenizer from a `tokenizer.json`.
//!
//! The file comes from strangers and its parts are code: what it may ask for is bounded before the `tokenizers` crate
//! sees it. Regular expressions run in `fancy-regex`, which gives up after a fixed number of steps.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::{
    Encoding, Model, ModelWrapper, NormalizedString, Normalizer, PostProcessor, PostProcessorWrapper, Token,
};

use super::added::{Added, AddedTokens};
use super::around::Around;
use super::pieces::{Decoding, Pieces};
use super::pipeline::{CratePipeline, Pipeline};
use super::{Inner, Roles, check_id};
use crate::Error;

/// The largest file read; Gemma's has 33 MB.
const BYTES_MAX: usize = 128 << 20;
/// Regular expressions and other strings in the processing steps.
const STEP_STRING_MAX: usize = 4096;
/// Normalizers, pre-tokenizers and decoders, nested ones included.
const STEPS_MAX: usize = 64;
/// The product of the lengths of all replacements, which bounds how much longer they can make a text.
const GROWTH_MAX: usize = 256;

/// The parts of the file in which its steps stand, without vocabulary and merges.
#[derive(serde::Deserialize)]
struct Steps {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    model: Option<UnknownToken>,
}

/// How each kind of model names its unknown token.
#[derive(serde::Deserialize)]
struct UnknownToken {
    unk_token: Option<String>,
    unk_id: Option<u32>,
}

pub(super) fn load(bytes: &[u8]) -> Result<Inner, Error> {
    if bytes.len() > BYTES_MAX {
        return Err(Error::Load(format!(
            "{} bytes, the limit is {BYTES_MAX}",
            bytes.len()
        )));
    }
    let steps: Steps = serde_json::from_slice(bytes).map_err(|error| Error::Load(error.to_string()))?;
    check_steps(&steps)?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes)
        .map_err(|error| Error::Load(error.to_string()))?
        .into_inner();
    let model = tokenizer.get_model();
    let ids = model.get_vocab();
    let mut added: Vec<Added> = tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .map(|(id, token)| Added {
            id,
            content: token.content,
            special: token.special,
            normalized: token.normalized,
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
        })
        .collect();
    added.sort_unstable_by_key(|token| token.id);
    let decoding = Decoding::of(tokenizer.get_decoder())?;
    let pieces = pieces(model, &ids, &added, &decoding)?;
    let (prefix, suffix) = surroundings(tokenizer.get_post_processor())?;
    let processor = tokenizer.get_post_processor();
    let alone = Around::seen(processor, 1)?.unwrap_or_else(|| Around::single(&prefix, &suffix));
    let pair = Around::seen(processor, 2)?;
    let of_pair = pair.iter().flat_map(Around::ids);
    if let Some(id) = alone.ids().chain(of_pair).find(|id| *id as usize >= pieces.len()) {
        return Err(Error::Load(format!(
            "the post-processor adds token {id}, which is not in the vocabulary"
        )));
    }
    let id_of = |spelling: &str| {
        let added = added.iter().find(|token| token.content == spelling);
        added.map(|token| token.id).or_else(|| ids.get(spelling).copied())
    };
    let roles = roles(&steps, id_of, &prefix, &suffix);
    let normalizer = tokenizer.get_normalizer().cloned();
    let normalize = |content: &str| normalized(normalizer.as_ref(), content);
    let pre_tokenizer = tokenizer.get_pre_tokenizer().cloned();
    let parts = CratePipeline::new(normalizer.clone(), pre_tokenizer, model.clone(), &added);
    let pipeline = Pipeline::Crate(Box::new(parts));
    Ok(Inner {
        token_bytes_max: pipeline.token_bytes_max(ids.keys().map(String::as_str), &added, normalize),
        added: AddedTokens::new(added, pieces.len(), roles.unknown, normalize)?,
        pieces,
        prefix,
        suffix,
        alone,
        pair,
        roles,
        pipeline,
    })
}

fn pieces(
    model: &ModelWrapper,
    ids: &HashMap<String, u32>,
    added: &[Added],
    decoding: &Decoding,
) -> Result<Pieces, Error> {
    let mut size = 0;
    for id in ids.values().copied().chain(added.iter().map(|token| token.id)) {
        size = size.max(check_id(id, "a token")? + 1);
    }
    let mut tokens: Vec<Option<Vec<u8>>> = vec![None; size];
    for (id, token) in tokens.iter_mut().enumerate() {
        *token = model.id_to_token(id as u32).map(|token| decoding.bytes(&token));
    }
    for token in added {
        tokens[token.id as usize] = Some(decoding.added_bytes(&token.content));
    }
    Pieces::new(tokens.into_iter(), decoding.lead)
}

fn normalized(normalizer: Option<&impl Normalizer>, content: &str) -> String {
    let mut text = NormalizedString::from(content);
    match normalizer.map(|normalizer| normalizer.normalize(&mut text)) {
        Some(Err(_)) => content.to_owned(),
        _ => text.get().to_owned(),
    }
}

/// What the post-processor puts before and after a text: seen by giving it one.
fn surroundings(processor: Option<&PostProcessorWrapper>) -> Result<(Vec<u32>, Vec<u32>), Error> {
    let Some(processor) = processor else {
        return Ok((Vec::new(), Vec::new()));
    };
    let text = u32::MAX;
    let encoding = Encoding::from_tokens(vec![Token::new(text, "x".to_owned(), (0, 1))], 0);
    let around = processor
        .process(encoding, None, true)
        .map_err(|error| Error::Load(format!("post-processor: {error}")))?;
    let ids = around.get_ids();
    let place = ids.iter().position(|id| *id == text);
    let place = place.ok_or_else(|| Error::Load("the post-processor drops the text".to_owned()))?;
    Ok((ids[..place].to_vec(), ids[place + 1..].to_vec()))
}

/// The file names no roles: bos is what begins a text, eos what ends it, or the usual spellings.
fn roles(steps: &Steps, id_of: impl Fn(&str) -> Option<u32>, prefix: &[u32], suffix: &[u32]) -> Roles {
    let spelt = |spellings: &[&str]| spellings.iter().find_map(|spelling| id_of(spelling));
    let unknown = steps.model.as_ref().and_then(|model| {
        model
            .unk_token
            .as_ref()
            .and_then(|token| id_of(token))
            .or(model.unk_id)
    });
    Roles {
        bos: prefix
            .first()
            .copied()
            .or_else(|| spelt(&["<|begin_of_text|>", "<bos>", "<s>"])),
        eos: suffix.last().copied().or_else(|| {
            spelt(&[
                "<|im_end|>",
                "<|eot_id|>",
                "<eos>",
                "</s>",
                "<|end_of_text|>",
                "<|endoftext|>",
            ])
        }),
        unknown,
        padding: spelt(&["<pad>", "<|finetune_right_pad_id|>", "[PAD]", "<|endoftext|>"]),
    }
}

fn check_steps(steps: &Steps) -> Result<(), Error> {
    let (mut count, mut growth) = (0, 1);
    for step in [&steps.normalizer, &steps.pre_tokenizer, &steps.decoder]
        .into_iter()
        .flatten()
    {
        check_step(step, &mut count, &mut growth)?;
    }
    Ok(())
}

/// Walks one step and what is nested in it. The JSON reader has bounded the depth.
fn check_step(step: &Value, count: &mut usize, growth: &mut usize) -> Result<(), Error> {
    match step {
        Value::Object(fields) => {
            *count += usize::from(fields.contains_key("type"));
            if *count > STEPS_MAX {
                return Err(Error::Load(format!("over {STEPS_MAX} processing steps")));
            }
            if let Some(content) = fields.get("content").and_then(Value::as_str) {
                *growth = growth.saturating_mul(content.len().max(1));
            }
            if *growth > GROWTH_MAX {
                return Err(Error::Load(
                    "its replacements grow a text without measure".to_owned(),
                ));
            }
            let fields = fields.iter().filter(|(name, _)| *name != "precompiled_charsmap");
            fields
                .map(|(_, field)| field)
                .try_for_each(|field| check_step(field, count, growth))
        }
        Value::Array(items) => items.iter().try_for_each(|item| check_step(item, count, growth)),
        Value::String(text) if text.len() > STEP_STRING_MAX => Err(Error::Load(format!(
            "a string of {} bytes in a processing step",
            text.len()
        ))),
        _ => Ok(()),
    }
}
