//! A conversation at a terminal: what is typed is done or said, and answers are printed as they come.

use std::io::{self, Write as _};

use rempart_client::Client;
use tokio::runtime::Runtime;

use super::commands::{self, HELP, Typed};
use super::conversation::{Conversation, Role};
use super::editor::{Line, Prompt};
use super::printer::{Look, remark};
use super::{Ended, NAME_CHARS_MAX, Outcome, ask};
use crate::models;
use crate::visible::line;

/// Talks until `/quit` or Ctrl-D.
pub(super) fn talk(
    client: &Client,
    runtime: &Runtime,
    mut conversation: Conversation,
    color: bool,
) -> anyhow::Result<Outcome> {
    let mut prompt = Prompt::new()?;
    let model = line(&conversation.model, NAME_CHARS_MAX);
    say(&format!(
        "{model} at {}; /help tells more\n",
        client.target().authority()
    ))?;
    loop {
        let typed = match prompt.read()? {
            Line::Text(text) => text,
            Line::Interrupted => {
                say("Ctrl-D or /quit ends the chat\n")?;
                continue;
            }
            Line::End => return Ok(Outcome::Done),
        };
        match commands::read(&typed) {
            Ok(Typed::Quit) => return Ok(Outcome::Done),
            Ok(Typed::Say(text)) => answer(client, runtime, &mut conversation, text, color)?,
            Ok(command) => {
                let said = obey(client, runtime, &mut conversation, command);
                say(&said.unwrap_or_else(|error| format!("{error:#}\n")))?;
            }
            Err(wrong) => say(&format!("{wrong}\n"))?,
        }
    }
}

fn answer(
    client: &Client,
    runtime: &Runtime,
    conversation: &mut Conversation,
    text: String,
    color: bool,
) -> io::Result<()> {
    conversation.say(Role::User, text);
    let look = Look {
        color,
        reasoning: true,
    };
    let (answer, ended) = runtime.block_on(ask(client, conversation, look));
    // What was said goes on with what has come of an answer, as the person has seen it; without any, it was not said.
    if answer.content.is_empty() && ended != Ended::Done {
        conversation.take_back();
    } else {
        conversation.say(Role::Assistant, answer.content.clone());
    }
    let figures = match &ended {
        Ended::Done => answer.figures(),
        Ended::Interrupted => format!("stopped; {}", answer.figures()),
        Ended::Failed(reason) => format!("{reason}; {}", answer.figures()),
    };
    remark(&mut io::stdout().lock(), &figures, color)
}

/// Does what a command says, and tells what was done.
fn obey(
    client: &Client,
    runtime: &Runtime,
    conversation: &mut Conversation,
    command: Typed,
) -> anyhow::Result<String> {
    Ok(match command {
        Typed::Nothing | Typed::Say(_) | Typed::Quit => String::new(),
        Typed::Help => HELP.to_owned(),
        Typed::System(text) => {
            conversation.system = text;
            let has_text = conversation.system.is_some();
            format!("system: {}\n", if has_text { "set" } else { "none" })
        }
        Typed::Temperature(temperature) => {
            conversation.temperature = temperature;
            let shown = temperature.map_or("the server's".to_owned(), |value| value.to_string());
            format!("temperature: {shown}\n")
        }
        Typed::Clear => {
            conversation.clear();
            "forgotten\n".to_owned()
        }
        Typed::Save(path) if conversation.is_empty() => {
            format!("{}: there is nothing to save\n", path.display())
        }
        Typed::Save(path) => {
            conversation.save(&path)?;
            format!("saved in {}\n", path.display())
        }
        Typed::Model(name) => model(client, runtime, conversation, name)?,
    })
}

fn model(
    client: &Client,
    runtime: &Runtime,
    conversation: &mut Conversation,
    name: Option<String>,
) -> anyhow::Result<String> {
    let listed = runtime.block_on(models::list(client))?;
    let Some(name) = name else {
        let marked = |model: &String| {
            let mark = if *model == conversation.model { "*" } else { " " };
            format!("{mark} {}\n", line(model, NAME_CHARS_MAX))
        };
        return Ok(listed.iter().map(marked).collect());
    };
    anyhow::ensure!(
        listed.contains(&name),
        "/model {name}: the server has no such model; /model lists them"
    );
    conversation.model = name;
    Ok(format!("model: {}\n", line(&conversation.model, NAME_CHARS_MAX)))
}

fn say(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
