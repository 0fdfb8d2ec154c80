use std::ffi::OsString;
use std::process::ExitCode;

use rempart::cli::{self, Cli};

fn main() -> ExitCode {
    rempart_kernels::keep_freed_memory();
    let typed: Vec<OsString> = std::env::args_os().collect();
    let cli = Cli::parse_with_file(&typed).unwrap_or_else(|error| error.exit());
    match cli::run(cli, typed) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
