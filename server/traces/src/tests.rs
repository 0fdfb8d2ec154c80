use std::fs;
use std::path::Path;

use http::HeaderValue;
use serde_json::Value;
use tempfile::TempDir;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn settings(folder: &TempDir) -> Settings {
    Settings {
        file: folder.path().join("traces.jsonl"),
        file_bytes_max: 1 << 20,
        ratio: 1.0,
        queue_max: 2048,
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn from(sampled: bool) -> HeaderMap {
    let value = format!("00-{TRACE}-{PARENT}-0{}", u8::from(sampled));
    let value = HeaderValue::from_str(&value).expect("a header");
    HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), value)])
}

/// The spans of a file in the order in which they are there, each with its resource.
fn spans(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the file is there");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a line is JSON"));
    let resources = lines.flat_map(|line| line["resourceSpans"].as_array().expect("a list").clone());
    let scopes = resources.flat_map(|resource| resource["scopeSpans"].as_array().expect("a list").clone());
    scopes
        .flat_map(|scope| scope["spans"].as_array().expect("a list").clone())
        .collect()
}

#[test]
fn a_request_and_its_parts_are_one_trace() {
    let folder = TempDir::new().expect("a folder");
    let settings = settings(&folder);
    let traces = Traces::open(&settings, "1.2.3").expect("the file opens");
    let request = traces.begin(
        &from(true),
        "chat m".to_owned(),
        at(5),
        vec![KeyValue::new("n", 2)],
    );
    part(&request, "queue", (at(5), at(6)), Vec::new());
    request.span().end_with_timestamp(at(9));
    traces.close();

    let text = fs::read_to_string(&settings.file).expect("the file is there");
    let line: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    let service = &line["resourceSpans"][0]["resource"]["attributes"];
    let named = |key: &str| {
        let all = service.as_array().expect("a list");
        all.iter().find(|entry| entry["key"] == key).expect(key)["value"]["stringValue"].clone()
    };
    assert_eq!(
        (named("service.name"), named("service.version")),
        ("rempart".into(), "1.2.3".into())
    );

    let spans = spans(&settings.file);
    let [queue, chat] = &spans[..] else {
        panic!("{} spans", spans.len());
    };
    // OTLP/JSON: ids in hexadecimal, 64-bit numbers as text, kinds as numbers.
    assert_eq!(
        (&chat["traceId"], &chat["parentSpanId"]),
        (&TRACE.into(), &PARENT.into())
    );
    assert_eq!((&chat["name"], &chat["kind"]), (&"chat m".into(), &2.into()));
    assert_eq!(chat["startTimeUnixNano"], "5000000000");
    assert_eq!(chat["endTimeUnixNano"], "9000000000");
    assert_eq!(chat["attributes"][0]["value"]["intValue"], "2");
    assert_eq!(
        (&queue["traceId"], &queue["parentSpanId"]),
        (&TRACE.into(), &chat["spanId"])
    );
    assert_eq!((&queue["name"], &queue["kind"]), (&"queue".into(), &1.into()));
    assert_eq!(traces.counts(), Counts { ended: 2, written: 2 });
}

#[test]
fn a_client_that_traces_nothing_is_followed() {
    let folder = TempDir::new().expect("a folder");
    let settings = settings(&folder);
    let traces = Traces::open(&settings, "1").expect("the file opens");
    let request = traces.begin(&from(false), "a".to_owned(), at(1), Vec::new());
    part(&request, "queue", (at(1), at(2)), Vec::new());
    drop(request);
    let wrong = HeaderMap::from_iter([(
        http::HeaderName::from_static("traceparent"),
        HeaderValue::from_static("00-0-0-00"),
    )]);
    drop(traces.begin(&wrong, "b".to_owned(), at(1), Vec::new()));
    traces.close();
    let spans = spans(&settings.file);
    assert_eq!(spans.len(), 1);
    assert_eq!(
        (&spans[0]["name"], &spans[0]["parentSpanId"]),
        (&"b".into(), &"".into())
    );
}

#[test]
fn the_share_of_traces_is_about_what_was_asked_for() {
    let folder = TempDir::new().expect("a folder");
    let asked = Settings {
        ratio: 0.25,
        ..settings(&folder)
    };
    let traces = Traces::open(&asked, "1").expect("the file opens");
    for _ in 0..1000 {
        let request = traces.begin(&HeaderMap::new(), "a".to_owned(), at(1), Vec::new());
        part(&request, "queue", (at(1), at(2)), Vec::new());
    }
    traces.close();
    let spans = spans(&asked.file);
    // Six standard deviations; a trace is whole or not there.
    assert!((2 * 170..2 * 332).contains(&spans.len()), "{}", spans.len());
    assert_eq!(
        spans.iter().filter(|span| span["name"] == "queue").count() * 2,
        spans.len()
    );
}

#[test]
fn a_full_file_is_put_aside_and_the_one_before_goes() {
    let folder = TempDir::new().expect("a folder");
    let small = Settings {
        file_bytes_max: 2000,
        ..settings(&folder)
    };
    for turn in 0..8 {
        // Also across a restart.
        let traces = Traces::open(&small, "1").expect("the file opens");
        drop(traces.begin(&HeaderMap::new(), format!("turn {turn}"), at(1), Vec::new()));
        traces.close();
    }
    let before = folder.path().join("traces.jsonl.1");
    let bytes = |path: &Path| fs::metadata(path).expect("the file is there").len();
    assert!((1..=2000).contains(&bytes(&small.file)) && (1..=2000).contains(&bytes(&before)));
    let names: Vec<Value> = [&before, &small.file]
        .iter()
        .flat_map(|path| spans(path))
        .map(|span| span["name"].clone())
        .collect();
    let last: Vec<Value> = (8 - names.len()..8)
        .map(|turn| format!("turn {turn}").into())
        .collect();
    assert_eq!(names, last);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2);
}

#[test]
fn what_does_not_fit_the_disk_is_counted_as_lost() {
    let folder = TempDir::new().expect("a folder");
    let full = Settings {
        file: "/dev/full".into(),
        ..settings(&folder)
    };
    let traces = Traces::open(&full, "1").expect("the file opens");
    drop(traces.begin(&HeaderMap::new(), "a".to_owned(), at(1), Vec::new()));
    traces.close();
    assert_eq!(traces.counts(), Counts { ended: 1, written: 0 });
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let folder = TempDir::new().expect("a folder");
    let missing = Settings {
        file: folder.path().join("no/traces.jsonl"),
        ..settings(&folder)
    };
    assert!(Traces::open(&missing, "1").is_err());
}

/// Has a span of a name written.
fn tell(traces: &Traces, name: &str) {
    drop(traces.begin(&HeaderMap::new(), name.to_owned(), at(1), Vec::new()));
    traces.provider.force_flush().expect("it is written");
}

fn names(path: &Path) -> Vec<Value> {
    spans(path).iter().map(|span| span["name"].clone()).collect()
}

#[test]
fn a_file_that_is_moved_away_is_made_again() {
    let folder = TempDir::new().expect("a folder");
    let settings = settings(&folder);
    let traces = Traces::open(&settings, "1").expect("the file opens");
    tell(&traces, "first");
    let moved = folder.path().join("moved");
    fs::rename(&settings.file, &moved).expect("it is moved");
    tell(&traces, "second");
    fs::write(&settings.file, "").expect("it is emptied");
    tell(&traces, "third");
    assert_eq!(names(&moved), ["first"]);
    assert_eq!(names(&settings.file), ["third"]);
}

#[test]
fn a_line_that_was_left_unfinished_spoils_no_other() {
    let folder = TempDir::new().expect("a folder");
    let settings = settings(&folder);
    fs::write(&settings.file, "{\"resourceSpans\":[").expect("it is written");
    let traces = Traces::open(&settings, "1").expect("the file opens");
    tell(&traces, "whole");
    let text = fs::read_to_string(&settings.file).expect("the file is there");
    let lines: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).is_ok())
        .collect();
    assert_eq!(lines, [false, true]);
}

#[test]
fn a_file_has_one_writer_and_a_device_stays_one() {
    let folder = TempDir::new().expect("a folder");
    let settings = settings(&folder);
    let _traces = Traces::open(&settings, "1").expect("the file opens");
    let second = Traces::open(&settings, "1").expect_err("it is taken");
    assert_eq!(second.to_string(), "another server writes to it");
    let device = Settings {
        file: "/dev/null".into(),
        file_bytes_max: 1,
        ..settings
    };
    let traces = Traces::open(&device, "1").expect("a device opens");
    tell(&traces, "a");
    tell(&traces, "b");
    assert!(!fs::metadata("/dev/null").expect("it is there").is_file());
}

#[test]
fn what_a_client_keeps_in_its_trace_is_not_written() {
    let folder = TempDir::new().expect("a folder");
    let settings = settings(&folder);
    let traces = Traces::open(&settings, "1").expect("the file opens");
    let mut headers = from(true);
    headers.insert("tracestate", HeaderValue::from_static("u=the harvest was good"));
    drop(traces.begin(&headers, "a".to_owned(), at(1), Vec::new()));
    traces.close();
    let text = fs::read_to_string(&settings.file).expect("the file is there");
    assert!(text.contains(TRACE) && !text.contains("harvest"));
}
