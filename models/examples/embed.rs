//! Embeds texts that are tokens already, once for each line of the standard input, and prints the seconds that it took: what
//! scripts/bench-encoders measures.
//!
//! `embed MODEL TOKENS [bf16|f32]`, where TOKENS is a JSON file with a list of ids for each text.

use std::{
    error::Error,
    io::{self, BufRead, Write},
    path::Path,
    time::Instant,
};

use rempart_models::{EncoderBatch, EncoderOptions, Precision, load_encoder};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens, rest @ ..] = &arguments[..] else {
        return Err("usage: embed MODEL TOKENS [bf16|f32]".into());
    };
    let precision = match rest {
        [] => Precision::Bf16,
        [name] if name == "bf16" => Precision::Bf16,
        [name] if name == "f32" => Precision::F32,
        _ => return Err("the precision must be bf16 or f32".into()),
    };
    let options = EncoderOptions {
        precision,
        ..EncoderOptions::default()
    };
    let model = load_encoder(Path::new(model), &options)?;
    let texts: Vec<Vec<u32>> = serde_json::from_slice(&std::fs::read(tokens)?)?;
    let lengths: Vec<usize> = texts.iter().map(Vec::len).collect();
    let batch = EncoderBatch {
        tokens: &texts.concat(),
        token_types: &[],
        lengths: &lengths,
    };
    let mut out = io::stdout();
    for _ in io::stdin().lock().lines() {
        let start = Instant::now();
        let vectors = model.embed(&batch)?;
        writeln!(out, "{} {}", start.elapsed().as_secs_f64(), vectors.len())?;
        out.flush()?;
    }
    Ok(())
}
