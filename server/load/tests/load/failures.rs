//! Servers that answer badly: each request fails with a reason, in a bounded time, and nothing of a prompt is told.

use std::time::{Duration, Instant};

use crate::stub::{Behaviour, Stub};
use crate::{QUICK, Run};

/// Asks four times, and gives the reason that all of them failed for.
fn reason(behaviour: Behaviour) -> String {
    // Longer than a machine stops. A silent server is waited for in full, and so for less.
    let silent = matches!(behaviour, Behaviour::Never | Behaviour::Hang);
    let stub = Stub::start(behaviour, QUICK);
    let options = [
        "--concurrency",
        "2",
        "--num-prompts",
        "4",
        "--idle-timeout-s",
        if silent { "4" } else { "30" },
        "--timeout-s",
        "10",
    ];
    let run = Run::of(&stub.url(), &options);
    let began = Instant::now();
    let said = run.run().unwrap_err().to_string();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_eq!(said, "no request was answered");
    let results = run.read();
    assert_eq!(
        (results[0]["completed"].as_u64(), results[0]["failed"].as_u64()),
        (Some(0), Some(4)),
        "{results:?}"
    );
    assert!(
        results[0]["errors"]
            .as_array()
            .unwrap()
            .iter()
            .all(|error| *error != "")
    );
    let reasons = results[0]["rempart_bench"]["failures"].as_object().unwrap();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    reasons.keys().next().unwrap().clone()
}

#[test]
fn what_is_not_http_fails() {
    let said = reason(Behaviour::Raw(b"\x00\x01garbage\r\n\r\n".to_vec()));
    assert!(said.starts_with("not HTTP/1.1"), "{said}");
    let said = reason(Behaviour::Raw(Vec::new()));
    assert!(said.starts_with("connection lost"), "{said}");
}

#[test]
fn a_head_without_end_fails() {
    let said = reason(Behaviour::Raw(
        [b"HTTP/1.1 200 OK\r\na: ".to_vec(), vec![b'x'; 1 << 20]].concat(),
    ));
    assert!(
        said.starts_with("not HTTP/1.1") || said.starts_with("connection lost"),
        "{said}"
    );
}

#[test]
fn events_that_are_none_fail() {
    assert_eq!(
        reason(Behaviour::Stream(b"data: garbage\n\n".to_vec())),
        "an event that is not a JSON object of the API"
    );
    assert_eq!(
        reason(Behaviour::Stream(
            b"data: {\"error\":{\"code\":\"kv_cache_full\"}}\n\n".to_vec()
        )),
        "the server reported an error within the stream (kv_cache_full)"
    );
}

#[test]
fn streams_that_end_early_fail() {
    let token = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    for text in [&token[..], &token[..20], b""] {
        let said = reason(Behaviour::Stream(text.to_vec()));
        // The connection ends without the last chunk, which hyper tells before we look.
        assert!(
            said.starts_with("connection lost") || said.starts_with("the stream ended"),
            "{said}"
        );
    }
    assert_eq!(
        reason(Behaviour::Stream(b"data: [DONE]\n\n".to_vec())),
        "the answer held no token"
    );
}

#[test]
fn lines_and_events_without_end_fail() {
    assert_eq!(
        reason(Behaviour::Endless(vec![b'x'; 1 << 14])),
        "an event of more than 1048576 bytes"
    );
    assert_eq!(
        reason(Behaviour::Endless(b"data: x\n".repeat(2048))),
        "an event of more than 1048576 bytes"
    );
    let token = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    assert_eq!(
        reason(Behaviour::Endless(token.to_vec())),
        "more events than the answer can have tokens"
    );
}

#[test]
fn servers_that_say_nothing_more_fail_in_time() {
    assert_eq!(reason(Behaviour::Never), "nothing came for --idle-timeout-s");
    assert_eq!(reason(Behaviour::Hang), "nothing came for --idle-timeout-s");
}

#[test]
fn a_server_that_drips_comments_for_ever_fails_in_time() {
    let stub = Stub::start(Behaviour::Endless(b": ping\n\n".to_vec()), QUICK);
    let run = Run::of(&stub.url(), &["--num-prompts", "1", "--timeout-s", "0.7"]);
    let began = Instant::now();
    assert!(run.run().is_err());
    assert!(began.elapsed() < Duration::from_secs(10));
    let failures = run.read()[0]["rempart_bench"]["failures"].to_string();
    assert!(
        failures.contains("--timeout-s") || failures.contains("more bytes"),
        "{failures}"
    );
}

#[test]
fn a_status_is_told_with_its_code_and_without_its_message() {
    let said = reason(Behaviour::Refuse(503));
    assert_eq!(said, "HTTP 503 (overloaded_error)");
}

#[test]
fn a_document_instead_of_a_stream_fails() {
    let document = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    assert_eq!(
        reason(Behaviour::Raw(document.to_vec())),
        "a JSON document instead of server-sent events"
    );
}

#[test]
fn a_server_that_forgets_connections_costs_no_request() {
    for behaviour in [Behaviour::Forgetful, Behaviour::Unended] {
        let stub = Stub::start(behaviour, QUICK);
        for options in [
            &["--num-prompts", "5"][..],
            &["--num-prompts", "5", "--disable-keepalive"],
        ] {
            let result = Run::of(&stub.url(), options).result();
            assert_eq!(
                (result["completed"].as_u64(), result["failed"].as_u64()),
                (Some(5), Some(0)),
                "{result}"
            );
        }
    }
}

#[test]
fn what_can_not_run_says_what_to_do() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let said = format!(
        "{:#}",
        Run::of(&format!("http://{nobody}/v1"), &[]).run().unwrap_err()
    );
    assert!(said.contains("Is the server running"), "{said}");
    let stub = Stub::with(Behaviour::Steady, QUICK, Some("sk-right"), "127.0.0.1:0");
    let said = format!(
        "{:#}",
        Run::of(&stub.url(), &["--api-key", "sk-wrong", "--num-warmups", "2"])
            .run()
            .unwrap_err()
    );
    assert!(
        said.contains("HTTP 401 (invalid_api_key)")
            && said.contains("OPENAI_API_KEY")
            && !said.contains("sk-"),
        "{said}"
    );
    assert!(
        Run::of(&stub.url(), &["--api-key", "sk-right", "--num-prompts", "2"])
            .run()
            .is_ok()
    );
    for options in [
        &["--header", "Authorization: Bearer sk-secret"][..],
        &["--extra-body", "\"sk-secret\""],
        &["--concurrency", "0"],
        &["--request-rate", "-1"],
        &["--burstiness", "0", "--request-rate", "1"],
        &["--goodput", "latency:1"],
        &["--dataset", "custom"],
        &["--insecure"],
        &["--num-prompts", "400000000"],
        &["--cancellation-rate", "2"],
        &["--request-rate", "1e-300"],
        &["--temperature", "NaN"],
        &["--endpoint", "rerank", "--num-documents", "4294967295"],
        &["--num-documents", "0"],
        &["--path", "x y?key=sk-secret"],
        &["--search-rate", "5:1", "--slo", "errors=0"],
        &["--timeout-s", "0"],
    ] {
        let said = format!("{:#}", Run::of(&stub.url(), options).run().unwrap_err());
        assert!(
            said.contains("--") && !said.contains("sk-secret"),
            "{options:?}: {said}"
        );
    }
    let said = format!(
        "{:#}",
        Run::of(&stub.url(), &["--slo", "ttft_p95=500"])
            .run()
            .unwrap_err()
    );
    assert!(said.contains("needs a unit"), "{said}");
    assert!(
        Run::of(&stub.url(), &["--concurrency", "1", "--request-rate", "1"])
            .run()
            .is_err()
    );
}
