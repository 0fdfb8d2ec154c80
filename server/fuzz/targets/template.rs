//! A chat template, a byte 0, and the body of a chat request: a template may do what it likes with messages as clients write
//! them, within its limits, and what is found of it never fails.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rempart::openai::chat::ChatRequest;
use rempart::openai::tools::Tools;
use rempart_text::{ChatTemplate, Dialect, OwnedSegment, RenderInput, SpecialTokens};

/// 2026-03-07T15:04:05Z.
const NOW_S: i64 = 1_772_895_845;
const CONTROL: [&str; 4] = ["<|im_start|>", "<|im_end|>", "<s>", "[INST]"];

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == 0);
    let Some((source, body)) = end.map(|end| (&data[..end], &data[end + 1..])) else {
        return;
    };
    let (Ok(source), Ok(request)) = (
        std::str::from_utf8(source),
        ChatRequest::parse(body, rempart_fuzz::limits()),
    ) else {
        return;
    };
    let special = SpecialTokens {
        bos: Some("<s>".to_owned()),
        eos: Some("<|im_end|>".to_owned()),
        control: CONTROL.map(str::to_owned).to_vec(),
        ..SpecialTokens::default()
    };
    if let Ok(template) = ChatTemplate::new(source, special) {
        check(&template, &request);
    }
});

fn check(template: &ChatTemplate, request: &ChatRequest) {
    let dialect = Dialect::of(template, &["<|im_end|>".to_owned()]);
    let conversation = &request.conversation;
    let messages = conversation.template_messages("");
    let tools = conversation.tools.as_ref().map(Tools::template_tools);
    let (messages, tools) = dialect.conversation(messages, tools);
    let input = RenderInput {
        messages: &messages,
        tools: tools.as_ref(),
        documents: None,
        add_generation_prompt: conversation.add_generation_prompt,
        kwargs: conversation.template_kwargs.clone(),
        now_s: NOW_S,
    };
    let rendered = template.render(&input).map(|segments| joined(&segments));
    // Finding out whose characters are whose must leave no trace in the template: it says the same again.
    let again = template.render(&input).map(|segments| joined(&segments));
    assert_eq!(rendered.ok(), again.ok());
}

fn joined(segments: &[OwnedSegment]) -> String {
    segments.iter().map(OwnedSegment::as_str).collect()
}
