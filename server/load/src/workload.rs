//! What makes two runs comparable, as results tell it.

use serde_json::{Map, Value, json};

use crate::body::Endpoint;
use crate::dataset::Dataset;
use crate::digest::Digest;
use crate::options::{DatasetArgs, DatasetName, LoadArgs, ServerArgs, ShapeArgs};

/// Names and values of everything that makes a load what it is, but for the step, the volume and the seed. What is not asked for
/// is left out, so that results compare with those of a version that does not know it. Texts, and what may be a key, are told by
/// their digest.
pub(crate) fn workload(args: &LoadArgs, dataset: &Dataset) -> Map<String, Value> {
    let mut workload = Map::new();
    let mut put = |name: &str, value: Value| {
        if !value.is_null() {
            workload.insert(name.to_owned(), value);
        }
    };
    of_server(&args.server, &mut put);
    of_dataset(&args.dataset, args.server.endpoint, dataset, &mut put);
    of_shape(&args.shape, &mut put);
    workload
}

fn of_server(args: &ServerArgs, put: &mut impl FnMut(&str, Value)) {
    put("endpoint", json!(args.endpoint.name()));
    let path = args.path.as_deref().unwrap_or_default();
    let (route, query) = path.split_once('?').unwrap_or((path, ""));
    put("path", json!((!route.is_empty()).then_some(route)));
    put(
        "query_digest",
        json!((!query.is_empty()).then(|| Digest::of(query))),
    );
    put("ignore_eos", json!(args.ignore_eos));
    put("temperature", json!(args.temperature));
    put(
        "extra_body_digest",
        json!(args.extra_body.as_deref().map(of_json)),
    );
    put("disable_keepalive", json!(args.disable_keepalive.then_some(true)));
}

/// The same however members are ordered and parted.
fn of_json(text: &str) -> String {
    let mut value: Value = serde_json::from_str(text).unwrap_or_default();
    value.sort_all_objects();
    Digest::of(&value.to_string())
}

fn of_dataset(args: &DatasetArgs, endpoint: Endpoint, dataset: &Dataset, put: &mut impl FnMut(&str, Value)) {
    put("dataset", json!(name(&args.dataset)));
    let file = args.dataset_path.as_deref().and_then(|path| path.file_name());
    put("dataset_file", json!(file.map(|name| name.to_string_lossy())));
    put("dataset_digest", json!(dataset.digest()));
    match args.dataset {
        DatasetName::Random | DatasetName::SharedPrefix => {
            put("random_input_len", json!(args.random_input_len));
            put("random_output_len", json!(args.random_output_len));
            put("random_range_ratio", json!(args.random_range_ratio));
            let documents = (endpoint == Endpoint::Rerank).then_some(args.num_documents);
            put("num_documents", json!(documents));
        }
        DatasetName::Custom | DatasetName::Sharegpt => put("output_len", json!(args.output_len)),
        DatasetName::Trace => put("trace_speed", json!(args.trace_speed)),
    }
    if args.dataset == DatasetName::SharedPrefix {
        put("prefix_len", json!(args.prefix_len));
        put("num_prefixes", json!(args.num_prefixes));
    }
    let uncalibrated = dataset.is_made() && args.no_calibration;
    put("no_calibration", json!(uncalibrated.then_some(true)));
}

fn of_shape(args: &ShapeArgs, put: &mut impl FnMut(&str, Value)) {
    put("burstiness", json!(args.burstiness.to_string()));
    put(
        "ramp_up_strategy",
        json!(args.ramp_up_strategy.map(|ramp| name(&ramp))),
    );
    put("ramp_up_start_rps", json!(args.ramp_up_start_rps));
    put("steady_state", json!(args.steady_state));
    put("cancellation_rate", json!(args.cancellation_rate));
    let delay = (args.cancellation_rate > 0.0).then_some(args.cancellation_delay_ms);
    put("cancellation_delay_ms", json!(delay));
}

fn name(value: &dyn std::fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}
