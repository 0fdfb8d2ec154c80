//! Cut connections, slow and failing hubs: a pull goes on from where it was, or ends with the reason.

use std::fs;
use std::sync::Mutex;
use std::time::Duration;

use rempart_hub::digest::Sha256;
use rempart_hub::progress::{Event, Silent};
use rempart_hub::pull::{Error, pull};

use crate::standin::{Fault, Hub, content};
use crate::{MODEL_BYTES, Site};

#[test]
fn a_connection_cut_in_the_middle_goes_on_from_the_byte() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    hub.fault([Fault::CutAfter(100_000), Fault::CutAfter(50_000)]);
    site.pull(&hub).unwrap();
    let last = MODEL_BYTES - 1;
    let range = |from: usize| Some(format!("bytes={from}-{last}"));
    assert_eq!(hub.ranges(), [None, range(100_000), range(150_000)]);
}

#[test]
fn a_later_pull_goes_on_where_an_interrupted_one_stopped() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    hub.fault([Fault::CutAfter(70_000), Fault::Status(503), Fault::Status(503)]);
    let error = site.pull(&hub).unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 3, .. }), "{error}");
    site.assert_store_is_empty();
    assert_eq!(site.partials()[0].metadata().unwrap().len(), 70_000);

    let resumed = Mutex::new(0);
    let record = |event: Event<'_>| {
        if let Event::Started { done, .. } = event {
            *resumed.lock().unwrap() = done;
        }
    };
    pull(&site.request(&hub, "hf:org/model"), &record).unwrap();
    assert_eq!(
        hub.ranges().last().unwrap().as_deref(),
        Some("bytes=70000-299999")
    );
    assert_eq!(*resumed.lock().unwrap(), 70_000);
    assert!(site.partials().is_empty());
}

#[test]
fn a_partial_file_of_other_bytes_is_thrown_away() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    let sha256 = Sha256::of(&content(MODEL_BYTES));
    let partial = site
        .cache()
        .join(format!("models--org--model/blobs/{sha256}.incomplete"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, vec![0; 1000]).unwrap();
    site.pull(&hub).unwrap();
    assert_eq!(hub.ranges(), [Some("bytes=1000-299999".to_owned()), None]);
    // One longer than the file cannot be part of it.
    let other = Site::new();
    let partial = other
        .cache()
        .join(format!("models--org--model/blobs/{sha256}.incomplete"));
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, vec![0; MODEL_BYTES + 1]).unwrap();
    other.pull(&hub).unwrap();
}

#[test]
fn a_hub_that_ignores_or_refuses_the_range_is_asked_again_from_the_start() {
    for fault in [Fault::IgnoreRange, Fault::Status(416), Fault::Overlong(1)] {
        let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
        hub.fault([Fault::CutAfter(100_000), fault.clone()]);
        site.pull(&hub)
            .unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(
            hub.ranges(),
            [None, Some("bytes=100000-299999".to_owned()), None],
            "{fault:?}"
        );
    }
}

#[test]
fn server_errors_are_tried_again_within_bounds() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    hub.shared().listing_faults.extend([(500, None), (503, None)]);
    hub.fault([Fault::Status(500), Fault::Status(429)]);
    let retries = Mutex::new(Vec::new());
    let record = |event: Event<'_>| {
        if let Event::Retrying {
            attempt,
            attempts_max,
            ..
        } = event
        {
            retries.lock().unwrap().push((attempt, attempts_max));
        }
    };
    pull(&site.request(&hub, "hf:org/model"), &record).unwrap();
    assert_eq!(*retries.lock().unwrap(), [(2, 3), (3, 3), (2, 3), (3, 3)]);

    let (hub, site) = (Hub::with_gguf(10), Site::new());
    hub.shared().listing_faults.extend([(500, None); 10]);
    let error = site.pull(&hub).unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 3, .. }), "{error}");
    assert_eq!(hub.shared().log.len(), 3);
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let site = Site::new();
    let hub = Hub::with_gguf(10);
    let mut request = site.request(&hub, "hf:org/model");
    // Port 1 is reserved and closed.
    request.endpoint = "http://127.0.0.1:1".to_owned();
    let message = pull(&request, &Silent).unwrap_err().to_string();
    assert!(
        message.contains("http://127.0.0.1:1") && message.contains("refused"),
        "{message}"
    );
}

#[test]
fn a_trickle_and_a_silence_end() {
    let (hub, site) = (Hub::with_gguf(MODEL_BYTES), Site::new());
    let mut request = site.request(&hub, "hf:org/model");
    request.limits.rate_window = Duration::from_millis(100);
    request.limits.rate_window_bytes_min = 10_000;
    hub.fault([Fault::Drip, Fault::Drip, Fault::Drip]);
    let error = pull(&request, &Silent).unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { .. }) && error.to_string().contains("too slowly"),
        "{error}"
    );

    request.limits.read_timeout = Duration::from_millis(300);
    hub.fault([Fault::Stall, Fault::Stall, Fault::Stall]);
    let error = pull(&request, &Silent).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    // What the trickle and the first bytes brought is not fetched again.
    request.limits.read_timeout = Duration::from_mins(1);
    pull(&request, &Silent).unwrap();
    assert!(hub.ranges().last().unwrap().is_some());
}
