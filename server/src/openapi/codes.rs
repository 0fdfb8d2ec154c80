//! What errors are called: a name for programs, where messages are for people. A test holds the list against the code.

use super::schema::{AnySchema, or_null, told, word};

/// Every `code` that this server gives.
pub(crate) const CODES: &[&str] = &[
    "array_above_max_length",
    "body_timeout",
    "body_too_large",
    "chat_template_error",
    "context_length_exceeded",
    "deadline_exceeded",
    "duplicate_parameter",
    "empty_array",
    "empty_prompt",
    "empty_string",
    "format_stuck",
    "head_too_large",
    "host_not_allowed",
    "insufficient_permissions",
    "internal_error",
    "invalid_api_key",
    "invalid_format",
    "invalid_json",
    "invalid_type",
    "invalid_value",
    "json_too_deep",
    "key_ended",
    "method_not_allowed",
    "mismatched_project",
    "missing",
    "missing_api_key",
    "missing_required_parameter",
    "model_busy",
    "model_load_failed",
    "model_not_found",
    "model_not_supported",
    "model_unloaded",
    "no_chat_template",
    "no_database",
    "no_host",
    "no_project",
    "not_found",
    "object_above_max_length",
    "origin_not_allowed",
    "out_of_range",
    "project_required",
    "rate_limit_exceeded",
    "request_too_large",
    "response_not_found",
    "server_is_draining",
    "server_is_overloaded",
    "server_not_ready",
    "string_above_max_length",
    "tls_required",
    "unknown_parameter",
    "unknown_url",
    "unsupported_content_encoding",
    "unsupported_media_type",
    "unsupported_parameter",
];

/// The `code` of an error.
pub(crate) fn code() -> AnySchema {
    let what = "What went wrong, for programs; later versions may have further ones.";
    told(or_null(word(CODES)), what, None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Files whose `Some("…")` are codes.
    const NAMING: [&str; 3] = ["http/error.rs", "http/error/governance.rs", "openai/json.rs"];
    /// What makes an error of a code alone, in a file of its own.
    const SHORT: [&str; 3] = ["wrong(\"", "one_source(\"", "const INVALID: &str = \""];

    fn literal(text: &str) -> Option<String> {
        let word: String = text
            .chars()
            .take_while(|c| c.is_ascii_lowercase() || *c == '_')
            .collect();
        let whole = text[word.len()..].starts_with('"');
        (whole && !word.is_empty()).then_some(word)
    }

    /// What stands behind the first comma of a call's arguments.
    fn second(arguments: &str) -> Option<&str> {
        let (mut depth, mut quoted) = (0_usize, false);
        for (at, c) in arguments.char_indices() {
            match c {
                '"' => quoted = !quoted,
                _ if quoted => {}
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => return None,
                ')' | ']' | '}' => depth -= 1,
                ',' if depth == 0 => return Some(arguments[at + 1..].trim_start()),
                _ => {}
            }
        }
        None
    }

    fn look(folder: &Path, root: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, root, found);
                continue;
            }
            let Ok(text) = std::fs::read_to_string(&path) else {
                continue;
            };
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let after = |what: &'static str| {
                text.match_indices(what)
                    .map(move |(at, _)| &text[at + what.len()..])
            };
            let calls = after("invalid(").filter_map(second);
            found.extend(calls.filter_map(|code| literal(code.strip_prefix('"')?)));
            found.extend(SHORT.into_iter().flat_map(after).filter_map(literal));
            let name = path.strip_prefix(root).unwrap().to_str().unwrap();
            if NAMING.contains(&name) {
                // Names of parameters are made texts of.
                let codes = after("Some(\"").filter_map(literal);
                let codes = codes.filter(|code| text.contains(&format!("Some(\"{code}\")")));
                found.extend(codes);
            }
        }
    }

    #[test]
    fn every_code_that_there_is_is_described_and_no_other() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut found = BTreeSet::new();
        look(&root, &root, &mut found);
        let told: BTreeSet<String> = CODES.iter().map(|code| (*code).to_owned()).collect();
        assert_eq!(found, told);
        assert!(CODES.is_sorted(), "in order, each once");
    }
}
