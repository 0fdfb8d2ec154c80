//! Properties of what turns tokens into text, and JSON into requests.

use proptest::prelude::*;
use rempart::chat::Rules;
use rempart::chat::assemble::{Assembler, Piece, Said};
use rempart::chat::plan::Reading;
use rempart::openai::chat::ChatRequest;
use rempart::openai::completions::CompletionRequest;
use rempart_engine::{Logprobs, Sampled};

use super::support::{settings, tokenizer};

/// What the choice's text must be: the bytes as text, up to the first stop string to end at or after byte `min`.
fn expected(bytes: &[u8], stops: &[String], min: usize) -> (String, bool) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let ends = stops.iter().flat_map(|stop| {
        let begins = (0..text.len()).filter(|at| text.as_bytes()[*at..].starts_with(stop.as_bytes()));
        begins
            .map(|at| (at + stop.len(), at))
            .filter(|(end, _)| *end >= min)
    });
    // The stop string that ends first wins; of two that end together, the longer, which begins first.
    match ends.min() {
        Some((_, at)) => (text[..at].to_owned(), true),
        None => (text, false),
    }
}

fn content(piece: &Piece) -> String {
    let text = |said: &Said| match said {
        Said::Content(text) => text.clone(),
        other => panic!("nothing else is said: {other:?}"),
    };
    piece.said.iter().map(text).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn text_and_entries_agree(
        text in "[abé€]{0,12}",
        stops in prop::collection::vec("[abé]{1,3}", 0..3),
        min_tokens in 0..8_usize,
    ) {
        let bytes = text.as_bytes();
        let rules = Rules {
            stops: stops.clone(),
            stop_token_ids: Vec::new(),
            include_stop: false,
            min_tokens,
            skip_special_tokens: true,
            logprobs: Some(0),
            prompt_logprobs: None,
            echo_logprobs: None,
            token_ids: false,
            reading: Reading::default(),
        };
        let mut assembler = Assembler::new(&tokenizer(), &rules, 0).unwrap();
        let (mut shown, mut entries, mut stopped) = (String::new(), Vec::new(), false);
        for byte in bytes {
            let logprob = Some(Logprobs { chosen: -1.0, rank: 1, top: Vec::new() });
            let piece = assembler.token(Sampled { token: u32::from(*byte), logprob }).unwrap();
            shown.push_str(&content(&piece));
            entries.extend(piece.entries);
            stopped = piece.stop.is_some();
            if stopped {
                break;
            }
        }
        if !stopped {
            let piece = assembler.finish();
            shown.push_str(&content(&piece));
            entries.extend(piece.entries);
            stopped = piece.stop.is_some();
        }
        prop_assert_eq!((shown.clone(), stopped), expected(bytes, &stops, min_tokens));
        let told: Vec<u8> = entries.iter().map(|entry| entry.token as u8).collect();
        prop_assert_eq!(String::from_utf8(told).unwrap(), shown);
    }

    #[test]
    fn no_body_makes_the_reader_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let limits = settings(&[]).request;
        prop_assert!(ChatRequest::parse(&body, &limits).is_err());
        prop_assert!(CompletionRequest::parse(&body, &limits).is_err());
    }

    #[test]
    fn no_value_makes_the_reader_panic(
        name in prop::sample::select(vec!["messages", "prompt", "stop", "logit_bias", "n", "stream_options", "x"]),
        value in r#"[\[\]{}",:0-9eE.\-tfnul\\a]{0,24}"#,
    ) {
        let limits = settings(&[]).request;
        let body = format!(r#"{{"model": "m", "{name}": {value}}}"#);
        let _ = ChatRequest::parse(body.as_bytes(), &limits);
        let _ = CompletionRequest::parse(body.as_bytes(), &limits);
    }
}
