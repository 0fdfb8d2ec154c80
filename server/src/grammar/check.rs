//! A trial of a format in a process of its own. Formats come from strangers, and some make their compiler recurse, compute or
//! allocate without end, which nothing inside a process can stop: the trial is ended by the system, and only what passes it is
//! compiled here.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use llguidance::Matcher;
use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use rempart_text::Markup;
use rlimit::Resource;

use super::patience::Patience;
use super::{MESSAGE_MAX, factory, source};
use crate::openai::format::OutputFormat;

/// The command of the binary that a trial runs.
pub const COMMAND: &str = "check-format";
/// Address space of a trial: most of it is the program and the stack.
const MEMORY_MAX: u64 = 384 << 20;
/// Seconds of processor time, should whoever waits for a trial be gone.
const PROCESSOR_S_MAX: u64 = 60;
/// Stack of the thread that compiles: parsers of formats recurse. A trial has half of what follows it.
pub const STACK_BYTES: usize = 64 << 20;
const TRIAL_STACK_BYTES: usize = STACK_BYTES / 2;
/// Between two looks at whether a trial is over.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// What came of a trial.
pub(super) enum Trial {
    Passed,
    /// Why the format can't be followed.
    Refused(String),
    /// It took too long.
    Late,
}

/// Compiles a format in a child process, within a time.
///
/// # Errors
/// Where the trial itself can't be run.
pub(super) fn in_child(program: &Path, format: &OutputFormat, timeout: Duration) -> std::io::Result<Trial> {
    let mut patience = Patience::of(timeout);
    let mut child = Command::new(program)
        .arg(COMMAND)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let ended = feed(&mut child, format).and_then(|()| wait(&mut child, &mut patience));
    // Of a child that has ended this does nothing.
    let _ = child.kill();
    let _ = child.wait();
    let mut why = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut why)?;
    }
    match ended?.map(|status| status.code()) {
        None => Ok(Trial::Late),
        Some(Some(0)) => Ok(Trial::Passed),
        Some(Some(_)) if !why.is_empty() => Ok(Trial::Refused(why)),
        // Ended by a signal: no memory, no stack, no time.
        Some(None) => Ok(Trial::Refused("it is too complex".to_owned())),
        Some(Some(code)) => Err(std::io::Error::other(format!("a trial ended with status {code}"))),
    }
}

fn feed(child: &mut Child, format: &OutputFormat) -> std::io::Result<()> {
    let text = serde_json::to_vec(format).map_err(std::io::Error::other)?;
    // Dropped at the end: the child reads until then.
    let mut input = child.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    input.write_all(&text)
}

/// `None` where it takes too long. What it says fits the pipe.
fn wait(child: &mut Child, patience: &mut Patience) -> std::io::Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if patience.is_over() {
            return Ok(None);
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// The trial itself, in the child: reads a format and says what is wrong with it, if anything is. Returns whether all is
/// well.
pub fn run() -> bool {
    let limited = rlimit::setrlimit(Resource::AS, MEMORY_MAX, MEMORY_MAX)
        .and_then(|()| rlimit::setrlimit(Resource::CPU, PROCESSOR_S_MAX, PROCESSOR_S_MAX))
        .and_then(|()| rlimit::setrlimit(Resource::CORE, 0, 0));
    let mut text = Vec::new();
    let read = std::io::stdin().read_to_end(&mut text);
    let (Ok(()), Ok(_), Ok(format)) = (limited, read, serde_json::from_slice(&text)) else {
        return false;
    };
    let work = move || compile(&format).map(drop);
    let builder = thread::Builder::new().stack_size(TRIAL_STACK_BYTES);
    let joined = builder.spawn(work).map(thread::JoinHandle::join);
    let Ok(Ok(result)) = joined else {
        return false;
    };
    if let Err(why) = &result {
        // No more than a pipe holds, as nobody reads before the end.
        let why: String = why.chars().take(MESSAGE_MAX).collect();
        let _nobody_listens = std::io::stdout().write_all(why.as_bytes());
    }
    result.is_ok()
}

/// Compiles a format for a vocabulary of bytes, which has no control tokens.
///
/// # Errors
/// Why the format can't be followed.
pub fn compile(format: &OutputFormat) -> Result<Matcher, String> {
    let environment: TokEnv = Arc::new(ByteVocabulary::new());
    let factory = factory(&environment).ok_or("its trial can't be run")?;
    let split = |text: &str| vec![Markup::Text(text.to_owned())];
    super::compile(&factory, source(format, &split)?)
}

/// A vocabulary of a token for each byte: what a format costs to compile hardly depends on it.
pub struct ByteVocabulary(TokTrie);

impl ByteVocabulary {
    /// The token behind those of the bytes.
    pub const EOS: TokenId = 256;

    fn new() -> Self {
        let mut words: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        words.push(b"\xff<eos>".to_vec());
        Self(TokTrie::from(&TokRxInfo::new(Self::EOS + 1, Self::EOS), &words))
    }
}

impl TokenizerEnv for ByteVocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        bytes.iter().map(|byte| TokenId::from(*byte)).collect()
    }
}
