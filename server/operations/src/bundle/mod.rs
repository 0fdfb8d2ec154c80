//! `rempart support-bundle`: one file that has what who is to help asks for, and nothing confidential.

mod asked;
mod log;
mod machine;
mod options;
mod sieve;
mod tar;

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use flate2::Compression;
use flate2::write::GzEncoder;
use rempart_client::Client;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use asked::QUESTIONS;
use sieve::Sieve;

pub use options::BundleArgs;

/// Which form of bundle this is.
const VERSION: u32 = 1;
/// Who may read it: its owner.
const MODE: u32 = 0o600;
const MANIFEST: &str = "manifest.json";

/// The program that makes a bundle.
#[derive(Clone, Debug, Serialize)]
pub struct Maker {
    version: &'static str,
    target: String,
    /// Whether it can use a card.
    cuda: bool,
    /// Of the program's file; `None` where that can't be read.
    sha256: Option<String>,
}

impl Maker {
    /// This program, by its version.
    pub fn this(version: &'static str, cuda: bool) -> Self {
        let own = std::env::current_exe().and_then(std::fs::read);
        Self {
            version,
            target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            cuda,
            sha256: own.ok().map(|bytes| hex(&Sha256::digest(bytes))),
        }
    }
}

/// What is put together for who is to help.
pub struct Bundle {
    output: PathBuf,
    /// The archive's only folder.
    folder: String,
    made: DateTime<Utc>,
    maker: Maker,
    sieve: Sieve,
    client: Client,
    args: BundleArgs,
    files: Vec<(Entry, String)>,
    left_out: Vec<LeftOut>,
}

/// A file of the bundle.
#[derive(Debug, Serialize)]
struct Entry {
    name: &'static str,
    about: &'static str,
    bytes: usize,
    sha256: String,
    /// Texts that looked like secrets.
    masked: usize,
}

/// What could not be got.
#[derive(Debug, Serialize)]
struct LeftOut {
    name: &'static str,
    why: String,
}

#[derive(Serialize)]
struct Manifest<'b> {
    version: u32,
    /// RFC 3339.
    made: String,
    rempart: &'b Maker,
    files: Vec<&'b Entry>,
    left_out: &'b [LeftOut],
}

impl Bundle {
    /// Begins one. `secrets` are known, and masked wherever they are found.
    ///
    /// # Errors
    /// An option is wrong, or the file is there already.
    pub fn begin(args: &BundleArgs, maker: Maker, secrets: &[String]) -> anyhow::Result<Self> {
        let made = Utc::now();
        let folder = format!("rempart-support-{}", made.format("%Y%m%dT%H%M%SZ"));
        let output = args.output.clone();
        let output = output.unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
        if output.exists() {
            bail!(
                "{} is there already: name another file with --output, or delete it",
                output.display()
            );
        }
        let known = [secrets, &args.secrets()].concat();
        Ok(Self {
            output,
            folder,
            made,
            maker,
            sieve: Sieve::new(&known, std::env::home_dir()),
            client: args.client()?,
            args: args.clone(),
            files: Vec::new(),
            left_out: Vec::new(),
        })
    }

    /// Puts a file in, or says why there is none.
    pub fn put(&mut self, name: &'static str, about: &'static str, content: anyhow::Result<String>) {
        match content {
            Ok(text) => {
                let (text, masked) = self.sieve.sift(&text);
                let entry = Entry {
                    name,
                    about,
                    bytes: text.len(),
                    sha256: hex(&Sha256::digest(&text)),
                    masked,
                };
                self.files.push((entry, text));
            }
            Err(error) => {
                let (why, _) = self.sieve.sift(&format!("{error:#}"));
                // A table has one line for each.
                let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
                self.left_out.push(LeftOut { name, why });
            }
        }
    }

    /// Puts in what is known without the server's options, writes the archive, and returns what to tell of it.
    ///
    /// # Errors
    /// It can't be written.
    pub fn finish(mut self) -> anyhow::Result<String> {
        let facts = machine::facts(self.args.pid);
        let facts = serde_json::to_string_pretty(&facts).context("facts of the machine");
        self.put("machine.json", "processor, memory, kernel, limits", facts);
        self.ask()?;
        if let Some(path) = self.args.log_file.clone() {
            let told = log::tail(&path, self.args.log_lines as usize);
            let told = told.map(|(lines, others)| {
                let mut text = format!(
                    "# {} lines of the server's, and {others} others were left out\n",
                    lines.len()
                );
                for line in lines {
                    text += &line;
                    text.push('\n');
                }
                text
            });
            self.put("log.txt", "the last lines of the server's log", told);
        }
        let manifest = self.manifest()?;
        let written = write(&self.output, &self.folder, &manifest, &self.files, self.made);
        written.with_context(|| {
            format!(
                "writing {}: name a file with --output where there is room and it may be made",
                self.output.display()
            )
        })?;
        Ok(self.told(manifest.len()))
    }

    fn ask(&mut self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime")?;
        for question in &QUESTIONS {
            let answer = runtime.block_on(question.ask(&self.client));
            self.put(question.name, question.about, answer);
        }
        Ok(())
    }

    fn manifest(&self) -> anyhow::Result<String> {
        let manifest = Manifest {
            version: VERSION,
            made: self.made.to_rfc3339_opts(SecondsFormat::Secs, true),
            rempart: &self.maker,
            files: self.files.iter().map(|(entry, _)| entry).collect(),
            left_out: &self.left_out,
        };
        Ok(serde_json::to_string_pretty(&manifest)? + "\n")
    }

    /// A table of what is in it and what is not, and what to do with it.
    fn told(&self, manifest_bytes: usize) -> String {
        let mut text = String::new();
        let mut line = |name: &str, bytes: usize, about: &str, masked: usize| {
            let masks = match masked {
                0 => String::new(),
                1 => "; one text that looked like a secret is masked".to_owned(),
                many => format!("; {many} texts that looked like secrets are masked"),
            };
            let _ = writeln!(text, "{name:<21} {bytes:>9} bytes  {about}{masks}");
        };
        line(
            MANIFEST,
            manifest_bytes,
            "what is in here, with SHA-256, and what is not",
            0,
        );
        for (entry, _) in &self.files {
            line(entry.name, entry.bytes, entry.about, entry.masked);
        }
        for LeftOut { name, why } in &self.left_out {
            let _ = writeln!(text, "{name:<21} {:>15}  {why}", "left out");
        }
        let output = self.output.display();
        let _ = writeln!(
            text,
            "\n{output} is written, for its owner alone. Look through it before you send it: tar -xzf {output}"
        );
        text
    }
}

/// Writes a new file, all of it or none.
fn write(
    output: &Path,
    folder: &str,
    manifest: &str,
    files: &[(Entry, String)],
    made: DateTime<Utc>,
) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(MODE).open(output)?;
    let filled = fill(&file, folder, manifest, files, made);
    if filled.is_err() {
        let _ = std::fs::remove_file(output);
    }
    filled
}

fn fill(
    file: &File,
    folder: &str,
    manifest: &str,
    files: &[(Entry, String)],
    made: DateTime<Utc>,
) -> std::io::Result<()> {
    let mut out = GzEncoder::new(BufWriter::new(file), Compression::default());
    let made_s = made.timestamp().unsigned_abs();
    let named = files.iter().map(|(entry, text)| (entry.name, text.as_str()));
    for (name, text) in std::iter::once((MANIFEST, manifest)).chain(named) {
        tar::add(&mut out, &format!("{folder}/{name}"), text.as_bytes(), made_s)?;
    }
    tar::end(&mut out)?;
    out.finish()?.flush()?;
    file.sync_all()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Typed {
        #[command(flatten)]
        bundle: BundleArgs,
    }

    fn maker() -> Maker {
        Maker::this("0.0.0", false)
    }

    fn typed(output: &Path, more: &[&str]) -> BundleArgs {
        // Nobody listens there.
        let fixed = [
            "x",
            "--base-url",
            "http://127.0.0.1:9/v1",
            "--output",
            output.to_str().unwrap(),
        ];
        Typed::try_parse_from([&fixed[..], more].concat()).unwrap().bundle
    }

    #[test]
    fn what_is_put_in_is_listed_and_what_is_not_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("b.tar.gz");
        let args = typed(&output, &["--api-key", "open-sesame"]);
        let mut bundle = Bundle::begin(&args, maker(), &["hunter2".to_owned()]).unwrap();
        bundle.put(
            "config.toml",
            "options",
            Ok("a = hunter2\nb = open-sesame\n".to_owned()),
        );
        bundle.put("database.json", "rows", Err(anyhow::anyhow!("hunter2\nis wrong")));
        let told = bundle.finish().unwrap();
        let line = |name: &str| {
            told.lines()
                .find(|line| line.starts_with(name))
                .unwrap()
                .to_owned()
        };
        assert!(line("config.toml").ends_with("options; 2 texts that looked like secrets are masked"));
        assert!(
            line("database.json").ends_with("left out  [masked] is wrong"),
            "{told}"
        );
        assert!(
            line("server/metrics.txt").contains("is --base-url right?"),
            "{told}"
        );
        let done = std::process::Command::new("tar")
            .args(["--extract", "--directory"])
            .arg(folder.path())
            .args(["--strip-components=1", "-zf"])
            .arg(&output)
            .status();
        assert!(done.unwrap().success());
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("config.toml"), "a = [masked]\nb = [masked]\n");
        let manifest: serde_json::Value = serde_json::from_str(&read("manifest.json")).unwrap();
        for file in manifest["files"].as_array().unwrap() {
            let text = read(file["name"].as_str().unwrap());
            assert_eq!(file["bytes"], text.len());
            assert_eq!(file["sha256"], hex(&Sha256::digest(&text)));
        }
        let left_out = manifest["left_out"].as_array().unwrap();
        assert_eq!(left_out.len(), 1 + QUESTIONS.len(), "{manifest}");
    }

    #[test]
    fn nothing_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("b.tar.gz");
        let bundle = Bundle::begin(&typed(&output, &[]), maker(), &[]).unwrap();
        std::fs::write(&output, "mine").unwrap();
        let told = format!("{:#}", bundle.finish().unwrap_err());
        assert!(told.contains("--output"), "{told}");
        let told = Bundle::begin(&typed(&output, &[]), maker(), &[]).err().unwrap();
        assert!(
            told.to_string().contains("name another file with --output"),
            "{told}"
        );
        assert_eq!(std::fs::read_to_string(&output).unwrap(), "mine");
        let nowhere = folder.path().join("none/b.tar.gz");
        let bundle = Bundle::begin(&typed(&nowhere, &[]), maker(), &[]).unwrap();
        assert!(bundle.finish().is_err());
    }
}
