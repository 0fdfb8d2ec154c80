//! `rempart bench` alone, without the server that it is a part of: it compiles in a fraction of the time.
//!
//! ```text
//! cargo run --release -p rempart-load --example bench -- --base-url http://127.0.0.1:8080/v1 --concurrency 1,8
//! ```

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use rempart_load::{COULD_NOT_RUN, LoadArgs};

#[derive(Parser)]
#[command(name = "bench", version, about, max_term_width = 100)]
struct Bench {
    #[command(flatten)]
    load: LoadArgs,
}

fn main() -> ExitCode {
    match rempart_load::run(&Bench::parse().load) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            // There is nobody to tell where even this can't be written.
            let _ = writeln!(std::io::stderr().lock(), "{error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}
