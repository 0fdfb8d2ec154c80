//! Texts out of a file: JSON lines of one's own, or conversations in the format of ShareGPT.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, ensure};
use rand::seq::SliceRandom as _;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::{Item, check_tokens};
use crate::digest::Digest;
use crate::limits::{DATASET_BYTES_MAX, DATASET_ITEMS_MAX, DATASET_PROMPT_BYTES_MAX, OUTPUT_TOKENS_MAX};
use crate::rng::{self, Use};

/// Texts that were read from a file, in an order that a seed gave.
pub(crate) struct Listed {
    items: Vec<Item>,
    /// Of the texts, and of how many tokens the file asks for.
    pub digest: String,
}

/// A line of one's own file.
#[derive(Deserialize)]
struct Line {
    #[serde(alias = "query")]
    prompt: String,
    #[serde(default)]
    documents: Vec<String>,
    #[serde(alias = "max_tokens")]
    output_tokens: Option<u64>,
}

/// A conversation, of which the first two turns are taken.
#[derive(Deserialize)]
struct Conversation {
    #[serde(alias = "conversation", default)]
    conversations: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    value: Option<String>,
}

/// What is read, with its limits.
struct Reading {
    items: Vec<Item>,
    digest: Digest,
    bytes: usize,
    /// Of requests that don't say.
    output_tokens: Option<u32>,
}

impl Listed {
    /// Reads JSON lines: `{"prompt": ..., "output_tokens": ...}`, or `{"query": ..., "documents": [...]}`.
    ///
    /// # Errors
    /// Where a line is none of these; the message names the line and not what it says.
    pub(crate) fn custom(path: &Path, output_tokens: Option<u32>, seed: u64) -> anyhow::Result<Self> {
        let mut reading = Reading::new(output_tokens);
        let mut line = String::new();
        let mut reader = open(path)?;
        for number in 1.. {
            line.clear();
            if reader.read_line(&mut line).with_context(|| said(path))? == 0 {
                break;
            }
            if line.trim().is_empty() {
                continue;
            }
            let at = || format!("{}, line {number}", said(path));
            let read: Line = serde_json::from_str(&line)
                .map_err(|error| anyhow::anyhow!("{}: {}", at(), kind(&error)))
                .context("a line is a JSON object with a text `prompt`, or with `query` and `documents`")?;
            reading
                .take(read.prompt, read.documents, read.output_tokens)
                .with_context(at)?;
        }
        reading.finish(path, seed)
    }

    /// Reads a JSON array of conversations: the first turn is asked, and the second one's length is asked for.
    ///
    /// # Errors
    /// Where it is none.
    pub(crate) fn sharegpt(path: &Path, output_tokens: Option<u32>, seed: u64) -> anyhow::Result<Self> {
        let mut reading = Reading::new(output_tokens);
        let mut json = serde_json::Deserializer::from_reader(open(path)?);
        Conversations(&mut reading)
            .deserialize(&mut json)
            .map_err(|error| anyhow::anyhow!("{}: {}", said(path), kind(&error)))
            .context("ShareGPT's format is an array of objects with `conversations`, each a list of turns with a `value`")?;
        reading.finish(path, seed)
    }

    /// They are asked again from the first where they don't suffice.
    pub(crate) fn item(&self, index: usize) -> Item {
        self.items[index % self.items.len()].clone()
    }

    pub(crate) fn output_tokens(&self, requests: usize) -> u64 {
        let tokens = |items: &[Item]| {
            items
                .iter()
                .map(|item| u64::from(item.output_tokens))
                .sum::<u64>()
        };
        let (rounds, rest) = (requests / self.items.len(), requests % self.items.len());
        tokens(&self.items) * rounds as u64 + tokens(&self.items[..rest])
    }
}

fn open(path: &Path) -> anyhow::Result<BufReader<std::io::Take<File>>> {
    let file = File::open(path).with_context(|| said(path))?;
    let bytes = file.metadata().with_context(|| said(path))?.len();
    ensure!(
        bytes <= DATASET_BYTES_MAX,
        "{}: {bytes} bytes, at most {DATASET_BYTES_MAX}",
        said(path)
    );
    Ok(BufReader::new(file.take(DATASET_BYTES_MAX)))
}

fn said(path: &Path) -> String {
    format!("--dataset-path {}", path.display())
}

/// What is wrong with JSON and where, without what it says.
fn kind(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Io => "can't be read",
        serde_json::error::Category::Syntax => "not JSON",
        serde_json::error::Category::Data => "JSON of another form, or more than the limits",
        serde_json::error::Category::Eof => "ends too early",
    };
    format!("{what} (line {}, column {})", error.line(), error.column())
}

/// Output tokens of a request that does not say, and whose data set does not either.
const OUTPUT_TOKENS: u32 = 128;
/// About how many bytes of a text are a token.
const BYTES_PER_TOKEN: usize = 4;

impl Reading {
    fn new(output_tokens: Option<u32>) -> Self {
        Self {
            items: Vec::new(),
            digest: Digest::default(),
            bytes: 0,
            output_tokens,
        }
    }

    fn take(&mut self, prompt: String, documents: Vec<String>, output: Option<u64>) -> anyhow::Result<()> {
        ensure!(!prompt.is_empty(), "an empty prompt");
        let bytes = prompt.len() + documents.iter().map(String::len).sum::<usize>();
        self.bytes += bytes;
        ensure!(
            self.bytes <= DATASET_PROMPT_BYTES_MAX && self.items.len() < DATASET_ITEMS_MAX,
            "more than {DATASET_PROMPT_BYTES_MAX} bytes of prompts or {DATASET_ITEMS_MAX} of them"
        );
        self.digest.text(&prompt);
        self.digest.number(documents.len() as u64);
        for document in &documents {
            self.digest.text(document);
        }
        self.digest.number(output.unwrap_or(0));
        let output_tokens = match (self.output_tokens, output) {
            (Some(tokens), _) => tokens,
            (None, Some(tokens)) => check_tokens("output_tokens", tokens, OUTPUT_TOKENS_MAX)?,
            (None, None) => OUTPUT_TOKENS,
        };
        self.items.push(Item {
            prompt,
            documents,
            input_tokens: u32::try_from(bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX).max(1),
            output_tokens,
        });
        Ok(())
    }

    fn finish(mut self, path: &Path, seed: u64) -> anyhow::Result<Listed> {
        ensure!(!self.items.is_empty(), "{}: holds nothing to ask", said(path));
        self.items.shuffle(&mut rng::of(seed, Use::Order, 0));
        Ok(Listed {
            items: self.items,
            digest: self.digest.hex(),
        })
    }
}

/// Reads an array entry by entry, so that a file of a gigabyte is never held.
struct Conversations<'a>(&'a mut Reading);

impl<'de> DeserializeSeed<'de> for Conversations<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Conversations<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an array of conversations")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<Conversation>()? {
            let mut turns = entry.conversations.into_iter();
            // As vLLM has it: a conversation needs a question and an answer.
            let (Some(first), Some(second)) = (turns.next(), turns.next()) else {
                continue;
            };
            let (Some(question), Some(answer)) = (first.value, second.value) else {
                continue;
            };
            if question.is_empty() || answer.is_empty() {
                continue;
            }
            let tokens = (answer.len() / BYTES_PER_TOKEN).max(1) as u64;
            if self.0.take(question, Vec::new(), Some(tokens)).is_err() {
                // The limit of what is held: what was read so far is asked.
                while entries.next_element::<IgnoredAny>()?.is_some() {}
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn lines_of_ones_own_are_read() {
        let text =
            "{\"prompt\":\"one two\",\"output_tokens\":7}\n\n{\"query\":\"q\",\"documents\":[\"a\",\"b\"]}\n";
        let listed = Listed::custom(file(text).path(), None, 1).unwrap();
        let mut items = [listed.item(0), listed.item(1)];
        items.sort_by(|a, b| a.prompt.cmp(&b.prompt));
        assert_eq!((items[0].prompt.as_str(), items[0].output_tokens), ("one two", 7));
        assert_eq!(items[1].documents, ["a", "b"]);
        assert_eq!(items[1].output_tokens, OUTPUT_TOKENS);
        assert!(listed.item(2) == listed.item(0));
        assert_eq!(listed.output_tokens(4), 2 * u64::from(7 + OUTPUT_TOKENS));
        let listed = Listed::custom(file(text).path(), Some(9), 1).unwrap();
        assert_eq!((listed.items.len(), listed.item(0).output_tokens), (2, 9));
    }

    #[test]
    fn what_is_wrong_is_named_and_not_repeated() {
        for text in [
            "",
            "{\"prompt\":\"\"}",
            "{\"prompt\":3}",
            "{\"secret\":1}",
            "secret",
            "{\"prompt\":\"secret\",\"output_tokens\":0}",
        ] {
            let said = Listed::custom(file(text).path(), None, 1)
                .err()
                .map(|error| format!("{error:#}"));
            let said = said.expect(text);
            assert!(
                said.contains("--dataset-path") && !said.contains("secret"),
                "{said}"
            );
        }
        let said = format!(
            "{:#}",
            Listed::custom(file("{\"prompt\":\"a\"}\n{").path(), None, 1)
                .err()
                .unwrap()
        );
        assert!(said.contains("line 2"), "{said}");
    }

    #[test]
    fn conversations_are_read_and_others_skipped() {
        let text = r#"[{"id":"a","conversations":[{"from":"human","value":"question"},{"from":"gpt","value":"an answer of forty bytes, or about that.."}]},
            {"conversations":[{"from":"human","value":"alone"}]},{"conversations":[]},{"id":1}]"#;
        let listed = Listed::sharegpt(file(text).path(), None, 1).unwrap();
        assert_eq!(listed.items.len(), 1);
        assert_eq!(
            (listed.item(0).prompt.as_str(), listed.item(0).output_tokens),
            ("question", 10)
        );
        assert!(Listed::sharegpt(file("{}").path(), None, 1).is_err());
        assert!(Listed::sharegpt(file("[]").path(), None, 1).is_err());
    }
}
