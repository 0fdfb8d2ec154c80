//! The most bytes of a client's text that one token can stand for. It gives the fewest tokens that a text can have,
//! from its length alone, so that what is far too long need not be tokenized to be refused.
//!
//! Not every tokenizer has such a bound: one that drops characters, or makes one unknown token of any number of them,
//! has none. All that is not known to keep every character counts as having none.

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::{ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::added::Added;
use super::pieces::{byte_of, byte_token};
use super::pipeline::CratePipeline;

/// Canonical composition leaves at least one byte of four: Greek iota with dialytika and tonos, two bytes, is the
/// worst case and can be written with seven.
const NFC_SHRINK: usize = 4;
/// A character, at most.
const CHARACTER: usize = 4;

/// For the parts of a `tokenizers` tokenizer and the tokens of its model; `normalize` gives the spelling under which an
/// added token is found.
pub(super) fn token_bytes_max<'a>(
    parts: &CratePipeline,
    tokens: impl Iterator<Item = &'a str> + Clone,
    added: &[Added],
    normalize: impl Fn(&str) -> String,
) -> Option<usize> {
    let shrink = parts.normalizer.as_ref().map_or(Some(1), shrink)?;
    let keeps = parts
        .pre_tokenizer
        .as_ref()
        .map_or(Some(Keeps::Characters), keeps)?;
    let ModelWrapper::BPE(model) = &parts.model else {
        return None;
    };
    let model = bpe(model, tokens, keeps)?;
    let longest = added_bytes_max(added, |token| {
        if token.normalized {
            normalize(&token.content).len().max(token.content.len())
        } else {
            token.content.len()
        }
    })?;
    longest.max(model).checked_mul(shrink)
}

/// Of the added tokens that a client's text can yield; those that swallow blanks around them have no bound.
pub(super) fn added_bytes_max(added: &[Added], bytes: impl Fn(&Added) -> usize) -> Option<usize> {
    if added.iter().any(|token| token.lstrip || token.rstrip) {
        return None;
    }
    let own = added.iter().filter(|token| !token.is_control());
    Some(own.map(bytes).max().unwrap_or(1).max(1))
}

/// How many bytes may become one.
fn shrink(normalizer: &NormalizerWrapper) -> Option<usize> {
    match normalizer {
        NormalizerWrapper::NFC(_) => Some(NFC_SHRINK),
        NormalizerWrapper::Prepend(_) => Some(1),
        NormalizerWrapper::Replace(replace) => {
            let config = serde_json::to_value(replace).ok()?;
            let ReplacePattern::String(pattern) = serde_json::from_value(config["pattern"].clone()).ok()?
            else {
                return None;
            };
            let content = replace.content.len();
            (content > 0).then(|| pattern.len().div_ceil(content).max(1))
        }
        NormalizerWrapper::Sequence(steps) => steps
            .as_ref()
            .iter()
            .try_fold(1_usize, |all, step| all.checked_mul(shrink(step)?)),
        _ => None,
    }
}

/// What a pre-tokenizer makes of text that it does not drop.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    Characters,
    /// Each byte is a character of GPT-2's alphabet.
    Bytes,
}

fn keeps(step: &PreTokenizerWrapper) -> Option<Keeps> {
    match step {
        PreTokenizerWrapper::ByteLevel(_) => Some(Keeps::Bytes),
        PreTokenizerWrapper::Digits(_) | PreTokenizerWrapper::Metaspace(_) => Some(Keeps::Characters),
        PreTokenizerWrapper::Split(split) if split.behavior != SplitDelimiterBehavior::Removed => {
            Some(Keeps::Characters)
        }
        PreTokenizerWrapper::Sequence(steps) => {
            let kept: Option<Vec<Keeps>> = steps.as_ref().iter().map(keeps).collect();
            let last = kept?.last().copied();
            let bytes_first = steps
                .as_ref()
                .iter()
                .rev()
                .skip(1)
                .any(|step| keeps(step) == Some(Keeps::Bytes));
            // Steps after the alphabet are in no model's file; what they do to it is not worth knowing.
            if bytes_first {
                None
            } else {
                last.or(Some(Keeps::Characters))
            }
        }
        _ => None,
    }
}

/// Bytes before the pre-tokenizer.
fn bpe<'a>(model: &BPE, tokens: impl Iterator<Item = &'a str> + Clone, keeps: Keeps) -> Option<usize> {
    let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    let plain = affixes
        .iter()
        .all(|affix| affix.as_deref().unwrap_or("").is_empty());
    let longest = match keeps {
        Keeps::Bytes => tokens.clone().map(|token| token.chars().count()).max(),
        Keeps::Characters => tokens.clone().map(str::len).max(),
    };
    let dropped = match keeps {
        Keeps::Bytes => bytes_per_kept(tokens, |token| {
            let mut characters = token.chars();
            characters
                .next()
                .filter(|_| characters.next().is_none())
                .and_then(byte_of)
        }),
        Keeps::Characters if !model.byte_fallback => None,
        Keeps::Characters => bytes_per_kept(tokens, byte_token).filter(|bytes| *bytes == 1),
    };
    let one_by_one = (model.unk_token.is_some() && !model.fuse_unk).then_some(1);
    if !plain {
        return None;
    }
    let longest = longest.unwrap_or(1).max(CHARACTER);
    dropped.or(one_by_one)?.checked_mul(longest)
}

/// How many bytes of a text there may be for each that has a token, the others being dropped: 1 if every byte that
/// occurs in UTF-8 has one; 2 if only first bytes of longer characters are missing, as a character then keeps half.
fn bytes_per_kept<'a>(
    tokens: impl Iterator<Item = &'a str>,
    byte: impl Fn(&str) -> Option<u8>,
) -> Option<usize> {
    let mut spelt = [false; 256];
    for byte in tokens.filter_map(byte) {
        spelt[usize::from(byte)] = true;
    }
    let first_bytes = 0xC2..=0xF4_u8;
    let has = |byte: u8| spelt[usize::from(byte)];
    (0..=0xBF_u8)
        .all(has)
        .then(|| if first_bytes.clone().all(has) { 1 } else { 2 })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tokenizers::normalizers::unicode::{NFC, NFD};
    use tokenizers::{NormalizedString, Normalizer};

    use super::*;
    use crate::{GgufVocab, Segment, Tokenizer};

    fn changed(normalizer: &impl Normalizer, text: char) -> String {
        let mut text = NormalizedString::from(text.to_string());
        normalizer.normalize(&mut text).unwrap();
        text.get().to_owned()
    }

    /// Each composed character is made of the parts it decomposes to, and each part of at most the longest character
    /// that decomposes to it alone; no longer character exists that is not covered by its parts.
    #[test]
    fn composition_leaves_a_byte_of_four() {
        let characters = || (char::MIN..=char::MAX).filter(|character| *character > '\u{7f}');
        let mut longest: HashMap<char, usize> = HashMap::new();
        let mut composed = Vec::new();
        for character in characters() {
            let parts: Vec<char> = changed(&NFD, character).chars().collect();
            match parts.as_slice() {
                [part] => {
                    let longest = longest.entry(*part).or_default();
                    *longest = character.len_utf8().max(*longest);
                }
                _ => composed.push((character, parts)),
            }
        }
        let written = |parts: &[char]| -> usize {
            parts
                .iter()
                .map(|part| longest.get(part).copied().unwrap_or(part.len_utf8()))
                .sum()
        };
        assert!(
            longest
                .iter()
                .all(|(part, bytes)| *bytes <= NFC_SHRINK * part.len_utf8())
        );
        for (character, parts) in composed {
            assert!(character.len_utf8() <= written(&parts), "{character:?}");
            let stays = changed(&NFC, character) == character.to_string();
            assert!(
                !stays || written(&parts) <= NFC_SHRINK * character.len_utf8(),
                "{character:?}"
            );
        }
    }

    fn bound(vocab: &GgufVocab) -> Option<usize> {
        Tokenizer::from_gguf(vocab).unwrap().0.token_bytes_max
    }

    fn byte_level(left_out: &[u8]) -> GgufVocab {
        let alphabet = (0..0x144_u32)
            .filter_map(char::from_u32)
            .filter(|c| byte_of(*c).is_some_and(|byte| !left_out.contains(&byte)));
        let mut tokens: Vec<String> = alphabet.map(String::from).collect();
        tokens.extend(["ab".to_owned(), "ĠĠ".to_owned(), "<|end|>".to_owned()]);
        GgufVocab {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            token_types: Some(
                (0..tokens.len())
                    .map(|id| if id + 1 < tokens.len() { 1 } else { 3 })
                    .collect(),
            ),
            tokens,
            merges: Some(vec!["a b".into(), "Ġ Ġ".into()]),
            ..GgufVocab::default()
        }
    }

    #[test]
    fn a_bound_needs_a_vocabulary_that_spells_everything() {
        assert_eq!(
            bound(&byte_level(&[])),
            Some(CHARACTER),
            "control tokens are not a client's"
        );
        assert_eq!(
            bound(&byte_level(&[0xFF, 0xC0])),
            Some(CHARACTER),
            "no text has these bytes"
        );
        assert_eq!(
            bound(&byte_level(&[0xE2])),
            Some(2 * CHARACTER),
            "the rest of the character stays"
        );
        assert_eq!(bound(&byte_level(&[0x82])), None);
        let mut normalized = byte_level(&[]);
        normalized.pre = Some("qwen2".into());
        assert_eq!(bound(&normalized), Some(CHARACTER * NFC_SHRINK));

        let bytes = (0..=255_u8).map(|byte| format!("<{byte:#04X}>"));
        let tokens: Vec<String> = ["<unk>".to_owned(), "▁▁ab".to_owned()]
            .into_iter()
            .chain(bytes)
            .collect();
        let scored = GgufVocab {
            model: "llama".into(),
            scores: Some(vec![0.0; tokens.len()]),
            token_types: Some((0..tokens.len()).map(|id| [2, 1, 6][id.min(2)]).collect()),
            tokens,
            unknown: Some(0),
            ..GgufVocab::default()
        };
        assert_eq!(bound(&scored), Some(4), "two blanks and two letters");
        let mut fused = scored;
        fused.token_types.as_mut().unwrap()[100] = 5;
        assert_eq!(bound(&fused), None, "unknown characters fuse");
    }

    #[test]
    fn what_tokenizer_files_ask_for_is_known_or_has_no_bound() {
        let file = |normalizer: &str, pre: &str, token: &str| {
            format!(
                r#"{{"added_tokens": [{{"id": 3, "content": "abcdef", "special": false, {token} "single_word": false,
                "normalized": false}}], "normalizer": {normalizer}, "pre_tokenizer": {pre}, "post_processor": null,
                "decoder": {{"type": "Fuse"}}, "model": {{"type": "BPE", "unk_token": "u", "fuse_unk": false,
                "byte_fallback": false, "vocab": {{"a": 0, "b": 1, "u": 2}}, "merges": []}}}}"#
            )
        };
        let (none, plain) = ("null", r#""lstrip": false, "rstrip": false,"#);
        let isolated =
            r#"{"type": "Split", "pattern": {"String": "a"}, "behavior": "Isolated", "invert": false}"#;
        let removed = isolated.replace("Isolated", "Removed");
        let longer = r#"{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}"#;
        let shorter = r#"{"type": "Replace", "pattern": {"String": "aaa"}, "content": "b"}"#;
        let nothing = r#"{"type": "Replace", "pattern": {"String": "a"}, "content": ""}"#;
        let sequence = format!(r#"{{"type": "Sequence", "normalizers": [{longer}, {shorter}]}}"#);
        for (file, expected) in [
            (file(none, none, plain), Some(6)),
            (file(none, isolated, plain), Some(6)),
            (file(none, &removed, plain), None),
            (file(none, r#"{"type": "Whitespace"}"#, plain), None),
            (file(longer, none, plain), Some(6)),
            (file(&sequence, none, plain), Some(18)),
            (file(nothing, none, plain), None),
            (file(r#"{"type": "StripAccents"}"#, none, plain), None),
            (file(none, none, r#""lstrip": true, "rstrip": false,"#), None),
            (
                file(none, none, plain).replace("\"fuse_unk\": false", "\"fuse_unk\": true"),
                None,
            ),
        ] {
            let tokenizer = Tokenizer::from_json(file.as_bytes()).unwrap();
            assert_eq!(tokenizer.0.token_bytes_max, expected, "{file}");
            let text = "aaab  x".repeat(100);
            let ids = tokenizer.encode(&[Segment::Text(&text)], false).unwrap();
            assert!(expected.is_none_or(|max| text.len().div_ceil(max) <= ids.len()));
        }
    }
}
