//! Loops, data sets and endpoints: what is sent when, and what is made of what comes back.

use std::io::Write as _;
use std::time::Duration;

use rempart_load::Outcome;
use serde_json::{Value, json};

use crate::stub::{Behaviour, Pace, Stub, tokens_of};
use crate::{QUICK, Run, number};

/// No bound below is near what a busy machine may add: it shows what is counted, and examples/truth.rs how exactly.
const BUSY_MS: f64 = 400.0;

#[test]
fn a_closed_loop_counts_what_the_server_sent() {
    let pace = Pace {
        ttft: Duration::from_millis(60),
        itl: Duration::from_millis(20),
    };
    let stub = Stub::start(Behaviour::Steady, pace);
    let run = Run::of(
        &stub.url(),
        &[
            "--concurrency",
            "4",
            "--num-prompts",
            "12",
            "--random-output-len",
            "6",
        ],
    );
    let result = run.result();
    assert_eq!(
        (result["completed"].as_u64(), result["failed"].as_u64()),
        (Some(12), Some(0))
    );
    assert_eq!(result["total_output_tokens"].as_u64(), Some(72));
    assert_eq!(
        result["total_input_tokens"].as_u64(),
        Some(12 * tokens_of(8) as u64)
    );
    // Medians: a machine that stops makes those late that are in flight, which are a third.
    for (name, least) in [
        ("median_ttft_ms", 60.0),
        ("median_itl_ms", 15.0),
        ("p50_e2el_ms", 160.0),
    ] {
        let value = number(&result, name);
        assert!(value >= least && value < least + BUSY_MS, "{name}: {value}");
    }
    let ttfts = result["ttfts"].as_array().unwrap().iter();
    let mean = ttfts.filter_map(Value::as_f64).sum::<f64>() * 1e3 / 12.0;
    let told = number(&result, "mean_ttft_ms");
    assert!((told - mean).abs() < 1e-3, "{told}, not {mean}");
    assert_eq!(result["itls"][0].as_array().unwrap().len(), 5);
    let written = stub.written();
    assert_eq!(written.len(), 12);
    assert!(
        written.iter().all(|times| times.len() == 6 && times[0] >= 60.0),
        "{written:?}"
    );
    // One of them asked for the model. Each client keeps its own, unless a busy machine is late with the end of an answer.
    assert!((5..13).contains(&stub.connections()), "{}", stub.connections());
    assert_eq!(result["model_id"], "stub");
}

#[test]
fn without_keepalive_each_request_has_a_connection() {
    for load in [
        ["--concurrency", "3", "--endpoint", "chat"],
        ["--concurrency", "3", "--endpoint", "embeddings"],
        ["--request-rate", "200", "--endpoint", "chat"],
    ] {
        let stub = Stub::start(Behaviour::Steady, QUICK);
        let options = [&load[..], &["--num-prompts", "12", "--num-warmups", "2"]].concat();
        let result = Run::of(&stub.url(), &options).result();
        let asked = &result["rempart_bench"]["workload"];
        assert!(asked.get("disable_keepalive").is_none(), "{asked}");
        assert_eq!(stub.said_close(), 0);
        let before = stub.connections();
        let mut run = Run::of(&stub.url(), &[&options[..], &["--disable-keepalive"]].concat());
        run.options.retain(|option| option != "--no-calibration");
        let result = run.result();
        assert_eq!(result["completed"].as_u64(), Some(12));
        assert_eq!(result["rempart_bench"]["workload"]["disable_keepalive"], true);
        // By two requests it calibrates, and two warm the server up.
        assert_eq!(stub.said_close(), 16);
        // Two more ask what the server is.
        assert_eq!(stub.connections() - before, 18);
    }
}

/// What an open loop measures of a server that sends nothing from its first second to its third: how many requests waited long,
/// and how many were in flight at once.
fn open_loop_over_a_stall() -> (usize, u64) {
    let stall = Behaviour::Stall(Duration::from_secs(1), Duration::from_secs(3));
    let stub = Stub::start(stall, QUICK);
    let run = Run::of(
        &stub.url(),
        &[
            "--request-rate",
            "20",
            "--burstiness",
            "inf",
            "--num-prompts",
            "80",
        ],
    );
    let result = run.result();
    assert_eq!(result["completed"].as_u64(), Some(80));
    // No stop of the machine makes these less.
    assert!(
        number(&result, "p99_ttft_ms") > 1800.0,
        "{}",
        number(&result, "p99_ttft_ms")
    );
    assert!(
        number(&result, "p90_ttft_ms") > 1300.0,
        "{}",
        number(&result, "p90_ttft_ms")
    );
    let starts: Vec<f64> = result["start_times"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    assert!(
        starts
            .windows(2)
            .all(|pair| (pair[1] - pair[0] - 0.05).abs() < 1e-6),
        "{starts:?}"
    );
    let ttfts = result["ttfts"].as_array().unwrap().iter();
    let slow = ttfts.filter(|ttft| ttft.as_f64() > Some(0.5)).count();
    (slow, result["max_concurrent_requests"].as_u64().unwrap())
}

#[test]
fn an_open_loop_shows_a_stall_to_every_request_that_was_due() {
    // Every 50 ms one was due, for two seconds; each waited until the stall's end.
    let is_shown = |(slow, at_once): &(usize, u64)| (29..=42).contains(slow) && *at_once >= 36;
    // The machine may stop in one of them, which is a stall of its own.
    let others: Vec<_> = (0..3)
        .map(|_| open_loop_over_a_stall())
        .take_while(|measured| !is_shown(measured))
        .collect();
    assert!(others.len() < 3, "{others:?}");
}

#[test]
fn a_closed_loop_of_the_same_hides_it() {
    let stall = Behaviour::Stall(Duration::from_millis(300), Duration::from_millis(1300));
    let stub = Stub::start(stall, QUICK);
    let run = Run::of(
        &stub.url(),
        &[
            "--concurrency",
            "1",
            "--num-prompts",
            "100000",
            "--duration-s",
            "2",
            "--random-output-len",
            "1",
        ],
    );
    let result = run.result();
    let slow = result["ttfts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|ttft| ttft.as_f64() > Some(0.5))
        .count();
    // Of thousands, which is why rates are open loops. (A pause of the machine's own would be another.)
    assert!((1..=3).contains(&slow), "{slow}");
}

#[test]
fn requests_beyond_the_limit_in_flight_fail_and_are_not_put_off() {
    let pace = Pace {
        ttft: Duration::from_secs(3),
        ..QUICK
    };
    let stub = Stub::start(Behaviour::Steady, pace);
    let options = [
        "--request-rate",
        "100",
        "--burstiness",
        "inf",
        "--num-prompts",
        "20",
        "--in-flight-max",
        "5",
    ];
    let result = Run::of(&stub.url(), &options).result();
    assert_eq!(
        (result["completed"].as_u64(), result["failed"].as_u64()),
        (Some(5), Some(15))
    );
    assert_eq!(stub.requests(), 5);
}

#[test]
fn some_requests_are_dropped_and_count_as_neither() {
    let pace = Pace {
        ttft: Duration::from_millis(150),
        ..QUICK
    };
    let stub = Stub::start(Behaviour::Steady, pace);
    let options = [
        "--concurrency",
        "10",
        "--num-prompts",
        "60",
        "--cancellation-rate",
        "0.5",
        "--cancellation-delay-ms",
        "20",
    ];
    let result = Run::of(&stub.url(), &options).result();
    let cancelled = result["rempart_bench"]["cancelled"].as_u64().unwrap();
    assert!((15..=45).contains(&cancelled), "{cancelled}");
    assert_eq!(result["completed"].as_u64(), Some(60 - cancelled));
    assert_eq!(result["failed"].as_u64(), Some(0));
}

#[test]
fn prompts_are_calibrated_by_the_servers_count() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let run = Run::of(&stub.url(), &["--num-prompts", "8", "--random-input-len", "300"]);
    let rough = run.result();
    assert!(number(&rough["rempart_bench"], "input_length_error") > 0.2);
    let mut run = Run::of(&stub.url(), &["--num-prompts", "8", "--random-input-len", "300"]);
    run.options.retain(|option| option != "--no-calibration");
    let result = run.result();
    assert!(
        number(&result["rempart_bench"], "input_length_error") < 0.01,
        "{}",
        result["rempart_bench"]
    );
    assert!((number(&result["rempart_bench"], "tokens_per_word") - 1.25).abs() < 0.01);
}

#[test]
fn endpoints_that_generate_nothing_have_one_latency() {
    for (endpoint, documents) in [("embeddings", 0), ("rerank", 3)] {
        let stub = Stub::start(Behaviour::Steady, QUICK);
        let run = Run::of(
            &stub.url(),
            &[
                "--endpoint",
                endpoint,
                "--num-prompts",
                "6",
                "--num-documents",
                "3",
            ],
        );
        let result = run.result();
        assert_eq!(result["completed"].as_u64(), Some(6));
        assert_eq!(result["total_output_tokens"].as_u64(), Some(0));
        let words = if documents == 0 { 8 } else { 16 + documents * 8 };
        assert_eq!(
            result["total_input_tokens"].as_u64(),
            Some(6 * tokens_of(words) as u64),
            "{endpoint}"
        );
        assert!(number(&result, "p50_e2el_ms") >= 2.0 && number(&result, "p50_ttft_ms") == 0.0);
        assert_eq!(result["ttfts"], serde_json::Value::Null);
    }
}

#[test]
fn completions_stream_texts() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let result = Run::of(&stub.url(), &["--endpoint", "completions", "--num-prompts", "3"]).result();
    assert_eq!(
        (
            result["completed"].as_u64(),
            result["total_output_tokens"].as_u64()
        ),
        (Some(3), Some(12))
    );
    assert_eq!(result["backend"], "openai");
}

#[test]
fn a_trace_is_replayed_at_its_times() {
    let mut file = tempfile::Builder::new().suffix(".jsonl").tempfile().unwrap();
    for (at, input, output) in [(1000, 20, 2), (1200, 40, 3), (1300, 600, 4)] {
        writeln!(
            file,
            "{{\"timestamp\":{at},\"input_length\":{input},\"output_length\":{output},\"hash_ids\":[1]}}"
        )
        .unwrap();
    }
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let path = file.path().to_str().unwrap();
    let result = Run::of(&stub.url(), &["--dataset", "trace", "--dataset-path", path]).result();
    assert_eq!(result["start_times"], json!([0.0, 0.2, 0.3]));
    assert_eq!(result["output_lens"], json!([2, 3, 4]));
    let lens = [20, 40, 600].map(tokens_of);
    assert_eq!(result["input_lens"], json!(lens));
}

/// A run of `--dataset` on a file of this text.
fn of_file(stub: &Stub, dataset: &str, suffix: &str, text: &str) -> Value {
    let mut file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let options = ["--dataset", dataset, "--dataset-path", path, "--num-prompts", "2"];
    Run::of(&stub.url(), &options).result()
}

#[test]
fn data_of_other_tools_is_asked_as_it_is() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    // The second turn's twelve bytes are three tokens; who said only one thing is left out.
    let turns = "{\"value\":\"one two three four\"},{\"value\":\"twelve bytes\"}";
    let conversations =
        format!("[{{\"conversations\":[{turns}]}},{{\"conversations\":[{{\"value\":\"alone\"}}]}}]");
    let sharegpt = of_file(&stub, "sharegpt", ".json", &conversations);
    assert_eq!(sharegpt["input_lens"], json!([tokens_of(4), tokens_of(4)]));
    assert_eq!(sharegpt["output_lens"], json!([3, 3]));
    let rows = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n\
                5,ChatGPT,40,2,42,Conversation log\n5.5,ChatGPT,60,3,63,Conversation log\n";
    let burstgpt = of_file(&stub, "trace", ".csv", rows);
    assert_eq!(burstgpt["start_times"], json!([0.0, 0.5]));
    assert_eq!(burstgpt["input_lens"], json!([tokens_of(40), tokens_of(60)]));
    assert_eq!(burstgpt["output_lens"], json!([2, 3]));
    let prefix = [
        "--dataset",
        "shared-prefix",
        "--prefix-len",
        "30",
        "--num-prompts",
        "3",
    ];
    let shared = Run::of(&stub.url(), &prefix).result();
    assert_eq!(
        shared["input_lens"],
        json!([tokens_of(38), tokens_of(38), tokens_of(38)])
    );
}

#[test]
fn a_ramp_is_scheduled_ever_faster() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    for strategy in ["linear", "exponential"] {
        let ramp = [
            "--ramp-up-strategy",
            strategy,
            "--ramp-up-start-rps",
            "20",
            "--request-rate",
            "200",
        ];
        let load = [&ramp[..], &["--burstiness", "inf", "--num-prompts", "10"]].concat();
        let result = Run::of(&stub.url(), &load).result();
        let starts = result["start_times"].as_array().unwrap().iter();
        let starts: Vec<f64> = starts.filter_map(Value::as_f64).collect();
        let gaps: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.windows(2).all(|pair| pair[1] < pair[0]), "{gaps:?}");
        assert!((gaps[8] - 1.0 / 200.0).abs() < 1e-6, "{gaps:?}");
    }
}

#[test]
fn a_sweep_finds_a_knee_and_a_search_a_rate() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let run = Run::of(&stub.url(), &["--sweep", "4", "--num-prompts", "8"]);
    let steps = run.results();
    let clients: Vec<Option<u64>> = steps
        .iter()
        .map(|step| step["max_concurrency"].as_u64())
        .collect();
    assert_eq!(clients[..2], [Some(1), Some(2)]);
    let found = |step: &Value| step["rempart_bench"]["found"].clone();
    assert!(
        steps.iter().all(|step| found(step) == found(&steps[0])),
        "{steps:?}"
    );
    assert!(
        clients.contains(&found(&steps[0])["knee_clients"].as_u64()),
        "{steps:?}"
    );
    let options = [
        "--search-rate",
        "20:40",
        "--num-prompts",
        "8",
        "--slo",
        "e2el_max=30s,errors=0",
    ];
    let run = Run::of(&stub.url(), &options);
    assert_eq!(run.run().unwrap(), Outcome::Good);
    assert_eq!(run.read().len(), 2, "both ends keep it");
    assert_eq!(found(&run.read()[0]), json!({ "highest_rate": 40.0 }));
    let run = Run::of(
        &stub.url(),
        &[
            "--search-rate",
            "20:40",
            "--num-prompts",
            "8",
            "--slo",
            "ttft_p50=1us",
        ],
    );
    assert_eq!(run.run().unwrap(), Outcome::SloMissed);
    assert_eq!(run.read().len(), 1);
    assert_eq!(found(&run.read()[0]), json!({ "highest_rate": null }));
}

#[test]
fn a_step_ends_with_its_time() {
    let pace = Pace {
        ttft: Duration::from_millis(30),
        ..QUICK
    };
    let stub = Stub::start(Behaviour::Steady, pace);
    let result = Run::of(
        &stub.url(),
        &["--concurrency", "2", "--duration-s", "2", "--steady-state"],
    )
    .result();
    let duration = number(&result, "duration");
    assert!(duration < 2.0, "{duration}");
    let starts = result["start_times"].as_array().unwrap();
    assert!(
        starts.len() >= 4 && starts.iter().all(|start| start.as_f64() < Some(2.0)),
        "{starts:?}"
    );
}
