//! What is written, what it decides, and what it never holds.

use std::time::Duration;

use rempart_load::Outcome;
use serde_json::Value;

use crate::stub::{Behaviour, Pace, Stub};
use crate::{QUICK, Run, number};

/// The names of vLLM's result, which its users' tools read.
const NAMES: &[&str] = &[
    "date",
    "backend",
    "label",
    "model_id",
    "tokenizer_id",
    "num_prompts",
    "request_rate",
    "burstiness",
    "max_concurrency",
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
];
const DETAILED: &[&str] = &[
    "input_lens",
    "output_lens",
    "ttfts",
    "itls",
    "start_times",
    "errors",
];

#[test]
fn results_have_the_names_that_vllm_gives_them() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let options = [
        "--num-prompts",
        "5",
        "--label",
        "one",
        "--metadata",
        "build=7",
        "--metadata",
        "duration=hidden",
        "--goodput",
        "ttft:5000",
    ];
    let result = Run::of(&stub.url(), &options).result();
    let statistics = ["mean", "median", "std", "p50", "p90", "p95", "p99"];
    let latencies = ["ttft", "tpot", "itl", "e2el"];
    let names = statistics
        .iter()
        .flat_map(|statistic| latencies.map(|latency| format!("{statistic}_{latency}_ms")));
    for name in names {
        assert!(number(&result, &name) >= 0.0);
    }
    for name in NAMES.iter().chain(DETAILED) {
        assert!(result.get(name).is_some(), "{name}");
    }
    assert_eq!(
        (result["build"].as_str(), result["label"].as_str()),
        (Some("7"), Some("one"))
    );
    assert!(result["duration"].is_number() && number(&result, "request_goodput") > 0.0);
    assert_eq!(result["rempart_bench"]["model"]["sha256"], "0123");
    assert_eq!(result["rempart_bench"]["server_version"]["build"], "abcd");
    assert_eq!(result["generated_texts"], Value::Null);
}

#[test]
fn a_page_and_a_table_are_made_and_no_file_holds_a_text() {
    let stub = Stub::with(Behaviour::Steady, QUICK, Some("sk-canary"), "127.0.0.1:0");
    let mut run = Run::of(
        &stub.url(),
        &[
            "--concurrency",
            "1,2",
            "--num-prompts",
            "9",
            "--api-key",
            "sk-canary",
        ],
    );
    let data = run.path("data.jsonl");
    std::fs::write(&data, "{\"prompt\":\"the canary sings\",\"output_tokens\":3}\n").unwrap();
    let header = "X-Team=canary-header";
    let path = "chat/completions?key=canary-query";
    let files = [
        "--csv".to_owned(),
        run.path("table.csv"),
        "--html".to_owned(),
        run.path("page.html"),
    ];
    run.options.extend(files);
    for option in [
        "--dataset",
        "custom",
        "--dataset-path",
        &data,
        "--slo",
        "errors=0",
        "--header",
        header,
        "--path",
        path,
        "--label",
        "<b>&",
    ] {
        run.options.push(option.to_owned());
    }
    assert_eq!(run.results().len(), 2);
    let read = |name: &str| std::fs::read_to_string(run.path(name)).unwrap();
    let (page, table) = (read("page.html"), read("table.csv"));
    for text in [&page, &table, &read("result.json")] {
        assert!(!text.contains("canary") && !text.contains("word "), "{text}");
    }
    assert!(
        page.matches("<svg").count() == 4 && page.contains("&lt;b&gt;&amp;"),
        "{page}"
    );
    // Names of XML's own are all that looks like an address.
    let fetched = page.replace("http://www.w3.org/2000/svg", "");
    assert!(
        !fetched.contains("http://") && !fetched.contains("https://") && !fetched.contains("src="),
        "{fetched}"
    );
    assert_eq!(table.lines().count(), 3);
    assert!(table.starts_with("model_id,load,request_rate,max_concurrency"));
}

#[test]
fn an_slo_decides_the_outcome() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let outcome = |slo: &str| {
        Run::of(&stub.url(), &["--num-prompts", "5", "--slo", slo])
            .run()
            .unwrap()
    };
    assert_eq!(outcome("ttft_p95=20s,errors=0"), Outcome::Good);
    assert_eq!(outcome("ttft_p95=20s,itl_p99=1us"), Outcome::SloMissed);
    assert_eq!(
        (
            Outcome::Good.status(),
            Outcome::SloMissed.status(),
            Outcome::Regression.status()
        ),
        (0, 3, 4)
    );
}

#[test]
fn a_regression_is_found_and_noise_is_not() {
    let pace = Pace {
        ttft: Duration::from_millis(200),
        itl: Duration::from_millis(60),
    };
    let stub = Stub::start(Behaviour::ByModel, pace);
    let run = |model: &str, more: &[&str]| {
        let options = [
            "--concurrency",
            "8",
            "--num-prompts",
            "32",
            "--model",
            model,
            "--random-output-len",
            "4",
        ];
        Run::of(&stub.url(), &[&options[..], more].concat())
    };
    // Other work on this machine is more than noise: what it may add is within this tolerance, and what is slow is beyond.
    let compared = |model| {
        let before = run("slow-1", &[]);
        before.results();
        let baseline = before.path("result.json");
        run(model, &["--baseline", &baseline, "--regression-tolerance", "1"])
            .run()
            .unwrap()
    };
    // The machine may stop in one of them; noise is in each.
    assert!((0..3).any(|_| compared("slow-1") == Outcome::Good));
    assert_eq!(compared("slow-4"), Outcome::Regression);
}

#[test]
fn what_is_no_baseline_says_why() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let before = Run::of(&stub.url(), &["--num-prompts", "10"]);
    before.results();
    let baseline = before.path("result.json");
    let said = |options: &[&str]| format!("{:#}", Run::of(&stub.url(), options).run().unwrap_err());
    let asked = stub.requests();
    let against =
        |options: &[&str]| said(&[&["--baseline", &baseline, "--num-prompts", "10"], options].concat());
    let refused = against(&["--concurrency", "2"]);
    assert!(refused.contains("has no step of 2 clients"), "{refused}");
    for (name, options) in [
        ("ignore_eos", &["--ignore-eos"][..]),
        ("disable_keepalive", &["--disable-keepalive"]),
        ("temperature", &["--temperature", "0.5"]),
        ("extra_body_digest", &["--extra-body", "{\"top_p\":0.5}"]),
        ("path, query_digest", &["--path", "completions?a=1"]),
        ("random_range_ratio", &["--random-range-ratio", "0.5"]),
        (
            "cancellation_rate, cancellation_delay_ms",
            &["--cancellation-rate", "0.5"],
        ),
    ] {
        let refused = against(options);
        let differ = refused
            .split_once("these differ: ")
            .map(|(_, differ)| differ.split(", "));
        let differ: Vec<&str> = differ.into_iter().flatten().collect();
        let expected: Vec<&str> = name.split(", ").collect();
        assert!(differ.len() == expected.len(), "{refused}");
        assert!(expected.iter().all(|name| differ.contains(name)), "{refused}");
    }
    let refused = said(&["--baseline", &baseline, "--num-prompts", "3"]);
    assert!(refused.contains("3 requests say too little"), "{refused}");
    assert_eq!(stub.requests(), asked, "nothing is measured before it is refused");
    let unkept = Run::of(&stub.url(), &["--num-prompts", "10", "--disable-keepalive"]);
    unkept.results();
    let refused = said(&["--baseline", &unkept.path("result.json"), "--num-prompts", "10"]);
    assert!(refused.ends_with("these differ: disable_keepalive"), "{refused}");
    let other = before.path("other.json");
    let mut impossible = before.read().remove(0);
    impossible["p95_ttft_ms"] = serde_json::json!(-1e10);
    std::fs::write(&other, impossible.to_string()).unwrap();
    assert!(said(&["--baseline", &other]).contains("that none can be"));
    std::fs::write(&other, "{\"a\":1}").unwrap();
    assert!(said(&["--baseline", &other]).contains("no result of"));
    let result = before.read().remove(0);
    let without: serde_json::Map<String, Value> = result
        .as_object()
        .unwrap()
        .clone()
        .into_iter()
        .filter(|(name, _)| name != "e2els")
        .collect();
    std::fs::write(&other, Value::Object(without).to_string()).unwrap();
    assert!(said(&["--baseline", &other]).contains("--save-detailed"));
}

#[test]
fn a_baseline_of_other_data_under_the_same_name_is_none() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let mut before = Run::of(&stub.url(), &["--num-prompts", "8", "--dataset", "custom"]);
    let data = before.path("data.jsonl");
    before.options.extend(["--dataset-path".to_owned(), data.clone()]);
    let write = |text: &str| std::fs::write(&data, text).unwrap();
    write("{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"output_tokens\":3}\n");
    before.results();
    let baseline = before.path("result.json");
    let run = || {
        let mut run = Run::of(&stub.url(), &["--num-prompts", "8", "--dataset", "custom"]);
        run.options
            .extend(["--baseline", &baseline, "--dataset-path", &data].map(str::to_owned));
        run.run()
    };
    assert!(run().is_ok());
    write("{\"prompt\":\"a\"}\n{\"prompt\":\"b\",\"output_tokens\":4}\n");
    let refused = format!("{:#}", run().unwrap_err());
    assert!(refused.ends_with("these differ: dataset_digest"), "{refused}");
}

#[test]
fn what_was_measured_is_kept_though_it_can_not_be_compared() {
    let pace = Pace {
        ttft: Duration::from_millis(200),
        ..QUICK
    };
    let stub = Stub::start(Behaviour::Steady, pace);
    let before = Run::of(&stub.url(), &["--num-prompts", "10"]);
    before.results();
    let baseline = before.path("result.json");
    // At most five requests begin in this time.
    let run = Run::of(&stub.url(), &["--duration-s", "1", "--baseline", &baseline]);
    let said = format!("{:#}", run.run().unwrap_err());
    assert!(said.contains("requests say too little"), "{said}");
    let kept = run.read().remove(0);
    assert!(kept["completed"].as_u64() > Some(0), "{kept}");
    assert_eq!(kept["rempart_bench"]["baseline"], serde_json::json!([]));
}

#[test]
fn a_page_shows_the_baseline_beside_the_run() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let load = |clients: &str| ["--concurrency", clients, "--num-prompts", "10"].map(str::to_owned);
    let mut before = Run::of(&stub.url(), &["--label", "last week"]);
    before.options.extend(load("1,2,3,4,5,6"));
    before.results();
    let mut run = Run::of(&stub.url(), &[]);
    let files = [before.path("result.json"), run.path("page.html")];
    run.options.extend(load("1,2,3,4,5"));
    run.options
        .extend(["--baseline", &files[0], "--html", &files[1]].map(str::to_owned));
    run.results();
    let page = std::fs::read_to_string(&files[1]).unwrap();
    for text in [
        "Against the baseline: last week, stub",
        "mean_ttft_ms: ",
        "baseline: last week, stub",
        "Time to the first token: share of requests below",
        "Time between tokens: share below",
        "Latency against throughput, a point for each step",
        "The last step, second by second",
    ] {
        assert!(page.contains(text), "{text}");
    }
    // Of as many as a chart has colours for, the last ones, each with its own.
    let drawn = |clients: usize| page.matches(&format!("{clients} clients, baseline")).count();
    assert_eq!([1, 2, 3, 4, 5, 6].map(drawn), [0, 2, 2, 2, 2, 0]);
}

#[test]
fn a_sweep_and_a_search_are_compared_where_both_have_a_step() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let run = |load: &[&str]| Run::of(&stub.url(), &[load, &["--num-prompts", "10"]].concat());
    let compared = |before: &Run, now: &[&str]| -> Vec<usize> {
        let result = before.path("result.json");
        let steps = run(&[now, &["--baseline", &result]].concat()).results();
        let figures = |step: &Value| step["rempart_bench"]["baseline"].as_array().unwrap().len();
        steps.iter().map(figures).collect()
    };
    let before = run(&["--sweep", "2"]);
    before.results();
    let of_sweep = compared(&before, &["--sweep", "4"]);
    assert!(
        of_sweep[..2] == [9, 9] && of_sweep[2..].iter().all(|count| *count == 0),
        "{of_sweep:?}"
    );
    let result = before.path("result.json");
    let few = ["--sweep", "2", "--num-prompts", "3", "--baseline", &result];
    let said = format!("{:#}", Run::of(&stub.url(), &few).run().unwrap_err());
    assert!(said.contains("3 requests say too little"), "{said}");
    // A step of too few is no reason to refuse the others.
    let text = std::fs::read_to_string(&result).unwrap();
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for name in ["ttfts", "itls", "e2els", "output_lens", "errors"] {
        lines[0][name].as_array_mut().unwrap().truncate(3);
    }
    std::fs::write(
        &result,
        lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    let of_sweep = compared(&before, &["--sweep", "2"]);
    assert_eq!(of_sweep, [0, 9]);
    // The rate between 20 and 40 that a search tries, which is read from JSON as its neighbour.
    let middle = 800_f64.sqrt().to_string();
    let before = run(&["--request-rate", &middle]);
    before.results();
    assert_eq!(compared(&before, &["--request-rate", &middle]), [8]);
}

#[test]
fn a_file_that_can_not_be_written_costs_no_other() {
    let stub = Stub::start(Behaviour::Steady, QUICK);
    let mut run = Run::of(&stub.url(), &["--num-prompts", "3"]);
    let page = run.path("page.html");
    run.options
        .extend(["--csv", "/dev/full", "--html", &page].map(str::to_owned));
    let said = format!("{:#}", run.run().unwrap_err());
    assert!(said.contains("writing /dev/full"), "{said}");
    assert_eq!(run.read().len(), 1);
    assert!(std::fs::read_to_string(&page).unwrap().contains("<svg"));
    let asked = stub.requests();
    for (option, path) in [("--csv", "/no/such/folder/x"), ("--csv", "/"), ("--csv", &page)] {
        let run = Run::of(
            &stub.url(),
            &["--num-prompts", "3", "--html", &page, option, path],
        );
        let said = format!("{:#}", run.run().unwrap_err());
        assert!(
            said.contains("in a folder that is there") || said.contains("another option's"),
            "{said}"
        );
    }
    assert_eq!(stub.requests(), asked);
}
