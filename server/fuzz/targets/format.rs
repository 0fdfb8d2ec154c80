//! The parameters of an output format as JSON, a byte 0, and choices: what compiles is followed by the tokens that it allows,
//! and an answer of JSON that ends is JSON.
//!
//! A server tries each new format in a child process first, because some make their compiler compute or allocate without end
//! (docs/adr/0013): those are the fuzzer's timeouts and its exhausted memory, which are not findings.
#![no_main]

use std::thread;

use libfuzzer_sys::fuzz_target;
use llguidance::Matcher;
use rempart::grammar::check;
use rempart::openai::format::{self, OutputFormat};
use rempart::openai::json::Object;

const EOS: u32 = check::ByteVocabulary::EOS;

fuzz_target!(init: forgive_the_compiler(), |data: &[u8]| {
    let end = data.iter().position(|byte| *byte == 0);
    let Some((body, choices)) = end.map(|end| (&data[..end], &data[end + 1..])) else {
        return;
    };
    let limits = rempart_fuzz::limits();
    let object = Object::from_body(body, limits.json_depth_max);
    let Ok(Some(asked)) = object.and_then(|mut object| format::read(&mut object, limits)) else {
        return;
    };
    // With the stack that it has in a server.
    thread::scope(|scope| {
        let work = || check::compile(&asked.format).map(|matcher| follow(matcher, &asked.format, choices));
        let builder = thread::Builder::new().stack_size(check::STACK_BYTES);
        let followed = builder.spawn_scoped(scope, work).expect("a thread").join();
        followed.expect("neither compiling nor following panics").ok();
    });
});

/// The compiler catches its own panics; the fuzzer would end the process at each.
fn forgive_the_compiler() {
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let theirs = ["/llguidance-", "/derivre-", "/toktrie-"];
        let file = panic.location().map_or("", |location| location.file());
        if !theirs.iter().any(|theirs| file.contains(theirs)) {
            abort(panic);
        }
    }));
}

fn follow(mut matcher: Matcher, format: &OutputFormat, choices: &[u8]) {
    let mut text = Vec::new();
    for choice in choices {
        let Ok(mask) = matcher.compute_mask_or_eos() else {
            return;
        };
        let allowed: Vec<u32> = (0..=EOS).filter(|token| mask.is_allowed(*token)).collect();
        assert!(!allowed.is_empty(), "a mask without a token");
        let token = allowed[usize::from(*choice) % allowed.len()];
        if matcher.consume_token(token).is_err() {
            return;
        }
        text.extend(u8::try_from(token).ok());
        if matcher.is_stopped() {
            break;
        }
    }
    let json = matches!(format, OutputFormat::JsonObject | OutputFormat::JsonSchema(_));
    if json && matcher.is_stopped() && matcher.stop_reason().is_ok() {
        let parsed = serde_json::from_slice::<&serde_json::value::RawValue>(&text);
        assert!(parsed.is_ok(), "{}", String::from_utf8_lossy(&text));
    }
}
