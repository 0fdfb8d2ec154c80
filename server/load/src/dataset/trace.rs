//! A trace of somebody's requests, replayed at its times: Mooncake's JSON lines or BurstGPT's CSV.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, anyhow, ensure};
use serde::Deserialize;

use super::words::{self, Words};
use super::{Item, check_tokens};
use crate::clock::Nanos;
use crate::digest::Digest;
use crate::limits::{DATASET_BYTES_MAX, DATASET_ITEMS_MAX, OUTPUT_TOKENS_MAX, PROMPT_TOKENS_MAX};
use crate::rng::{self, Use};

/// Tokens of a block that `hash_ids` names, as Mooncake has them.
const BLOCK_TOKENS: u32 = 512;

/// Requests and their times.
pub(crate) struct Trace {
    seed: u64,
    pub words: Words,
    entries: Vec<Entry>,
    /// Of what the file says, whatever the speed.
    pub digest: String,
}

#[derive(Debug)]
struct Entry {
    at: Nanos,
    input: u32,
    output: u32,
    /// Blocks of the prompt, from its first token on: requests that name the same blocks share a prefix.
    blocks: Vec<u64>,
}

/// A line as Mooncake has it.
#[derive(Deserialize)]
struct MooncakeLine {
    /// Milliseconds.
    timestamp: f64,
    input_length: u64,
    output_length: u64,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// A row as BurstGPT has it, or with Mooncake's names.
#[derive(Deserialize)]
struct CsvRow {
    /// Seconds.
    #[serde(alias = "Timestamp")]
    timestamp: f64,
    #[serde(alias = "Request tokens")]
    input_length: u64,
    #[serde(alias = "Response tokens")]
    output_length: u64,
}

impl Trace {
    /// Reads a trace; `.csv` as BurstGPT has it (seconds), anything else as Mooncake's JSON lines (milliseconds). Times count
    /// from the first, divided by `speed`.
    ///
    /// # Errors
    /// Where a line is none; the message names it.
    pub(crate) fn read(path: &Path, seed: u64, speed: f64) -> anyhow::Result<Self> {
        let said = || format!("--dataset-path {}", path.display());
        ensure!(
            speed.is_finite() && speed > 0.0,
            "--trace-speed {speed}: must be more than 0"
        );
        let file = File::open(path).with_context(said)?;
        let bytes = file.metadata().with_context(said)?.len();
        ensure!(
            bytes <= DATASET_BYTES_MAX,
            "{}: {bytes} bytes, at most {DATASET_BYTES_MAX}",
            said()
        );
        let reader = BufReader::new(file.take(DATASET_BYTES_MAX));
        let is_csv = path
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
        let mut entries = if is_csv {
            csv_entries(reader)
        } else {
            json_entries(reader)
        }
        .with_context(said)?;
        ensure!(!entries.is_empty(), "{}: holds no request", said());
        entries.sort_by_key(|entry| entry.at);
        let digest = digest(&entries);
        let first = entries[0].at;
        for entry in &mut entries {
            entry.at = ((entry.at - first) as f64 / speed) as Nanos;
        }
        Ok(Self {
            seed,
            words: Words::APPROXIMATE,
            entries,
            digest,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// When the first requests are sent.
    pub(crate) fn times(&self, requests: usize) -> Vec<Nanos> {
        self.entries.iter().take(requests).map(|entry| entry.at).collect()
    }

    pub(crate) fn item(&self, step: usize, index: usize) -> Item {
        let entry = &self.entries[index % self.entries.len()];
        let words = self.words.of_prompt(entry.input);
        let mut own = rng::of(self.seed, Use::Prompt, (step as u64) << 32 | index as u64);
        let prompt = if entry.blocks.is_empty() {
            words::unique(&mut own, words)
        } else {
            self.of_blocks(&entry.blocks, words)
        };
        Item {
            prompt,
            documents: Vec::new(),
            input_tokens: entry.input,
            output_tokens: entry.output,
        }
    }

    fn of_blocks(&self, blocks: &[u64], words: usize) -> String {
        let block_words = self.words.of_part(BLOCK_TOKENS).max(1);
        let mut text = String::with_capacity(words * 6);
        let mut left = words;
        for block in blocks {
            let now = left.min(block_words);
            words::write(&mut text, &mut rng::of(self.seed, Use::Block, *block), now);
            left -= now;
        }
        // A prompt may be longer than its blocks say.
        let last = blocks.last().copied().unwrap_or(0).wrapping_add(1 << 63);
        words::write(&mut text, &mut rng::of(self.seed, Use::Block, last), left);
        text
    }

    pub(crate) fn output_tokens(&self, requests: usize) -> u64 {
        self.entries
            .iter()
            .take(requests)
            .map(|entry| u64::from(entry.output))
            .sum()
    }
}

fn digest(entries: &[Entry]) -> String {
    let mut digest = Digest::default();
    for entry in entries {
        for number in [entry.at, u64::from(entry.input), u64::from(entry.output)] {
            digest.number(number);
        }
        digest.number(entry.blocks.len() as u64);
        for block in &entry.blocks {
            digest.number(*block);
        }
    }
    digest.hex()
}

fn json_entries(mut reader: impl BufRead) -> anyhow::Result<Vec<Entry>> {
    let (mut entries, mut line) = (Vec::new(), String::new());
    for number in 1.. {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            break;
        }
        if line.trim().is_empty() {
            continue;
        }
        // What a line says is not repeated: it may be of another file, with prompts in it.
        let read: MooncakeLine = serde_json::from_str(&line).map_err(|_| {
            anyhow!("line {number}: needs numbers `timestamp` (ms), `input_length` and `output_length`")
        })?;
        let entry = entry(
            read.timestamp / 1e3,
            read.input_length,
            read.output_length,
            read.hash_ids,
        );
        push(&mut entries, entry.with_context(|| format!("line {number}"))?)?;
    }
    Ok(entries)
}

fn csv_entries(reader: impl std::io::Read) -> anyhow::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for (index, row) in csv::Reader::from_reader(reader).into_deserialize().enumerate() {
        let number = index + 2;
        let read: CsvRow = row.map_err(|_| {
            anyhow!("line {number}: needs columns `Timestamp` (s), `Request tokens` and `Response tokens`")
        })?;
        // BurstGPT has rows of requests that failed, without an answer.
        if read.input_length == 0 || read.output_length == 0 {
            continue;
        }
        let entry = entry(read.timestamp, read.input_length, read.output_length, Vec::new());
        push(&mut entries, entry.with_context(|| format!("line {number}"))?)?;
    }
    Ok(entries)
}

fn entry(seconds: f64, input: u64, output: u64, blocks: Vec<u64>) -> anyhow::Result<Entry> {
    ensure!(
        (0.0..1e9).contains(&seconds),
        "timestamp {seconds}: must be at least 0 and less than 1e9 seconds"
    );
    Ok(Entry {
        at: (seconds * 1e9) as Nanos,
        input: check_tokens("input_length", input, PROMPT_TOKENS_MAX)?,
        output: check_tokens("output_length", output, OUTPUT_TOKENS_MAX)?,
        blocks,
    })
}

fn push(entries: &mut Vec<Entry>, entry: Entry) -> anyhow::Result<()> {
    ensure!(
        entries.len() < DATASET_ITEMS_MAX,
        "more than {DATASET_ITEMS_MAX} requests"
    );
    entries.push(entry);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn trace(suffix: &str, text: &str, speed: f64) -> anyhow::Result<Trace> {
        let mut file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Trace::read(file.path(), 1, speed)
    }

    #[test]
    fn mooncake_lines_keep_times_lengths_and_shared_blocks() {
        let text = "{\"timestamp\":27482,\"input_length\":1100,\"output_length\":52,\"hash_ids\":[46,47,2353]}\n\
                    {\"timestamp\":30535,\"input_length\":1300,\"output_length\":26,\"hash_ids\":[46,47,2366]}\n";
        let trace = trace(".jsonl", text, 2.0).unwrap();
        assert_eq!(trace.times(9), [0, 1_526_500_000]);
        let words = |index| {
            trace
                .item(0, index)
                .prompt
                .split(' ')
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let (first, second) = (words(0), words(1));
        assert_eq!((first.len(), second.len()), (1100, 1300));
        assert_eq!(first[..1024], second[..1024]);
        assert_ne!(first[1024..], second[1024..1100]);
        assert_eq!(trace.output_tokens(2), 78);
    }

    #[test]
    fn burstgpt_rows_are_seconds() {
        let text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n\
                    45,ChatGPT,10,0,10,Conversation log\n47.5,GPT-4,20,30,50,API log\n";
        let trace = trace(".csv", text, 1.0).unwrap();
        assert_eq!(trace.times(9), [0, 42_500_000_000]);
        assert_eq!(
            (trace.item(0, 1).input_tokens, trace.item(0, 1).output_tokens),
            (20, 30)
        );
        assert_eq!(trace.item(0, 1).prompt.split(' ').count(), 20);
    }

    #[test]
    fn lines_that_are_none_are_named() {
        for text in [
            "",
            "x",
            "{\"timestamp\":1}",
            "{\"timestamp\":-1,\"input_length\":1,\"output_length\":1}",
            "{\"timestamp\":1,\"input_length\":0,\"output_length\":1}",
            "{\"timestamp\":1,\"input_length\":99999999999,\"output_length\":1}",
        ] {
            let said = format!("{:#}", trace(".jsonl", text, 1.0).err().expect(text));
            assert!(said.contains("--dataset-path"), "{said}");
        }
        assert!(trace(".csv", "a,b\n1,2\n", 1.0).is_err());
        assert!(trace(".jsonl", "", 0.0).is_err_and(|error| error.to_string().contains("--trace-speed")));
    }
}
