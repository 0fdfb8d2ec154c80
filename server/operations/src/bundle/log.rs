//! The last lines of a server's log, and of those only the ones that the server itself has written, which hold nothing that was
//! asked or answered.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context as _, ensure};
use regex::{Captures, Regex};
use serde_json::Value;

/// What is read of the end of a file.
const BYTES_MAX: u64 = 64 << 20;
/// A longer line is none of a server's.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// In the place of what a client chose to call its request.
const CLIENTS: &str = "[client's]";

/// A line as `--log-format human` has it.
static HUMAN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z +(?:ERROR|WARN|INFO|DEBUG|TRACE) ")
        .expect("it is right")
});
/// The name of a request in such a line, with what its quotes quote.
static ID: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"([{ ])id="((?:[^"\\]|\\.)*)""#).expect("it is right"));

/// The last lines, oldest first, and how many others were among those that were read.
///
/// # Errors
/// The file can't be read, and what to name instead.
pub(super) fn tail(path: &Path, lines_max: usize) -> anyhow::Result<(Vec<String>, usize)> {
    if path == Path::new("-") {
        return Ok(own(std::io::stdin().lock(), false, lines_max)?);
    }
    let named = || format!("--log-file {}", path.display());
    let mut file = File::open(path).with_context(named)?;
    let about = file.metadata().with_context(named)?;
    ensure!(
        about.is_file(),
        "{} is no file: name the one that the server's standard error goes into, or pipe a journal in with `--log-file -`",
        named()
    );
    let start = about.len().saturating_sub(BYTES_MAX);
    file.seek(SeekFrom::Start(start)).with_context(named)?;
    own(BufReader::new(file), start > 0, lines_max).with_context(named)
}

/// `within` says that it begins in the middle of a line.
fn own(mut from: impl BufRead, mut within: bool, lines_max: usize) -> io::Result<(Vec<String>, usize)> {
    let (mut lines, mut others) = (VecDeque::new(), 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok((lines.into(), others));
        }
        let cut = line.len() as u64 == LINE_BYTES_MAX && line.last() != Some(&b'\n');
        if std::mem::replace(&mut within, cut) {
            continue;
        }
        let text = std::str::from_utf8(&line).ok().filter(|_| !cut);
        let Some(own) = text.map(str::trim_end).and_then(of_server) else {
            others += 1;
            continue;
        };
        if lines.len() == lines_max {
            lines.pop_front();
        }
        lines.push_back(own);
    }
}

/// A line of the server's, without names that clients chose.
fn of_server(line: &str) -> Option<String> {
    if line.starts_with('{') {
        let mut value: Value = serde_json::from_str(line).ok()?;
        let text = |key: &str| value.get(key).and_then(Value::as_str);
        let own = text("target")?.split("::").next()?;
        let ours = own == "rempart" || own.starts_with("rempart_");
        if !ours || text("timestamp").is_none() || text("level").is_none() {
            return None;
        }
        unname(&mut value);
        return Some(value.to_string());
    }
    if line.chars().any(char::is_control) || !HUMAN.is_match(line) {
        return None;
    }
    let unnamed = ID.replace_all(line, |found: &Captures<'_>| {
        let id = if is_ours(&found[2]) { &found[2] } else { CLIENTS };
        format!("{}id=\"{id}\"", &found[1])
    });
    Some(unnamed.into_owned())
}

fn unname(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(id) => {
                        if key == "id" && !is_ours(id) {
                            CLIENTS.clone_into(id);
                        }
                    }
                    value => unname(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(unname),
        _ => {}
    }
}

/// Whether the server has made it.
fn is_ours(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, lines_max: usize) -> (Vec<String>, usize) {
        own(text.as_bytes(), false, lines_max).unwrap()
    }

    #[test]
    fn lines_of_others_are_left_out() {
        let ours = "2026-11-28T09:55:59.123456Z  INFO listening address=127.0.0.1:8080";
        let json = r#"{"timestamp":"2026-11-28T09:55:59.123456Z","level":"INFO","message":"ready","target":"rempart::warm_up"}"#;
        let text = format!(
            "The first key of the new database\nsk-rempart-x\n{ours}\n{json}\n\u{1b}[31m{ours}\n{{}}\n{}\n{}\n[{json}]\n",
            json.replace("rempart::", "hyper::"),
            json.replace("rempart::", "rempartx::"),
        );
        assert_eq!(read(&text, 9), (vec![ours.to_owned(), json.to_owned()], 7));
        assert_eq!(read(&format!("{ours}\n").repeat(5), 2).0.len(), 2);
        let long = "x".repeat(2 * LINE_BYTES_MAX as usize);
        let text = format!("{ours} {long}\n{ours}\n{ours}");
        assert_eq!(read(&text, 9), (vec![ours.to_owned(), ours.to_owned()], 1));
        let within = own(text.as_bytes(), true, 9).unwrap();
        assert_eq!(within, (vec![ours.to_owned(), ours.to_owned()], 0));
    }

    #[test]
    fn the_name_that_a_client_gave_its_request_is_left_out() {
        let own = "0af7651916cd43dd8448eb211c80319c";
        let human = |id: &str| {
            format!("2026-11-28T09:55:59.1Z  INFO request{{id=\"{id}\" method=\"GET\"}}: answered status=200")
        };
        let json = |id: &str| {
            format!(
                r#"{{"timestamp":"t","level":"INFO","target":"rempart","span":{{"id":"{id}","name":"request"}}}}"#
            )
        };
        let forms: [fn(&str) -> String; 2] = [human, json];
        for line in forms {
            assert_eq!(of_server(&line(own)), Some(line(own)));
            for chosen in ["what-i-asked", r#"a\"b"#] {
                assert_eq!(of_server(&line(chosen)), Some(line(CLIENTS)));
            }
        }
    }

    #[test]
    fn what_is_no_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = tail(folder.path(), 1).unwrap_err().to_string();
        assert!(told.contains("is no file"), "{told}");
        let told = format!("{:#}", tail(&folder.path().join("none"), 1).unwrap_err());
        assert!(
            told.contains("--log-file") && told.contains("No such file"),
            "{told}"
        );
    }
}
