//! `rempart chat`: a conversation with a model, in a terminal or from a script.

use std::process::ExitCode;

pub(super) use rempart_terminal::ChatArgs;

pub(super) fn chat(args: &ChatArgs) -> anyhow::Result<ExitCode> {
    rempart_terminal::chat(args).map(ExitCode::from)
}
