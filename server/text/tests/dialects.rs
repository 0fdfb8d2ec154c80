//! What is found of the templates of models in use.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use rempart_text::{
    ArgumentsForm, CallSyntax, ChatTemplate, Dialect, EffortArgument, OwnedSegment, RenderInput,
    SpecialTokens, ToolSupport,
};
use serde_json::{Map, Value, json};

const ENDS: [&str; 6] = [
    "<EOS>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<｜end▁of▁sentence｜>",
    "<SPECIAL_12>",
];

fn template(name: &str) -> ChatTemplate {
    let lines = common::lines("templates.jsonl");
    let fixture = lines.iter().find(|line| line["name"] == name).unwrap();
    let text = |text: &str| Some(text.to_owned());
    let special = SpecialTokens {
        bos: text("<BOS>"),
        eos: text("<EOS>"),
        ..SpecialTokens::default()
    };
    ChatTemplate::new(fixture["source"].as_str().unwrap(), special).unwrap()
}

fn dialect(name: &str) -> Dialect {
    Dialect::of(&template(name), &ENDS.map(str::to_owned))
}

fn syntax(begin: &str, middle: &str, between: Option<&str>, end: &str, repeats: Option<&str>) -> CallSyntax {
    CallSyntax {
        begin: begin.to_owned(),
        middle: middle.to_owned(),
        between: between.map(str::to_owned),
        end: end.to_owned(),
        repeats: repeats.map(str::to_owned),
    }
}

/// JSON between tags, the way of most.
fn tagged() -> CallSyntax {
    syntax(
        "<tool_call>\n{\"name\": \"",
        "\", \"arguments\": ",
        None,
        "}\n</tool_call>",
        Some("\n"),
    )
}

fn own_syntax() -> Vec<(&'static str, CallSyntax)> {
    let (json_call, parameters) = ("\", \"arguments\": ", "\", \"parameters\": ");
    let bare = syntax("{\"name\": \"", parameters, None, "}", None);
    let deepseek_begin = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>";
    let deepseek_end = "<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    vec![
        ("Qwen2.5-Coder-0.5B-Instruct", tagged()),
        ("Qwen-Qwen3-0.6B", tagged()),
        ("Qwen-QwQ-32B", tagged()),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", tagged()),
        ("meta-llama-Llama-3.1-8B-Instruct", bare.clone()),
        ("meta-llama-Llama-3.2-3B-Instruct", bare),
        (
            "mistralai-Mistral-Nemo-Instruct-2407",
            syntax(
                "[TOOL_CALLS][{\"name\": \"",
                json_call,
                Some("}, {\"name\": \""),
                "}]",
                None,
            ),
        ),
        (
            "Mistral-Small-3.2-24B-Instruct-2506",
            syntax("[TOOL_CALLS]", "[ARGS]", None, "", Some("")),
        ),
        (
            "NVIDIA-Nemotron-Nano-v2",
            syntax(
                "<TOOLCALL>[{\"name\": \"",
                json_call,
                Some("}, {\"name\": \""),
                "}]</TOOLCALL>",
                None,
            ),
        ),
        (
            "deepseek-ai-DeepSeek-V3.1",
            syntax(
                deepseek_begin,
                "<｜tool▁sep｜>",
                Some("<｜tool▁call▁end｜><｜tool▁call▁begin｜>"),
                deepseek_end,
                None,
            ),
        ),
        (
            "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
            syntax(
                &format!("{deepseek_begin}function<｜tool▁sep｜>"),
                "\n```json\n",
                Some("\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>"),
                &format!("\n```{deepseek_end}"),
                None,
            ),
        ),
    ]
}

#[test]
fn syntax_is_the_templates_own() {
    for (name, calls) in own_syntax() {
        let found = dialect(name);
        assert_eq!(found.calls, calls, "{name}");
        let support = if name.starts_with("deepseek") {
            ToolSupport::Calls
        } else {
            ToolSupport::Full
        };
        assert_eq!(found.tools, support, "{name}");
        assert_eq!(
            found.short_ids,
            name.to_lowercase().starts_with("mistral"),
            "{name}"
        );
        assert_eq!(found.arguments, ArgumentsForm::Object, "{name}");
    }
}

/// Templates that know no calls, or write arguments in another way than JSON.
#[test]
fn others_get_a_syntax_that_is_told_to_them() {
    for name in [
        "SmolLM2-135M-Instruct",
        "HuggingFaceTB-SmolLM3-3B",
        "google-gemma-2-2b-it",
        "microsoft-Phi-3.5-mini-instruct",
        "Qwen3-Coder",
        "GLM-4.6",
        "MiniMax-M2",
        "Kimi-K2-Instruct",
    ] {
        let found = dialect(name);
        assert_eq!(found.calls, tagged(), "{name}");
        assert_eq!(found.tools, ToolSupport::Nothing, "{name}");
    }
}

#[test]
fn reasoning_is_known_by_its_markers() {
    let switch = EffortArgument::Switch("enable_thinking");
    for (name, reasons, effort) in [
        ("Qwen-Qwen3-0.6B", true, switch),
        ("HuggingFaceTB-SmolLM3-3B", true, switch),
        ("deepseek-ai-DeepSeek-V3.1", true, switch),
        ("Qwen-Qwen2.5-7B-Instruct", false, EffortArgument::Nothing),
        ("SmolLM2-135M-Instruct", false, EffortArgument::Nothing),
        ("openai-gpt-oss-120b", false, EffortArgument::Effort),
    ] {
        let found = dialect(name);
        let close = found.reasoning.map(|markers| markers.close);
        assert_eq!(close, reasons.then_some("</think>"), "{name}");
        assert_eq!(found.effort, effort, "{name}");
    }
}

/// A history of a question, two calls, their results and what was said then.
fn history() -> Vec<Value> {
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let calls = [
        call("call_1", "weather", "{\"city\": \"Nîmes\"}"),
        call("call_2", "time", "{}"),
    ];
    vec![
        json!({"role": "user", "content": "And?"}),
        json!({"role": "assistant", "content": "", "tool_calls": calls}),
        json!({"role": "tool", "content": "21 °C", "tool_call_id": "call_1"}),
        json!({"role": "tool", "content": "noon", "tool_call_id": "call_2"}),
        json!({"role": "assistant", "content": "Warm."}),
    ]
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {}});
    json!([{"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": parameters}}])
}

fn rendered(name: &str) -> String {
    let (messages, tools) = dialect(name).conversation(history(), Some(tools()));
    let input = RenderInput {
        messages: &messages,
        tools: tools.as_ref(),
        documents: None,
        add_generation_prompt: false,
        kwargs: Map::new(),
        now_s: 0,
    };
    let segments = template(name)
        .render(&input)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    segments.iter().map(OwnedSegment::as_str).collect()
}

#[test]
fn calls_and_results_reach_every_model() {
    for name in [
        "SmolLM2-135M-Instruct",
        "Qwen2.5-Coder-0.5B-Instruct",
        "Qwen-Qwen3-0.6B",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        "mistralai-Mistral-Nemo-Instruct-2407",
        "Mistral-Small-3.2-24B-Instruct-2506",
        "google-gemma-2-2b-it",
        "microsoft-Phi-3.5-mini-instruct",
        "Qwen3-Coder",
        "deepseek-ai-DeepSeek-V3.1",
    ] {
        let text = rendered(name);
        let told = ["Tells it", "weather", "Nîmes", "time", "21 °C", "noon", "Warm."];
        for words in told {
            assert!(text.contains(words), "{name} lacks {words}: {text}");
        }
        let call = dialect(name).calls.write("weather", "{\"city\": \"Nîmes\"}");
        if !name.to_lowercase().starts_with("mistral") && !name.starts_with("deepseek") {
            assert!(text.contains(&call), "{name}: {text}");
        }
    }
}

/// Identifiers that another server made do not stop a conversation.
#[test]
fn short_identifiers_are_made_of_long_ones() {
    let text = rendered("mistralai-Mistral-Nemo-Instruct-2407");
    let ids: Vec<&str> = text
        .match_indices("\"call_id\": \"")
        .map(|(at, key)| &text[at + key.len()..at + key.len() + 9])
        .collect();
    assert_eq!(ids.len(), 2);
    assert_ne!(ids[0], ids[1]);
    for id in ids {
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{id}");
        assert_eq!(
            text.matches(id).count(),
            2,
            "the call and its result have the same"
        );
    }
}
