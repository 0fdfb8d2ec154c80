//! Properties of streams: pieces concatenate to the whole, and stop strings are found across every border.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::OnceLock;

use proptest::prelude::*;
use rempart_text::{Detokenizer, Error, Segment, StopMatcher, StopOutcome, Tokenizer};

fn tokenizers() -> &'static [(&'static str, Tokenizer)] {
    static ALL: OnceLock<Vec<(&str, Tokenizer)>> = OnceLock::new();
    ALL.get_or_init(|| {
        common::TOKENIZERS
            .iter()
            .map(|name| (*name, common::tokenizer(name)))
            .collect()
    })
}

/// Checks a stream against the decode of all ids; returns the text.
fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut stream = Detokenizer::new(tokenizer, skip_special);
    let mut text = String::new();
    for id in ids {
        let piece = stream.push(*id).unwrap();
        // A replacement character is only ever given out for bytes that no further byte could complete.
        text.push_str(&piece);
    }
    text.push_str(&stream.finish());
    assert_eq!(text, tokenizer.decode(ids, skip_special).unwrap());
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pieces_concatenate_to_the_decode(seeds in prop::collection::vec(any::<u32>(), 0..40), skip in any::<bool>()) {
        for (_, tokenizer) in tokenizers() {
            let size = tokenizer.vocab_size() as u32;
            // Half of the ids are from the start of the vocabulary, where control and byte tokens are.
            let ids: Vec<u32> = seeds.iter().map(|seed| if seed % 2 == 0 { seed / 2 % 300 } else { seed % size }).collect();
            let text = streamed(tokenizer, &ids, skip);
            let bytes: Vec<u8> = ids
                .iter()
                .filter(|id| !(skip && tokenizer.is_special(**id)))
                .flat_map(|id| tokenizer.token_bytes(*id).unwrap_or_default())
                .copied()
                .collect();
            // But for a blank at the start, the text is that of the bytes.
            prop_assert!(String::from_utf8_lossy(&bytes).ends_with(&text));
        }
    }

    #[test]
    fn text_survives_encoding_and_streaming(text in any::<String>()) {
        for (name, tokenizer) in tokenizers() {
            let ids = tokenizer.encode(&[Segment::Text(&text)], false).unwrap();
            prop_assert!(ids.iter().all(|id| !tokenizer.is_control(*id)), "{name}");
            let decoded = streamed(tokenizer, &ids, false);
            // NFC in Qwen and "▁" in SentencePiece are not undone.
            if !name.starts_with("qwen") && !text.contains('▁') {
                prop_assert_eq!(&decoded, &text, "{}", name);
            }
        }
    }

    #[test]
    fn a_limit_changes_nothing_but_how_far_is_counted(text in any::<String>(), blanks in 0..400_usize, limit in 0..40_usize) {
        let text = text + &" ".repeat(blanks);
        for (name, tokenizer) in tokenizers() {
            for segment in [Segment::Text(&text), Segment::Markup(&text)] {
                let ids = tokenizer.encode(&[segment], false).unwrap();
                match tokenizer.encode_within(&[segment], false, limit) {
                    Ok(within) => prop_assert!(within == ids && ids.len() <= limit, "{}", name),
                    Err(Error::TooLong { at_least }) => {
                        prop_assert!(limit < at_least && at_least <= ids.len(), "{}", name);
                    }
                    Err(error) => prop_assert!(false, "{}: {}", name, error),
                }
            }
        }
    }

    #[test]
    fn nothing_looks_across_a_blank_after_a_word(
        words in prop::collection::vec("[a-zA-Z0-9'\\.,!_)é日 \t\n\u{301}▁😀-]{0,8}[a-z0-9.!)]", 1..20),
        starts in prop::collection::vec(" [ a-z0-9'é日\u{301}▁]{0,3}", 20),
    ) {
        let parts: Vec<String> = words.iter().zip(&starts).map(|(word, start)| format!("{start}{word}")).collect();
        let cut = ["smollm2.gguf", "gemma3.gguf", "qwen2.5.gguf", "llama3_1.gguf", "llama3_1.json", "qwen3.json"];
        for (name, tokenizer) in tokenizers().iter().filter(|(name, _)| cut.contains(name)) {
            let encode = |text: &str| tokenizer.encode(&[Segment::Text(text)], false).unwrap();
            let apart: Vec<u32> = parts.iter().flat_map(|part| encode(part)).collect();
            prop_assert_eq!(encode(&parts.concat()), apart, "{}", name);
        }
    }

    #[test]
    fn segments_join(cuts in prop::collection::vec("[ a-zé<|>_\n]{0,6}", 0..8)) {
        let whole: String = cuts.concat();
        for (_, tokenizer) in tokenizers() {
            let segments: Vec<Segment<'_>> = cuts.iter().map(|cut| Segment::Markup(cut)).collect();
            prop_assert_eq!(
                tokenizer.encode(&segments, true).unwrap(),
                tokenizer.encode(&[Segment::Markup(&whole)], true).unwrap()
            );
        }
    }

    #[test]
    fn stops_are_found_as_a_naive_search_finds_them(
        text in "[abc]{0,24}",
        stops in prop::collection::vec("[abc]{1,4}", 0..4),
        cuts in prop::collection::vec(0_usize..24, 0..6),
        include in any::<bool>(),
    ) {
        let mut matcher = StopMatcher::new(stops.clone(), include).unwrap();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let (mut given, mut stopped) = (String::new(), None);
        for range in cuts.windows(2) {
            match matcher.push(&text[range[0]..range[1]]) {
                StopOutcome::Text(piece) => given.push_str(&piece),
                StopOutcome::Stopped { text, index } => {
                    given.push_str(&text);
                    stopped = Some(index);
                    break;
                }
            }
            // Only what could still become a stop is held back.
            let held = &text[given.len()..range[1]];
            prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held) && stop.len() > held.len()));
        }
        let ends = stops.iter().enumerate().filter_map(|(index, stop)| Some((text.find(stop)? + stop.len(), stop.len(), index)));
        if let Some((end, len, index)) = ends.min_by_key(|(end, len, index)| (*end, usize::MAX - len, *index)) {
            prop_assert_eq!(stopped.map(|found| stops[found].clone()), Some(stops[index].clone()));
            prop_assert_eq!(given, &text[..if include { end } else { end - len }]);
            prop_assert_eq!(matcher.finish(), "");
        } else {
            prop_assert_eq!(stopped, None);
            prop_assert_eq!(given + &matcher.finish(), text);
        }
    }
}

#[test]
fn a_stop_string_over_many_characters_and_pieces() {
    let mut matcher = StopMatcher::new(vec!["é\n\nUser:".into(), "🙂".into()], false).unwrap();
    assert_eq!(matcher.push("caf"), StopOutcome::Text("caf".into()));
    assert_eq!(matcher.push("é\n\n"), StopOutcome::Text(String::new()));
    assert_eq!(matcher.push("Use"), StopOutcome::Text(String::new()));
    assert_eq!(matcher.push("less é"), StopOutcome::Text("é\n\nUseless ".into()));
    assert_eq!(
        matcher.push("\n\nUser: x"),
        StopOutcome::Stopped {
            text: String::new(),
            index: 0
        }
    );
    assert_eq!(matcher.push("more"), StopOutcome::Text(String::new()));
    assert!(matches!(
        StopMatcher::new(vec![String::new()], false),
        Err(Error::EmptyStop)
    ));
}

#[test]
fn passed_text_can_begin_a_stop_and_not_end_one() {
    let mut matcher = StopMatcher::new(vec!["aa".into(), "b!".into()], false).unwrap();
    assert_eq!(matcher.pass("xaa"), "xa", "the last could begin another");
    assert_eq!(matcher.pass("b"), "a", "and this one, too");
    let stopped = StopOutcome::Stopped {
        text: String::new(),
        index: 1,
    };
    assert_eq!(matcher.push("!"), stopped);
    let mut matcher = StopMatcher::new(vec!["aa".into()], false).unwrap();
    assert_eq!(matcher.pass("aa"), "a");
    let stopped = StopOutcome::Stopped {
        text: String::new(),
        index: 0,
    };
    assert_eq!(matcher.push("a"), stopped, "one that overlaps what was passed");
    assert_eq!(matcher.pass("a"), "");
}

#[test]
fn what_is_far_too_long_is_not_tokenized() {
    // Words over words: a vocabulary that bounds its tokens refuses them unseen, the others after a few.
    for (name, tokenizer) in tokenizers() {
        let text = "some words ".repeat(400_000);
        let error = tokenizer.encode_within(&[Segment::Text(&text)], true, 2000);
        let Err(Error::TooLong { at_least }) = error else {
            panic!("{name}");
        };
        assert!(at_least > 2000 && at_least < 400_000, "{name}: {at_least}");
    }
}

#[test]
fn a_beginning_drops_the_blank_that_a_continuation_keeps() {
    let (_, llama) = tokenizers()
        .iter()
        .find(|(name, _)| *name == "llama2.gguf")
        .unwrap();
    let ids = llama.encode(&[Segment::Text("brown fox")], false).unwrap();
    assert_eq!(streamed(llama, &ids, true), "brown fox");
    let mut stream = Detokenizer::continuing(llama, true);
    let text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(text, " brown fox");
    assert!(matches!(stream.push(u32::MAX), Err(Error::UnknownToken { .. })));
}

#[test]
fn a_bos_in_the_template_is_not_doubled() {
    for name in ["llama2.gguf", "llama3_1.json", "gemma3.gguf"] {
        let (_, tokenizer) = tokenizers().iter().find(|(known, _)| *known == name).unwrap();
        let bos = tokenizer.bos().unwrap();
        let spelling = tokenizer.special_tokens().bos.unwrap();
        let plain = tokenizer.encode(&[Segment::Text("hi")], true).unwrap();
        let marked = tokenizer
            .encode(&[Segment::Markup(&spelling), Segment::Text("hi")], true)
            .unwrap();
        assert_eq!(plain[0], bos);
        assert_eq!(plain, marked, "{name}");
        let spelt = tokenizer.encode(&[Segment::Text(&spelling)], true).unwrap();
        assert_eq!(spelt.iter().filter(|id| **id == bos).count(), 1);
    }
}
