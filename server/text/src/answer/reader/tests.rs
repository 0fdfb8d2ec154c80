use proptest::prelude::*;

use super::*;

const THINK: ReasoningMarkers = ReasoningMarkers {
    open: "<think>",
    close: "</think>",
};

fn known(syntax: CallSyntax) -> Callable {
    Callable {
        syntax,
        names: vec!["a".to_owned(), "b".to_owned()],
        required: false,
        bare: true,
    }
}

fn tagged() -> CallSyntax {
    CallSyntax::generic()
}

fn list() -> CallSyntax {
    let (begin, between) = ("[TOOL_CALLS][{\"name\": \"", "}, {\"name\": \"");
    CallSyntax::new(begin, "\", \"arguments\": ", Some(between), "}]")
}

fn bare() -> CallSyntax {
    CallSyntax::new("{\"name\": \"", "\", \"parameters\": ", None, "}")
}

/// Neighbours of one kind joined, syntax left out.
fn joined(parts: impl IntoIterator<Item = Part>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    for part in parts {
        match (all.last_mut(), part) {
            (_, Part::Syntax(_)) => {}
            (Some(Part::Reasoning(text)), Part::Reasoning(more))
            | (Some(Part::Content(text)), Part::Content(more))
            | (Some(Part::Arguments(text)), Part::Arguments(more)) => text.push_str(&more),
            (_, part) => all.push(part),
        }
    }
    all
}

fn read(mut reader: Reader, pieces: &[&str]) -> Vec<Part> {
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    parts.extend(reader.finish());
    joined(parts)
}

fn content(text: &str) -> Part {
    Part::Content(text.to_owned())
}

fn call(name: &str, arguments: &str) -> [Part; 2] {
    [Part::Call(name.to_owned()), Part::Arguments(arguments.to_owned())]
}

#[test]
fn content_calls_and_content() {
    let text = "Let me see.\n\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": \"}\"}}\n</tool_call>\n<tool_call>\n\
                {\"name\": \"b\", \"arguments\": {}}\n</tool_call>\n And so <on>. \n";
    let parts = read(Reader::new(None, Some(known(tagged())), false), &[text]);
    let mut expected = vec![content("Let me see.")];
    expected.extend(call("a", "{\"x\": \"}\"}"));
    expected.extend(call("b", "{}"));
    expected.push(content("And so <on>. \n"));
    assert_eq!(parts, expected);
}

#[test]
fn a_list_and_a_bare_call() {
    let text =
        "[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"b\", \"arguments\": {\"c\": [1]}}]";
    let parts = read(Reader::new(None, Some(known(list())), false), &[text]);
    assert_eq!(parts, [call("a", "{}"), call("b", "{\"c\": [1]}")].concat());
    let text = "{\"name\": \"a\", \"parameters\": {\"q\": \"{\"}}";
    assert_eq!(
        read(Reader::new(None, Some(known(bare())), false), &[text]),
        call("a", "{\"q\": \"{\"}")
    );
    for text in [
        "{\"name\": 3}",
        " {\"name\": \"a\", \"parameters\": {}}",
        "",
        "\n",
    ] {
        let parts = read(Reader::new(None, Some(known(bare())), false), &[text]);
        let whole: Vec<Part> = (!text.is_empty()).then(|| content(text)).into_iter().collect();
        assert_eq!(parts, whole);
    }
}

/// Small models leave out the tags; only a known name makes it a call.
#[test]
fn calls_without_tags() {
    let read = |text: &str| read(Reader::new(None, Some(known(tagged())), false), &[text]);
    let one = "{\"name\": \"a\", \"arguments\": {\"x\": 1}}";
    assert_eq!(read(one), call("a", "{\"x\": 1}"));
    let two = format!("{one}\n{}", one.replace("\"a\"", "\"b\""));
    assert_eq!(
        read(&two),
        [call("a", "{\"x\": 1}"), call("b", "{\"x\": 1}")].concat()
    );
    assert_eq!(
        read(&format!("{one}\n{{\"name\": \"")),
        call("a", "{\"x\": 1}"),
        "the beginning of one more"
    );
    let without = Callable {
        bare: false,
        ..known(tagged())
    };
    assert_eq!(
        self::read(Reader::new(None, Some(without), false), &[one]),
        [content(one)]
    );
    let other = one.replace("\"a\"", "\"Ada\"");
    assert_eq!(read(&other), [content(&other)]);
    assert_eq!(read(&format!("So: {one}")), [content(&format!("So: {one}"))]);
    let list_text = "[{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"b\", \"arguments\": {}}]";
    let parts = self::read(Reader::new(None, Some(known(list())), false), &[list_text]);
    assert_eq!(parts, [call("a", "{}"), call("b", "{}")].concat());
}

#[test]
fn reasoning_is_apart() {
    let reasoning = |text: &str| Part::Reasoning(text.to_owned());
    let reader = |begun| Reader::new(Some(THINK), Some(known(tagged())), begun);
    let text = "<think>\nHm, <tool_call>?\n</think>\n\nYes.";
    let expected = [reasoning("Hm, <tool_call>?"), content("Yes.")];
    assert_eq!(read(reader(false), &[text]), expected);
    assert_eq!(read(reader(true), &[&text["<think>".len()..]]), expected);
    assert_eq!(
        read(reader(false), &["<think>\n\n</think>\n\nYes."]),
        [content("Yes.")]
    );
    assert_eq!(
        read(reader(false), &["  Yes <think>."]),
        [content("  Yes <think>.")]
    );
    assert_eq!(read(reader(true), &["Hm. "]), [reasoning("Hm. ")]);
}

#[test]
fn what_was_cut_off_is_not_lost() {
    let text = "Well.\n\n<tool_call>\n{\"name\": \"a\", \"argu";
    let read = |text: &str| read(Reader::new(None, Some(known(tagged())), false), &[text]);
    assert_eq!(read(text), [content("Well.")]);
    assert_eq!(read("Well <tool"), [content("Well <tool")]);
    assert_eq!(
        read("A  <tool_call> is a tag"),
        [content("A  <tool_call> is a tag")]
    );
    let arguments = "<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": ";
    assert_eq!(read(arguments), call("a", "{\"x\": "));
    for cut in [
        "}}\n</too",
        "}}\n</tool_call>\n<tool",
        "}}\n</tool_call>\n<tool_call>\n{\"na",
    ] {
        assert_eq!(read(&format!("{arguments}1{cut}")), call("a", "{\"x\": 1}"));
    }
}

/// The beginning of a tag is nothing to tell where a call had to come.
#[test]
fn a_required_call_that_was_cut_off_is_not_content() {
    for calls in [tagged(), list(), bare()] {
        let calls = Callable {
            required: true,
            ..known(calls)
        };
        let begin = calls.syntax.begin.clone();
        for cut in 1..begin.len() {
            let reader = Reader::new(None, Some(calls.clone()), false);
            assert_eq!(read(reader, &[&begin[..cut]]), [], "{}", &begin[..cut]);
        }
    }
}

/// Texts of what markers are made of.
fn texts() -> impl Strategy<Value = String> {
    let words = [
        "<think>",
        "</think>",
        "<tool_call>",
        "\n",
        " ",
        "<",
        "{\"name\": \"",
        "ab",
        "\", \"arguments\": ",
        "{\"k\": \"}\"}",
        "}\n</tool_call>",
        "[TOOL_CALLS][{\"name\": \"",
        "}, {\"name\": \"",
        "}]",
        "é",
        "{}",
        "\", \"parameters\": ",
        "                                  ",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..24).prop_map(|words| words.concat())
}

proptest! {
    /// Pieces change nothing, and every character is in exactly one part.
    #[test]
    fn pieces_change_nothing(text in texts(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let mut borders: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        borders.extend([0, text.len()]);
        borders.retain(|border| text.is_char_boundary(*border));
        borders.sort_unstable();
        let pieces: Vec<&str> = borders.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
        for calls in [None, Some(known(tagged())), Some(known(list())), Some(known(bare()))] {
            for (reasoning, begun) in [(None, false), (Some(THINK), false), (Some(THINK), true)] {
                let reader = || Reader::new(reasoning, calls.clone(), begun);
                prop_assert_eq!(read(reader(), &pieces), read(reader(), &[&text]));
                let mut whole = reader();
                let mut parts = whole.push(&text);
                parts.extend(whole.finish());
                let chars: usize = parts.iter().map(chars).sum();
                prop_assert_eq!(chars, text.chars().count());
            }
        }
    }
}

fn chars(part: &Part) -> usize {
    match part {
        Part::Reasoning(text) | Part::Content(text) | Part::Arguments(text) => text.chars().count(),
        // A name stands in the syntax around it.
        Part::Call(_) => 0,
        Part::Syntax(chars) => *chars,
    }
}
