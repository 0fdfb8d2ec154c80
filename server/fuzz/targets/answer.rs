//! Reading an answer in pieces: a line of settings, then the answer. Where it is cut changes nothing, and every character is
//! in one part.
//!
//! The settings are bytes: a syntax of calls, a way to reason, whether calls are required or may be bare, and then the lengths
//! of the pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rempart_text::{CallSyntax, Callable, Part, Reader, ReasoningMarkers};

const THINK: ReasoningMarkers = ReasoningMarkers {
    open: "<think>",
    close: "</think>",
};

type Syntax = (
    &'static str,
    &'static str,
    Option<&'static str>,
    &'static str,
    Option<&'static str>,
);

/// Begin, middle, between, end, white space of repeated lists: as templates in use have them.
const SYNTAXES: [Syntax; 5] = [
    (
        "<tool_call>\n{\"name\": \"",
        "\", \"arguments\": ",
        None,
        "}\n</tool_call>",
        Some("\n"),
    ),
    ("{\"name\": \"", "\", \"parameters\": ", None, "}", None),
    (
        "[TOOL_CALLS][{\"name\": \"",
        "\", \"arguments\": ",
        Some("}, {\"name\": \""),
        "}]",
        None,
    ),
    ("[TOOL_CALLS]", "[ARGS]", Some("[TOOL_CALLS]"), "", None),
    (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        "\n```json\n",
        Some("\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>"),
        "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        None,
    ),
];

fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|byte| *byte == b'\n');
    let Some((settings, answer)) = end.map(|end| (&data[..end], &data[end + 1..])) else {
        return;
    };
    let (Ok(answer), [syntax, reasoning, calls, lengths @ ..]) = (std::str::from_utf8(answer), settings)
    else {
        return;
    };
    let reader = || reader(*syntax, *reasoning, *calls);
    let whole = read(reader(), &[answer]);
    assert_eq!(whole.iter().map(chars).sum::<usize>(), answer.chars().count());
    let pieces = pieces(answer, lengths);
    assert_eq!(joined(read(reader(), &pieces)), joined(whole));
});

fn reader(syntax: u8, reasoning: u8, calls: u8) -> Reader {
    let found = SYNTAXES.get(usize::from(syntax.wrapping_sub(b'0')));
    let callable = found.map(|(begin, middle, between, end, repeats)| Callable {
        syntax: CallSyntax {
            begin: (*begin).to_owned(),
            middle: (*middle).to_owned(),
            between: between.map(str::to_owned),
            end: (*end).to_owned(),
            repeats: repeats.map(str::to_owned),
        },
        names: vec!["a".to_owned(), "get_weather".to_owned()],
        required: calls & 1 == 1,
        bare: calls & 2 == 2,
    });
    let markers = (reasoning != b'0').then_some(THINK);
    Reader::new(markers, callable, reasoning == b'2')
}

/// Cuts a text after so many bytes, and after the next, again and again; between characters only.
fn pieces<'a>(text: &'a str, lengths: &[u8]) -> Vec<&'a str> {
    let (mut pieces, mut rest) = (Vec::new(), text);
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let mut length = usize::from(*length % 32 + 1).min(rest.len());
        while !rest.is_char_boundary(length) {
            length += 1;
        }
        let (piece, more) = rest.split_at(length);
        pieces.push(piece);
        rest = more;
    }
    pieces.push(rest);
    pieces
}

fn read(mut reader: Reader, pieces: &[&str]) -> Vec<Part> {
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| reader.push(piece)).collect();
    parts.extend(reader.finish());
    parts
}

fn chars(part: &Part) -> usize {
    match part {
        Part::Reasoning(text) | Part::Content(text) | Part::Arguments(text) => text.chars().count(),
        // A name stands in the syntax around it.
        Part::Call(_) => 0,
        Part::Syntax(chars) => *chars,
    }
}

/// Neighbours of one kind joined, syntax left out.
fn joined(parts: Vec<Part>) -> Vec<Part> {
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
