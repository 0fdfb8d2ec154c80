//! How long the masks of schemas take: random walks through each, with a model's own vocabulary.
//!
//! `cargo run --release -p rempart --example masks -- MODEL FOLDER`, the folder with one schema in each `.json`.
#![expect(clippy::print_stdout, reason = "its results are what it prints")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use rempart::cli::{Cli, Command};
use rempart::config::Settings;
use rempart::metrics::Metrics;
use rempart::openai::format::{AskedFormat, OutputFormat};
use rempart::registry::Served;
use rempart::served_model::Loader;
use rempart_engine::Then;

/// Tokens of one walk.
const TOKENS: usize = 200;
/// The bar: a mask that takes longer holds all sequences up.
const BAR: Duration = Duration::from_millis(1);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments
        .get(1)
        .is_some_and(|argument| argument == "check-format")
    {
        // Formats are tried by a child process, which is this program again.
        std::process::exit(i32::from(!rempart::grammar::check::run()));
    }
    let [_, model, folder] = arguments.as_slice() else {
        anyhow::bail!("give a model and a folder of schemas");
    };
    let settings = settings(model)?;
    let first = Loader::new(settings.clone(), Metrics::new()?)?.load_first()?;
    let Some(Served::Generator(model)) = first.first().map(|first| &first.loaded.served) else {
        anyhow::bail!("the model generates no text");
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    files.sort();
    let (mut times, mut refused) = (Vec::new(), 0);
    for (seed, file) in files.iter().enumerate() {
        let asked = AskedFormat {
            format: OutputFormat::JsonSchema(std::fs::read_to_string(file)?),
            param: "schema",
            fallback: None,
        };
        match model.grammars.compile(&asked, &settings.request) {
            Ok(grammar) => walk(
                &mut *grammar.0.start(),
                seed as u64 + 1,
                model.vocab_size,
                &mut times,
            ),
            Err(_) => refused += 1,
        }
    }
    report(&mut times, files.len(), refused);
    Ok(())
}

fn settings(model: &str) -> anyhow::Result<Settings> {
    let cli = Cli::try_parse_from(["rempart", "serve", model, "--kv-cache-mib", "64"])?;
    match cli.command {
        Command::Serve(args) => Ok(args.check()?),
        _ => anyhow::bail!("the arguments say serve"),
    }
}

/// Goes on by random tokens of those that are allowed, and notes how long each took to find and to follow.
fn walk(place: &mut dyn rempart_engine::Constraint, seed: u64, vocab_size: usize, times: &mut Vec<Duration>) {
    let mut random = seed;
    for _ in 0..TOKENS {
        let began = Instant::now();
        let mask = place.allowed();
        let masked = began.elapsed();
        let allowed: Vec<u32> = (0..vocab_size as u32)
            .filter(|token| mask.allows(*token))
            .collect();
        if allowed.is_empty() {
            return;
        }
        // Xorshift (Marsaglia 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let token = allowed[(random % allowed.len() as u64) as usize];
        let began = Instant::now();
        let advance = place.advance(token, true);
        times.push(masked + began.elapsed());
        if advance.then != Then::More {
            return;
        }
    }
}

fn report(times: &mut [Duration], schemas: usize, refused: usize) {
    times.sort_unstable();
    let at = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000];
    let over = times.iter().filter(|time| **time > BAR).count();
    println!(
        "{schemas} schemas, {refused} of them refused, {} tokens",
        times.len()
    );
    println!(
        "median {:?}, p90 {:?}, p99 {:?}, most {:?}",
        at(500),
        at(900),
        at(990),
        at(1000)
    );
    println!("{:.2} % over {BAR:?}", 100.0 * over as f64 / times.len() as f64);
}
