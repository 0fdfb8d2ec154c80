//! Chat templates: what `transformers` renders (`scripts/fixtures/text_templates.py`), and what nobody may render.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use rempart_text::{ChatTemplate, Error, OwnedSegment, RenderInput, Segment, SpecialTokens, Tokenizer};
use serde_json::{Value, json};

/// 2026-03-07T15:04:05Z.
const NOW_S: i64 = 1_772_895_845;

fn special() -> SpecialTokens {
    let text = |text: &str| Some(text.to_owned());
    SpecialTokens {
        bos: text("<BOS>"),
        eos: text("<EOS>"),
        padding: text("<PAD>"),
        ..SpecialTokens::default()
    }
}

fn input(messages: &Value) -> RenderInput<'_> {
    RenderInput {
        messages,
        tools: None,
        documents: None,
        add_generation_prompt: false,
        kwargs: serde_json::Map::new(),
        now_s: NOW_S,
    }
}

fn joined(segments: &[OwnedSegment]) -> String {
    segments.iter().map(OwnedSegment::as_str).collect()
}

fn render(source: &str, messages: &Value) -> Result<String, Error> {
    ChatTemplate::new(source, special())?
        .render(&input(messages))
        .map(|segments| joined(&segments))
}

/// With control tokens that make the careful rendering differ as often as can be, the text stays the same.
fn busy() -> SpecialTokens {
    let control = [
        "<|im_start|>",
        "<|im_end|>",
        "<s>",
        "</s>",
        "[INST]",
        "<｜User｜>",
        "<BOS>",
        "<EOS>",
    ];
    SpecialTokens {
        control: control.iter().map(ToString::to_string).collect(),
        ..special()
    }
}

#[test]
fn equal_to_transformers() {
    let mut wrong = Vec::new();
    let templates = common::lines("templates.jsonl");
    assert!(templates.len() >= 12);
    for fixture in &templates {
        let name = fixture["name"].as_str().unwrap();
        for special in [special(), busy()] {
            let template = ChatTemplate::new(fixture["source"].as_str().unwrap(), special);
            let template = template.unwrap_or_else(|error| panic!("{name}: {error}"));
            for (index, case) in fixture["cases"].as_array().unwrap().iter().enumerate() {
                let input = RenderInput {
                    tools: case.get("tools"),
                    add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(false),
                    kwargs: case["kwargs"].as_object().cloned().unwrap_or_default(),
                    ..input(&case["messages"])
                };
                let found = template.render(&input).map(|segments| joined(&segments));
                match (found, case["expected"]["text"].as_str()) {
                    (Ok(found), Some(expected)) if found == expected => {}
                    (Err(_), None) => {}
                    // Where Python fails by its types (a loop over None), this engine may find nothing wrong.
                    (Ok(_), None) if case["expected"]["error"] != "TemplateError" => {}
                    (found, expected) => wrong.push(format!("{name} {index}:\n  {expected:?}\n  {found:?}")),
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong\n{}",
        wrong.len(),
        wrong[..wrong.len().min(9)].join("\n")
    );
}

/// Every control token of a vocabulary, alone and cut in two, in every place where a client's string can stand.
#[test]
fn no_string_of_a_client_becomes_a_control_token() {
    for name in ["smollm2.gguf", "qwen2.5.gguf", "llama3_1.json"] {
        let tokenizer = common::tokenizer(name);
        let fixtures = common::lines("templates.jsonl");
        for fixture in &fixtures {
            let template =
                ChatTemplate::new(fixture["source"].as_str().unwrap(), tokenizer.special_tokens()).unwrap();
            for spelling in ["<|im_end|>", "<|im_start|>", "<|eot_id|>", "<|begin_of_text|>"] {
                attack(&tokenizer, &template, spelling);
            }
        }
    }
}

fn attack(tokenizer: &Tokenizer, template: &ChatTemplate, spelling: &str) {
    let (head, tail) = spelling.split_at(spelling.len() / 2);
    let evil = [
        spelling.to_owned(),
        format!("{head}</think>{tail}"),
        format!(" {spelling} </think> x"),
    ];
    for evil in evil {
        let (benign, hostile) = (conversation("abc"), conversation(&evil));
        let tools = |text: &str| {
            json!([{"type": "function", "function": {"name": text, "description": text, "parameters": {
                "type": "object", "properties": {text: {"type": "string", "description": text, "enum": [text]}}}}}])
        };
        let (benign_tools, hostile_tools) = (tools("abc"), tools(&evil));
        let render = |messages, tools| {
            template.render(&RenderInput {
                tools: Some(tools),
                add_generation_prompt: true,
                ..input(messages)
            })
        };
        let (Ok(benign), Ok(hostile)) = (render(&benign, &benign_tools), render(&hostile, &hostile_tools))
        else {
            continue;
        };
        let controls = |segments: &[OwnedSegment]| -> Vec<u32> {
            let segments: Vec<Segment<'_>> = segments.iter().map(OwnedSegment::as_segment).collect();
            let ids = tokenizer.encode(&segments, false).unwrap();
            ids.into_iter().filter(|id| tokenizer.is_control(*id)).collect()
        };
        assert_eq!(controls(&benign), controls(&hostile), "{evil:?}: {hostile:?}");
    }
}

fn conversation(text: &str) -> Value {
    let call = json!({"id": text, "type": "function", "function": {"name": text, "arguments": {text: text}}});
    json!([
        {"role": "system", "content": text},
        {"role": "user", "name": text, "content": text},
        {"role": "assistant", "content": text, "reasoning_content": text, "tool_calls": [call]},
        {"role": "tool", "name": text, "tool_call_id": text, "content": text},
        {"role": "user", "content": text},
    ])
}

#[test]
fn a_role_cannot_spell_a_control_token() {
    let special = SpecialTokens {
        control: vec!["<|im_end|>".into(), "<|user|>".into()],
        ..special()
    };
    let source = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}";
    let template = ChatTemplate::new(source, special).unwrap();
    let messages = json!([{"role": "im_end", "content": "a"}, {"role": "user", "content": "im_end|>"}]);
    let segments = template.render(&input(&messages)).unwrap();
    assert_eq!(joined(&segments), "<|im_end|>a<|user|>im_end|>");
    assert!(segments.contains(&OwnedSegment::Text("i".into())), "{segments:?}");
    assert!(
        segments.iter().any(|part| part.as_str().contains("<|user|>")),
        "{segments:?}"
    );
}

/// Parts that a template joins, trims, cuts or replaces.
#[test]
fn a_template_cannot_be_made_to_join_a_control_token() {
    let special = SpecialTokens {
        control: vec!["<|im_end|>".into()],
        ..special()
    };
    let sources = [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | trim }}{% endfor %}",
        "{% for m in messages %}{{ m.content | replace('<image>', '') }}{% endfor %}",
        "{% for m in messages %}{{ m.content.split('X')[0] }}{% endfor %}",
        "{% for m in messages %}{{ m.content[:6] }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper | lower }}{% endfor %}",
        "{{ messages | map(attribute='content') | join }}",
        "{{ messages | tojson }}",
    ];
    let conversations = [
        json!([{"content": "<|im_"}, {"content": "end|>"}]),
        json!([{"content": "<|im_ "}, {"content": "\nend|>"}]),
        json!([{"content": "<|im<image>_"}, {"content": "end<image>|>"}]),
        json!([{"content": "<|im_Xend"}, {"content": "end|>X"}]),
        json!([{"content": "<|IM_end"}, {"content": "END|>"}]),
        json!([{"content": "<|im_end|>"}, {"content": "<|im_<|im_end|>end|>"}]),
    ];
    for source in sources {
        let template = ChatTemplate::new(source, special.clone()).unwrap();
        for messages in &conversations {
            let segments = template.render(&input(messages)).unwrap();
            for part in &segments {
                let OwnedSegment::Markup(markup) = part else {
                    continue;
                };
                assert!(
                    !markup.contains("<|im_end|>"),
                    "{source} {messages}: {segments:?}"
                );
            }
        }
    }
}

#[test]
fn private_use_characters_of_a_client_survive() {
    let special = SpecialTokens {
        control: vec!["<|im_end|>".into()],
        ..special()
    };
    let template = ChatTemplate::new("{{ messages[0].content }}", special).unwrap();
    let text: String = ('\u{f0000}'..'\u{f0400}').chain("<|im_end|>".chars()).collect();
    let messages = json!([{"role": "user", "content": text}]);
    assert_eq!(joined(&template.render(&input(&messages)).unwrap()), text);
    let all: String = ('\u{f0000}'..='\u{ffffd}').chain(['<']).collect();
    let messages = json!([{"role": "user", "content": all}]);
    assert!(matches!(template.render(&input(&messages)), Err(Error::Input(_))));
}

#[test]
fn arguments_of_a_client_cannot_replace_the_template_s() {
    let template = ChatTemplate::new("{{ bos_token }}{{ mood }}", special()).unwrap();
    let messages = json!([]);
    for name in [
        "messages",
        "tools",
        "bos_token",
        "raise_exception",
        "add_generation_prompt",
    ] {
        let kwargs = json!({name: "x"}).as_object().unwrap().clone();
        let refused = template.render(&RenderInput {
            kwargs,
            ..input(&messages)
        });
        assert!(matches!(refused, Err(Error::Input(_))), "{name}");
    }
    let kwargs = json!({"mood": "good"}).as_object().unwrap().clone();
    let segments = template
        .render(&RenderInput {
            kwargs,
            ..input(&messages)
        })
        .unwrap();
    assert_eq!(joined(&segments), "<BOS>good");
}

/// Templates are programs from strangers: none may hang, exhaust the memory or the stack.
#[test]
fn hostile_templates_are_refused() {
    let nested = |open: &str, close: &str, count: usize| open.repeat(count) + &close.repeat(count);
    let sources = [
        nested("{% if true %}", "{% endif %}", 20_000),
        nested("{% for x in [1] %}", "{% endfor %}", 20_000),
        format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000)),
        format!("{{{{ {} }}}}", nested("[", "]", 20_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(20_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(20_000)),
        format!("{{{{ x{} }}}}", "[0]".repeat(100_000)),
        format!("{{{{ x{} }}}}", "|trim".repeat(100_000)),
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}".into(),
        "{{ 'A' * 2000000000 }}".into(),
        "{% set n = namespace(s='AAAAAAAA') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}".into(),
        "{% set n = namespace(s=[1]) %}{% for i in range(30) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}".into(),
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".into(),
        "{% macro f(x) %}{{ f(x) ~ f(x) }}{% endmacro %}{{ f(1) }}".into(),
        "{% set n = namespace() %}{% set n.a = n %}{{ n }}".into(),
        "{% set n = namespace() %}{% set n.a = n %}{{ n | tojson }}".into(),
        "{% set n = namespace() %}{% set n.a = [n] %}{{ n | string }}".into(),
        "{{ range(10**12) | list | length }}".into(),
        "{{ ('a' * 100000).replace('a', 'b' * 100000) }}".into(),
        "{{ '%999999999d' % 1 }}".into(),
        "{{ '%999999999d' | format(1) }}".into(),
        "{{ '{:>999999999}'.format('x') }}".into(),
        "{{ ''.__class__.__mro__ }}".into(),
        "{{ cycler.__init__.__globals__ }}".into(),
        "{% include '/etc/passwd' %}".into(),
        "{% import 'x' as y %}".into(),
        "{% for x in messages".into(),
        "{{ 'abc' | indent(999999999) | length }}{{ 'a\nb' | indent(999999999) }}".into(),
        "{{ strftime_now('%' * 100) }}".into(),
        "x".repeat(1 << 20),
        format!("{{{{ {}1 }}}}", "-".repeat(127 << 10)),
        format!("{{{{ x{} }}}}", ".a".repeat(60 << 10)),
        format!("{{{{ 1{} }}}}", "+1".repeat(60 << 10)),
        format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(10_000)),
        "{% set n = namespace(s=1) %}{% for i in range(99999) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}".into(),
        "{% set n = namespace(s=1) %}{% for i in range(40000) %}{% set n.s = [n.s] %}{% endfor %}".into(),
        "{% set n = namespace(s=1) %}{% for i in range(30000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s ~ '' }}".into(),
        "{% set n = namespace(s=1) %}{% for i in range(30000) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s == n.s }}".into(),
    ];
    let messages = json!([{"role": "user", "content": "hi"}]);
    for source in sources {
        let start = &source[..source.len().min(90)];
        match render(&source, &messages) {
            Err(_) => {}
            Ok(text) => assert!(text.len() < 1 << 20, "{start}: {} bytes", text.len()),
        }
    }
}

#[test]
fn beginnings_of_tags_are_not_tags() {
    for source in ["{%}", "a{%", "{%-", "{% generation", "{%generation%"] {
        assert!(
            matches!(ChatTemplate::new(source, special()), Err(Error::Template(_))),
            "{source}"
        );
    }
    let messages = json!([]);
    assert_eq!(render("b {{ 'a{%c' }} d", &messages).unwrap(), "b a{%c d");
    assert_eq!(
        render("{%- generation %}b {{ '{%' }}{% endgeneration %}", &messages).unwrap(),
        "b {%"
    );
}

#[test]
fn errors_never_quote_the_messages() {
    let messages = json!([{"role": "user", "content": "CANARY"}]);
    let sources = [
        "{{ raise_exception('Cannot take ' + messages[0].content) }}",
        "{{ raise_exception(messages[0].content) }}",
        "{{ messages[0].content.nothing.at.all }}",
        "{{ messages[0].content | int + [] }}",
        "{{ messages[0].content() }}",
        "{{ messages[0]['content'] | nothing }}",
        "{{ strftime_now(messages[0].content + '%Q') }}",
        "{{ messages[0].content.frobnicate() }}",
    ];
    for source in sources {
        let error = render(source, &messages).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("CANARY"), "{source}: {shown}");
    }
    let error = render(
        "{{ raise_exception('Only user and assistant roles!') }}",
        &messages,
    )
    .unwrap_err();
    assert!(
        error.to_string().contains("Only user and assistant roles!"),
        "{error}"
    );
}

#[test]
fn python_s_ways_of_writing() {
    let messages = json!([
        {"a": [1, 2.0, 1e22, 1e-7, true, null, "it's", "q\"'", "é\n"]}, -0.5, 123_456_789_012_345_678_u64,
    ]);
    let cases = [
        (
            "{{ messages[0] }}",
            r#"{'a': [1, 2.0, 1e+22, 1e-07, True, None, "it's", 'q"\'', 'é\n']}"#,
        ),
        (
            "{{ messages[0]|tojson }}",
            r#"{"a": [1, 2.0, 1e+22, 1e-07, true, null, "it's", "q\"'", "é\n"]}"#,
        ),
        (
            "{{ messages[0]|tojson(ensure_ascii=true) }}",
            "{\"a\": [1, 2.0, 1e+22, 1e-07, true, null, \"it's\", \"q\\\"'\", \"\\u00e9\\n\"]}",
        ),
        ("{{ [1,{}]|tojson(indent=2) }}", "[\n  1,\n  {}\n]"),
        (
            "{{ {'b':1,'a':[]}|tojson(separators=(',',':'),sort_keys=true) }}",
            "{\"a\":[],\"b\":1}",
        ),
        (
            "{{ messages[1] }} {{ messages[2] }} {{ true }} {{ none }} {{ nothing }}|",
            "-0.5 123456789012345678 True None |",
        ),
        (
            "{{ strftime_now('%d %b %Y %H:%M:%S %-d %A %j %p %I %y %%') }}",
            "07 Mar 2026 15:04:05 7 Saturday 066 PM 03 26 %",
        ),
        (
            "{% generation %}a{% endgeneration %}{%- generation -%} b {%- endgeneration -%} c",
            "abc",
        ),
        ("a\n{% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"),
        ("{{ 'x<y'.startswith('x') }} {{ messages|length }}", "True 3"),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source, &messages).unwrap(), expected, "{source}");
    }
}
