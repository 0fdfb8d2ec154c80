//! Ranks that share a model out compute what one computes alone: every architecture, both formats, two to four of them, as
//! threads on the CPU.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/gguf.rs"]
mod gguf;
mod support;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use candle_core::quantized::GgmlDType;
use gguf::write_gguf;
use rempart_kernels::Activations;
use rempart_models::{
    AttentionRow, ForwardInput, LoadOptions, ModelFiles,
    parallel::{Collective, InProcess, Shard, Single},
};
use serde_json::{Value, json};
use support::{Driver, LoadedModel, Rng, difference, load, random_tensors, write_checkpoint};

/// Largest difference between logits, as a part of their range. Sums of the same numbers in another order differ by less.
const TOLERANCE: f32 = 1e-4;
/// Where activations are rounded to 16 bits: what sums differ by makes a few of them the next number, 0.003 % of the largest.
const TOLERANCE_ROUNDED: f32 = 1e-3;
const TIMEOUT: Duration = Duration::from_mins(1);
const ARCHITECTURES: [&str; 5] = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text"];

/// Six heads, three of keys: two ranks have unequal parts, and four have keys in common. 97 tokens and 1280 columns, five
/// blocks of 256, are unequal too.
fn config(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 97, "hidden_size": 256, "intermediate_size": 1280,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 64,
        "tie_word_embeddings": model_type == "gemma3_text", "sliding_window": 6, "layer_types": null,
        "use_sliding_window": false, "query_pre_attn_scalar": 64,
    })
}

/// Heads of a block of 256, and one of keys.
fn wide(model_type: &str) -> Value {
    let mut config = config(model_type);
    config["num_attention_heads"] = json!(4);
    config["num_key_value_heads"] = json!(1);
    config["head_dim"] = json!(256);
    config
}

/// How activations are rounded; `None`: not at all.
type Rounding = Option<Activations>;

fn options(rounding: Rounding, collective: Arc<dyn Collective>) -> LoadOptions<'static> {
    LoadOptions {
        activations: rounding.unwrap_or_default(),
        unrounded: rounding.is_none(),
        collective,
        ..LoadOptions::default()
    }
}

/// Logits of a batch in which two prompts are computed in chunks, and then one token.
fn logits(loaded: &LoadedModel) -> Vec<Vec<f32>> {
    let mut driver = Driver::new(loaded, &mut Rng(3));
    let prompt = |len: u32| -> Vec<u32> { (0..len).map(|i| (i * 29 + 5 * len) % 97).collect() };
    let (mut long, mut short) = (driver.sequence(&prompt(22)), driver.sequence(&prompt(5)));
    let mut logits = driver.step(&mut [(&mut long, 9), (&mut short, 4)]);
    logits.extend(driver.step(&mut [(&mut short, 1), (&mut long, 12)]));
    logits.extend(driver.step(&mut [(&mut long, 1)]));
    logits
}

/// What `work` makes of each of `of` ranks' parts of a model.
fn each_rank<T: Send>(
    path: &Path,
    of: usize,
    rounding: Rounding,
    work: impl Fn(&LoadedModel) -> T + Sync,
) -> Vec<T> {
    let ranks = InProcess::group(of, TIMEOUT).unwrap();
    thread::scope(|scope| {
        let work = &work;
        let start =
            |rank: InProcess| scope.spawn(move || work(&load(path, &options(rounding, Arc::new(rank)))));
        let threads: Vec<_> = ranks.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The largest difference between what ranks and one alone compute, as a part of the logits' range. Ranks differ by no bit.
fn error(path: &Path, of: usize, rounding: Rounding) -> f32 {
    let alone = logits(&load(path, &options(rounding, Arc::new(Single))));
    let ranks = each_rank(path, of, rounding, logits);
    for rank in &ranks[1..] {
        assert_eq!(rank, &ranks[0]);
    }
    largest_error(&ranks[0], &alone)
}

/// Of rows of logits, as a part of each row's range.
fn largest_error(ours: &[Vec<f32>], whole: &[Vec<f32>]) -> f32 {
    let relative = |(ours, whole): (&Vec<f32>, &Vec<f32>)| {
        let largest = whole.iter().copied().fold(f32::MIN, f32::max);
        let smallest = whole.iter().copied().fold(f32::MAX, f32::min);
        difference(ours, whole) / (largest - smallest)
    };
    ours.iter().zip(whole).map(relative).fold(0.0, f32::max)
}

#[test]
fn ranks_compute_what_one_computes_in_every_architecture() {
    for model_type in ARCHITECTURES {
        let config = config(model_type);
        let tensors = random_tensors(&config, 21);
        let dir = tempfile::tempdir().unwrap();
        write_checkpoint(dir.path(), &config, &tensors);
        let file = dir.path().join("model.gguf");
        // Mistral's files say that they are llama's.
        let gguf = model_type != "mistral";
        if gguf {
            write_gguf(&file, &config, &tensors, GgmlDType::F32);
        }
        for of in 2..=6 {
            let error_of = |path| error(path, of, None);
            let error = error_of(dir.path());
            assert!(error < TOLERANCE, "{model_type}, {of} ranks: {error}");
            if gguf {
                let error = error_of(&file);
                assert!(error < TOLERANCE, "{model_type}, GGUF, {of} ranks: {error}");
            }
        }
    }
}

#[test]
fn ranks_read_their_blocks_of_every_gguf_type() {
    let types = [
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q2K,
        GgmlDType::Q3K,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
    ];
    for model_type in ["llama", "qwen2", "qwen3", "gemma3_text"] {
        let config = wide(model_type);
        let tensors = random_tensors(&config, 22);
        for dtype in types {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("model.gguf");
            write_gguf(&file, &config, &tensors, dtype);
            for of in [2, 4] {
                let unrounded = error(&file, of, None);
                assert!(
                    unrounded < TOLERANCE,
                    "{model_type}, {dtype:?}, {of} ranks: {unrounded}"
                );
                let rounded = error(&file, of, Some(Activations::Int16));
                assert!(
                    rounded < TOLERANCE_ROUNDED,
                    "{model_type}, {dtype:?}, {of} ranks: {rounded}"
                );
            }
        }
    }
}

#[test]
fn a_rank_takes_the_memory_of_its_part() {
    let config = wide("llama");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    write_gguf(&file, &config, &random_tensors(&config, 23), GgmlDType::Q4K);
    let files = ModelFiles::open(&file).unwrap();
    let whole = files.loaded_bytes(Shard::WHOLE).unwrap();
    assert_eq!(whole, files.checkpoint.loaded_bytes());
    for of in [2, 4] {
        let bytes = |shard| files.loaded_bytes(shard).unwrap();
        let all: Vec<u64> = Shard::all(of).unwrap().into_iter().map(bytes).collect();
        // Each has the one head of keys and all norms; panels of 16 rows round vocabularies up.
        assert!(all.iter().sum::<u64>() < whole * 3 / 2, "{all:?} of {whole}");
        assert!(
            *all.iter().max().unwrap() < whole * 2 / of as u64,
            "{all:?} of {whole}"
        );
    }
}

#[test]
fn what_cannot_be_divided_is_refused_with_what_can() {
    let config = config("llama");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.gguf");
    let refusal = |of: usize| {
        let files = ModelFiles::open(&file).unwrap();
        let planned = files.loaded_bytes(Shard::new(0, of).unwrap()).unwrap_err();
        let rank = InProcess::group(of, TIMEOUT).unwrap().remove(0);
        let loading = files.load(&options(None, Arc::new(rank)));
        (planned.to_string(), loading.err().unwrap().to_string())
    };
    let tensors = random_tensors(&config, 24);
    write_gguf(&file, &config, &tensors, GgmlDType::Q8_0);
    let expected = "num_attention_heads is 6; it fits 1, 2, 3, 4, 5, 6 ranks";
    let (planned, loading) = refusal(7);
    assert!(planned.contains(expected), "{planned}");
    assert!(loading.contains(expected), "{loading}");
    // A head is half a block, and there are three blocks of columns.
    let mut config = wide("llama");
    config["head_dim"] = json!(128);
    config["intermediate_size"] = json!(768);
    write_gguf(&file, &config, &random_tensors(&config, 25), GgmlDType::Q4K);
    let (planned, loading) = refusal(4);
    for text in [planned, loading] {
        assert!(
            text.contains("cannot be divided among 4 ranks") && text.contains("blocks of 256"),
            "{text}"
        );
        assert!(text.contains("it fits 1, 2"), "{text}");
    }
}

#[test]
fn a_rank_that_fails_ends_the_step_of_all() {
    let config = config("qwen2");
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(dir.path(), &config, &random_tensors(&config, 26));
    let ranks = InProcess::group(3, TIMEOUT).unwrap();
    let errors: Vec<String> = thread::scope(|scope| {
        let start = |rank: InProcess| {
            let path = dir.path();
            scope.spawn(move || {
                let own = rank.shard().rank();
                let loaded = load(path, &options(None, Arc::new(rank)));
                let driver = Driver::new(&loaded, &mut Rng(1));
                let forward = |slot| {
                    let input = ForwardInput {
                        tokens: &[5],
                        positions: &[0],
                        slots: &[slot],
                        rows: &[AttentionRow {
                            tokens: 0..1,
                            context_len: 1,
                            block_table: vec![0],
                        }],
                        logits: &[0],
                    };
                    loaded.model.forward(&input, &driver.kv).unwrap_err().to_string()
                };
                // One rank is asked for a slot that its cache does not have.
                let error = forward(if own == 1 { u32::MAX } else { 0 });
                let again = forward(0);
                assert!(again.contains("no longer"), "{again}");
                error
            })
        };
        let threads: Vec<_> = ranks.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(errors[1].contains("write_kv"), "{}", errors[1]);
    for other in [0, 2] {
        assert!(errors[other].contains("rank 1 failed"), "{}", errors[other]);
    }
}

/// The folder of real models: `python3 scripts/models.py fetch smollm2`, and so on.
fn real_model(file: &str) -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
    let folder = std::env::var("REMPART_MODELS").map_or_else(
        |_| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.cache/models"),
        PathBuf::from,
    );
    let path = folder.join(file);
    assert!(
        path.is_file(),
        "{} is missing: `python3 scripts/models.py fetch` gets it",
        path.display()
    );
    path
}

/// The likeliest tokens behind a prompt, and the logits behind each of them.
fn greedy(loaded: &LoadedModel) -> (Vec<u32>, Vec<Vec<f32>>) {
    let mut driver = Driver::new(loaded, &mut Rng(5));
    // Any tokens of each vocabulary, and room for those that come.
    let mut prompt: Vec<u32> = (0..PROMPT).map(|i| 300 + (i * i * 7919) % 20_000).collect();
    prompt.resize(prompt.len() + ANSWER, 0);
    let mut sequence = driver.sequence(&prompt);
    let (mut tokens, mut logits) = (Vec::new(), Vec::new());
    let mut chunk = PROMPT as usize;
    for _ in 0..ANSWER {
        let last = driver.step(&mut [(&mut sequence, chunk)]).pop().unwrap();
        let likeliest = (0..last.len())
            .max_by(|&a, &b| last[a].total_cmp(&last[b]))
            .unwrap();
        sequence.tokens[sequence.computed] = likeliest as u32;
        tokens.push(likeliest as u32);
        logits.push(last);
        chunk = 1;
    }
    (tokens, logits)
}

const PROMPT: u32 = 40;
const ANSWER: usize = 24;

/// How many of the first logits of two answers are behind the same tokens.
fn common(a: &[u32], b: &[u32]) -> usize {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (same + 1).min(a.len())
}

/// Without rounding ranks differ from one alone by the order of sums. Rounded activations are whole numbers, of which a few
/// become the next one, and then others in the layers behind: that is no more than what rounding does to one alone, once for
/// each of the two.
fn check_real(file: &str) {
    let path = real_model(file);
    let alone = |rounding| greedy(&load(&path, &options(rounding, Arc::new(Single))));
    let unrounded = alone(None);
    for (rounding, ranks) in [
        (None, [2, 4].as_slice()),
        (Some(Activations::Int16), &[2, 4]),
        (Some(Activations::Int8), &[2]),
    ] {
        let alone = alone(rounding);
        let rows = common(&alone.0, &unrounded.0);
        let by_rounding = largest_error(&alone.1[..rows], &unrounded.1[..rows]);
        for &of in ranks {
            let what = format!("{file}, {rounding:?}, {of} ranks");
            let ranks = each_rank(&path, of, rounding, greedy);
            assert!(ranks.iter().all(|rank| rank == &ranks[0]), "{what}");
            let (tokens, logits) = &ranks[0];
            let rows = common(tokens, &alone.0);
            let error = largest_error(&logits[..rows], &alone.1[..rows]);
            report(&format!(
                "{what}: {error:.1e}, rounding {by_rounding:.1e}, {rows} rows"
            ));
            let tolerance = if rounding.is_none() {
                TOLERANCE
            } else {
                2.0 * by_rounding
            };
            assert!(error < tolerance, "{what}: {error}, may be {tolerance}");
            // Text of no sense has tokens that to 8 bits are as likely as each other.
            if rounding != Some(Activations::Int8) {
                assert_eq!(tokens, &alone.0, "{what}");
            }
        }
    }
}

#[test]
fn smollm2_says_the_same_on_ranks() {
    check_real("SmolLM2-135M-Instruct.Q4_1.gguf");
}

#[test]
fn qwen2_5_coder_says_the_same_on_ranks() {
    check_real("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf");
}

#[test]
fn gemma3_says_the_same_on_ranks() {
    check_real("gemma-3-270m-q4_k_m.gguf");
}

#[expect(clippy::print_stdout, reason = "figures for who asks with --nocapture")]
fn report(line: &str) {
    println!("{line}");
}
