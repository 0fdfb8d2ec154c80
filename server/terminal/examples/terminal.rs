//! `rempart top` and `rempart chat` alone, without the server that they are a part of: they compile in a fraction of the time.
//!
//! ```text
//! cargo run --release -p rempart-terminal --example terminal -- top --base-url http://127.0.0.1:8080/v1
//! ```

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use rempart_terminal::{ChatArgs, TopArgs};

#[derive(Parser)]
#[command(name = "terminal", version, about, max_term_width = 100)]
enum Terminal {
    Top(TopArgs),
    Chat(ChatArgs),
}

fn main() -> ExitCode {
    let done = match Terminal::parse() {
        Terminal::Top(args) => rempart_terminal::top(&args).map(|()| ExitCode::SUCCESS),
        Terminal::Chat(args) => rempart_terminal::chat(&args).map(ExitCode::from),
    };
    done.unwrap_or_else(|error| {
        // There is nobody to tell where even this can't be written.
        let _ = writeln!(std::io::stderr().lock(), "{error:#}");
        ExitCode::FAILURE
    })
}
