//! What shells and `man` know of the command line.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;

const NAME: &str = "rempart";

/// Whose completions are printed.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    shell: Shell,
}

/// Where manual pages are written.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// A folder, such as /usr/local/share/man/man1
    folder: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    Ok(std::io::stdout().lock().write_all(&script)?)
}

pub(super) fn man(args: &ManArgs) -> anyhow::Result<()> {
    let folder = args.folder.display();
    write_pages(&args.folder).with_context(|| format!("writing manual pages into {folder}"))?;
    writeln!(
        std::io::stdout().lock(),
        "written: {folder}/{NAME}.1, and one for each command"
    )?;
    Ok(())
}

fn write_pages(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_that_is_shown_has_a_page_and_is_completed() {
        let folder = tempfile::tempdir().unwrap();
        write_pages(folder.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(folder.path().join(format!("{name}.1")));
        assert!(page("rempart-serve").unwrap().contains("context\\-length"));
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), NAME, &mut script);
        let script = String::from_utf8(script).unwrap();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let shown = !command.is_hide_set();
            assert_eq!(page(&format!("{NAME}-{name}")).is_ok(), shown, "{name}");
            assert!(!shown || script.contains(name), "{name}");
        }
    }
}
