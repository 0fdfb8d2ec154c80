//! What happened between two pages: rates of counters, and percentiles of what came into histograms.

use std::collections::BTreeMap;

use super::histogram::Histogram;
use super::sample::{ModelSample, Sample, ServerSample};

/// Rates are per second, latencies in seconds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Interval {
    pub seconds: f64,
    pub server: ServerSample,
    /// Cores that the process kept busy.
    pub cores: f64,
    pub rejected: f64,
    pub limited: f64,
    pub total: Figures,
    pub models: BTreeMap<String, Figures>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures {
    pub running: f64,
    pub waiting: f64,
    pub kv: Option<f64>,
    /// Answers that ended, and texts that were encoded.
    pub requests: f64,
    pub prompt_tokens: f64,
    pub generated_tokens: f64,
    /// The share of the prompts' tokens that a cache had; `None` where there were none.
    pub cached: Option<f64>,
    pub ttft: Histogram,
    pub itl: Histogram,
}

impl Interval {
    /// `now` is the later page.
    pub(crate) fn between(before: &Sample, now: &Sample) -> Self {
        let seconds = now
            .at
            .saturating_duration_since(before.at)
            .as_secs_f64()
            .max(1e-3);
        let none = ModelSample::default();
        let models: BTreeMap<String, Figures> = now
            .models
            .iter()
            .map(|(name, model)| {
                let earlier = before.models.get(name).unwrap_or(&none);
                (name.clone(), figures(earlier, model, seconds))
            })
            .collect();
        let rate = |now: f64, then: f64| increase(now, then) / seconds;
        Self {
            seconds,
            cores: rate(now.server.cpu_s, before.server.cpu_s),
            rejected: rate(now.server.rejected, before.server.rejected),
            limited: rate(now.server.limited, before.server.limited),
            server: now.server.clone(),
            total: total(before, now, &models, seconds),
            models,
        }
    }
}

/// How much a counter has grown. One that is lower than before has begun at 0 meanwhile, as Prometheus's `increase` takes it.
fn increase(now: f64, before: f64) -> f64 {
    if now >= before { now - before } else { now }
}

fn figures(before: &ModelSample, now: &ModelSample, seconds: f64) -> Figures {
    let rate = |of: fn(&ModelSample) -> f64| increase(of(now), of(before)) / seconds;
    let prompt_tokens = rate(|model| model.prompt_tokens);
    let cached_tokens = rate(|model| model.cached_tokens);
    Figures {
        running: now.running,
        waiting: now.waiting,
        kv: now.kv,
        requests: rate(|model| model.ended) + rate(|model| model.encoder_requests),
        prompt_tokens: prompt_tokens + rate(|model| model.encoder_tokens),
        generated_tokens: rate(|model| model.generated_tokens),
        cached: (prompt_tokens > 0.0).then(|| (cached_tokens / prompt_tokens).clamp(0.0, 1.0)),
        ttft: now.ttft.since(&before.ttft),
        itl: now.itl.since(&before.itl),
    }
}

fn total(before: &Sample, now: &Sample, models: &BTreeMap<String, Figures>, seconds: f64) -> Figures {
    let mut total = Figures::default();
    for figures in models.values() {
        total.running += figures.running;
        total.waiting += figures.waiting;
        total.requests += figures.requests;
        total.prompt_tokens += figures.prompt_tokens;
        total.generated_tokens += figures.generated_tokens;
        total.ttft.merge(&figures.ttft);
        total.itl.merge(&figures.itl);
        total.kv = match (total.kv, figures.kv) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
    }
    let none = ModelSample::default();
    let grown = |of: fn(&ModelSample) -> f64| -> f64 {
        let of_model = |(name, model): (&String, &ModelSample)| {
            increase(of(model), of(before.models.get(name).unwrap_or(&none)))
        };
        now.models.iter().map(of_model).sum::<f64>() / seconds
    };
    let prompt_tokens = grown(|model| model.prompt_tokens);
    let cached_tokens = grown(|model| model.cached_tokens);
    total.cached = (prompt_tokens > 0.0).then(|| (cached_tokens / prompt_tokens).clamp(0.0, 1.0));
    total
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn pages(before: &str, now: &str) -> Interval {
        let start = Instant::now();
        let read = |page: &str, at| Sample::read(page, at).unwrap();
        Interval::between(&read(before, start), &read(now, start + Duration::from_secs(2)))
    }

    #[test]
    fn rates_are_of_the_interval() {
        let page = |prompt: u32, cached: u32, generated: u32| {
            format!(
                "vllm:prompt_tokens_total{{model_name=\"m\",engine=\"0\"}} {prompt}\n\
                 vllm:prompt_tokens_cached_total{{model_name=\"m\",engine=\"0\"}} {cached}\n\
                 vllm:generation_tokens_total{{model_name=\"m\",engine=\"0\"}} {generated}\n\
                 vllm:generation_tokens_total{{model_name=\"m\",engine=\"1\"}} {generated}\n\
                 vllm:kv_cache_usage_perc{{model_name=\"m\",engine=\"0\"}} 0.25\n\
                 process_cpu_seconds_total 3.5\n"
            )
        };
        let interval = pages(&page(100, 50, 10), &page(300, 100, 30));
        let model = &interval.models["m"];
        assert_eq!((model.prompt_tokens, model.generated_tokens), (100.0, 20.0));
        assert_eq!((model.cached, model.kv), (Some(0.25), Some(0.25)));
        assert_eq!(
            (interval.total.generated_tokens, interval.cores, interval.seconds),
            (20.0, 0.0, 2.0)
        );
    }

    #[test]
    fn a_server_that_began_anew_counts_from_nothing() {
        let page = |count: u32| format!("vllm:request_success_total{{model_name=\"m\"}} {count}\n");
        let requests =
            |interval: Interval, model: &str| (interval.total.requests, interval.models[model].requests);
        assert_eq!(requests(pages(&page(1000), &page(4)), "m"), (2.0, 2.0));
        let new = "vllm:request_success_total{model_name=\"new\"} 6\n";
        assert_eq!(requests(pages(&page(1000), new), "new"), (3.0, 3.0));
    }

    #[test]
    fn percentiles_are_of_the_interval() {
        let page = |first: u32, second: u32| {
            format!(
                "vllm:time_to_first_token_seconds_bucket{{model_name=\"m\",le=\"0.1\"}} {first}\n\
                 vllm:time_to_first_token_seconds_bucket{{model_name=\"m\",le=\"0.2\"}} {second}\n\
                 vllm:time_to_first_token_seconds_bucket{{model_name=\"m\",le=\"+Inf\"}} {second}\n"
            )
        };
        let interval = pages(&page(100, 100), &page(100, 110));
        let half = interval.total.ttft.quantile(0.5).unwrap();
        assert!((half - 0.15).abs() < 1e-12, "{half}");
        assert_eq!(pages(&page(1, 1), &page(1, 1)).total.ttft.quantile(0.5), None);
    }

    #[test]
    fn a_page_of_something_else_is_refused() {
        for page in ["", "node_load1 0.5\n", "<html></html>"] {
            assert!(Sample::read(page, Instant::now()).is_err(), "{page}");
        }
    }
}
