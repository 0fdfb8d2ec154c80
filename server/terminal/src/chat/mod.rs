//! `rempart chat`: a conversation with a model, or one answer for a script.

mod answer;
mod commands;
mod conversation;
mod editor;
mod options;
mod printer;
mod session;

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use rempart_client::{Begun, Client};
use tokio::runtime::{self, Runtime};
use tokio::signal::ctrl_c;

use crate::models;
use crate::visible::line;
use answer::{Answer, Stopped};
use conversation::{Conversation, Role};
use printer::{Look, Printer};

pub use options::ChatArgs;

/// Of a prompt that is piped in.
const PROMPT_BYTES_MAX: u64 = 8 << 20;
const NAME_CHARS_MAX: usize = 120;
/// As shells have it for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// How a chat ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Ctrl-C stopped the one answer.
    Interrupted,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::Interrupted => Self::from(INTERRUPTED),
        }
    }
}

/// Talks until the end, or asks once where there is a prompt or none who types.
///
/// # Errors
/// Where an option is wrong, the server does not answer, or the one answer does not come to its end.
pub fn run(args: &ChatArgs) -> anyhow::Result<Outcome> {
    let client = args.client()?;
    let piped = piped(args)?;
    // A thread of its own reads the signal of Ctrl-C while an answer is waited for.
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    if client.target().tells_key() {
        note("the key goes over the network in the clear: https:// would hide it");
    }
    let listed = match &args.model {
        Some(_) => Vec::new(),
        None => runtime.block_on(models::list(&client))?,
    };
    let model = args.model.clone().or_else(|| listed.first().cloned());
    let model = model.context("the server has no model")?;
    let mut conversation = Conversation::new(model, args.system.clone());
    conversation.temperature = args.temperature;
    conversation.max_tokens = args.max_tokens;
    let color = args.color.is_wanted() && std::io::stdout().is_terminal();
    if let Some(prompt) = piped {
        return once(&client, &runtime, conversation, prompt, color);
    }
    if listed.len() > 1 {
        note(&format!(
            "model: {}, the first of {}; /model has the others",
            line(&conversation.model, NAME_CHARS_MAX),
            listed.len()
        ));
    }
    session::talk(&client, &runtime, conversation, color)
}

/// The one prompt, where there is one: typed, or piped in.
fn piped(args: &ChatArgs) -> anyhow::Result<Option<String>> {
    let prompt = match &args.prompt {
        Some(prompt) => prompt.clone(),
        None if std::io::stdin().is_terminal() => return Ok(None),
        None => {
            let mut text = String::new();
            std::io::stdin()
                .lock()
                .take(PROMPT_BYTES_MAX + 1)
                .read_to_string(&mut text)
                .context("reading standard input, which must be UTF-8")?;
            ensure!(
                text.len() as u64 <= PROMPT_BYTES_MAX,
                "standard input: a prompt has at most {PROMPT_BYTES_MAX} bytes"
            );
            text
        }
    };
    ensure!(
        !prompt.trim().is_empty(),
        "there is nothing to ask: the prompt is empty"
    );
    Ok(Some(prompt))
}

fn once(
    client: &Client,
    runtime: &Runtime,
    mut conversation: Conversation,
    prompt: String,
    color: bool,
) -> anyhow::Result<Outcome> {
    conversation.say(Role::User, prompt);
    let look = Look {
        color,
        reasoning: std::io::stdout().is_terminal(),
    };
    let (answer, ended) = runtime.block_on(ask(client, &conversation, look));
    match ended {
        Ended::Done => {}
        Ended::Interrupted => return Ok(Outcome::Interrupted),
        Ended::Failed(reason) => bail!(reason),
    }
    if std::io::stderr().is_terminal() {
        let model = line(&conversation.model, NAME_CHARS_MAX);
        note(&format!("{model}: {}", answer.figures()));
    }
    Ok(Outcome::Done)
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    Interrupted,
    Failed(String),
}

/// Asks for the next answer, and prints it as it comes. What came is given even where it did not come to its end.
async fn ask(client: &Client, conversation: &Conversation, look: Look) -> (Answer, Ended) {
    let mut answer = Answer::begin(Instant::now());
    let mut printer = Printer::new(std::io::stdout(), look);
    let path = client.target().path("chat/completions");
    let streaming = client.stream(&path, conversation.body(), |data| {
        answer.event(data, Instant::now(), |part| printer.part(part))
    });
    // Dropping the stream ends its connection, which tells the server to stop.
    let streamed = tokio::select! {
        streamed = streaming => Some(streamed),
        _ = ctrl_c() => None,
    };
    let ended = match streamed {
        None => Ended::Interrupted,
        Some(Err(stopped)) => Ended::Failed(reason(&stopped)),
        Some(Ok(Begun::Refused { status, error })) => Ended::Failed(models::refusal(status, &error)),
        Some(Ok(Begun::Streamed)) if answer.finish.is_none() => {
            Ended::Failed("the stream ended before the answer did".to_owned())
        }
        Some(Ok(Begun::Streamed)) => Ended::Done,
    };
    match printer.end() {
        Err(error) if ended == Ended::Done => (answer, Ended::Failed(error.to_string())),
        _ => (answer, ended),
    }
}

fn reason(stopped: &Stopped) -> String {
    match stopped {
        Stopped::Failure(failure) => failure.to_string(),
        Stopped::Output(error) => format!("writing the answer: {error}"),
        Stopped::Server(error) => {
            let said = error.message.as_deref().or(error.code.as_deref());
            let said = said.map_or_else(String::new, |said| {
                format!(": {}", line(said, models::SAID_CHARS_MAX))
            });
            format!("the server reported an error within the stream{said}")
        }
    }
}

/// Tells a person something that is no answer.
fn note(text: &str) {
    // There is nobody to tell where even this can't be written.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
