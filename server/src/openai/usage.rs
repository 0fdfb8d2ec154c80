//! `GET /v1/organization/usage/*` and `/v1/organization/costs`: what was used, in spans of time.

use std::collections::BTreeMap;

use rempart_governance::{UsageSum, UsageTotal, is_person};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

const NANO: f64 = 1e9;
/// Before the year 10000, in Unix seconds: sums with times stay far from their limits.
pub const TIME_MAX: i64 = 253_402_300_799;
/// Names of projects, keys or models in one request, and bytes of each.
const NAMES_MAX: usize = 100;
const NAME_BYTES_MAX: usize = 256;

/// Kinds of usage that OpenAI tells and this server never has.
pub const NEVER_USED: [&str; 9] = [
    "audio_speeches",
    "audio_transcriptions",
    "code_interpreter_sessions",
    "decisions",
    "file_search_calls",
    "images",
    "moderations",
    "vector_stores",
    "web_search_calls",
];

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Text that was generated.
    Completions,
    /// What encoders read: embeddings and ranks.
    Embeddings,
    Costs,
}

/// The spans that an answer is divided into: their length in seconds, how many there are unless asked, and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Width {
    pub name: &'static str,
    pub span_s: i64,
    pub count: i64,
    pub count_max: i64,
}

const fn width(name: &'static str, span_s: i64, count: i64, count_max: i64) -> Width {
    Width {
        name,
        span_s,
        count,
        count_max,
    }
}

/// Days first, which are the default.
pub const WIDTHS: [Width; 3] = [
    width("1d", 86_400, 7, 31),
    width("1h", 3_600, 24, 168),
    width("1m", 60, 60, 1_440),
];
/// Costs have days alone.
pub const COST_WIDTHS: [Width; 1] = [width("1d", 86_400, 7, 180)];

/// A checked request.
#[derive(Debug)]
pub struct UsageRequest {
    asked: Asked,
    /// The first span begins here, Unix seconds.
    pub from: i64,
    /// Spans that begin here or later are not told.
    pub to: i64,
    pub width: Width,
    count: i64,
    projects: Vec<String>,
    keys: Vec<String>,
    users: Vec<String>,
    models: Vec<String>,
    by: By,
}

/// What results are divided by.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is asked for or not")]
struct By {
    project: bool,
    key: bool,
    user: bool,
    model: bool,
}

/// What a result is of, where it is of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Of {
    project: Option<String>,
    key: Option<String>,
    user: Option<String>,
    model: Option<String>,
}

impl UsageRequest {
    /// Reads the pairs of a query, at a time in Unix seconds.
    ///
    /// # Errors
    /// Names the parameter that is wrong.
    pub fn parse(asked: Asked, query: &[(String, String)], now_s: i64) -> Result<Self> {
        let widths: &[Width] = if asked == Asked::Costs {
            &COST_WIDTHS
        } else {
            &WIDTHS
        };
        let (mut width, mut count, mut start, mut end, mut page) = (widths[0], None, None, None, None);
        let (mut projects, mut keys, mut users, mut models) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut by = By::default();
        let model_field = if asked == Asked::Costs {
            "line_item"
        } else {
            "model"
        };
        for (name, value) in query {
            // Clients write the names of lists with brackets or without.
            match name.trim_end_matches("[]") {
                "start_time" => start = Some(time("start_time", value)?),
                "end_time" => end = Some(time("end_time", value)?),
                "bucket_width" => width = named_width(widths, value)?,
                "limit" => count = Some(value.as_str()),
                "page" => page = Some(cursor(value)?),
                "project_ids" => add("project_ids", &mut projects, value)?,
                "api_key_ids" => add("api_key_ids", &mut keys, value)?,
                "user_ids" if asked != Asked::Costs => add("user_ids", &mut users, value)?,
                "models" if asked != Asked::Costs => add("models", &mut models, value)?,
                "line_items" if asked == Asked::Costs => add("line_items", &mut models, value)?,
                "group_by" => match value.as_str() {
                    "project_id" => by.project = true,
                    "api_key_id" => by.key = true,
                    "user_id" if asked != Asked::Costs => by.user = true,
                    field if field == model_field => by.model = true,
                    _ => {
                        let user = if asked == Asked::Costs { "" } else { "user_id, " };
                        let message =
                            format!("`group_by` can be project_id, api_key_id, {user}and {model_field}");
                        return Err(ApiError::invalid("group_by", "invalid_value", message));
                    }
                },
                other => return Err(ApiError::unsupported(short(other))),
            }
        }
        let start =
            start.ok_or_else(|| ApiError::invalid("start_time", "missing", "`start_time` is missing"))?;
        let to = end.unwrap_or(now_s.max(start).saturating_add(1));
        if to <= start {
            let message = "`end_time` must be after `start_time`";
            return Err(ApiError::invalid("end_time", "out_of_range", message));
        }
        Ok(Self {
            asked,
            from: page.unwrap_or(start).div_euclid(width.span_s) * width.span_s,
            to,
            count: counted(width, count)?,
            width,
            projects,
            keys,
            users,
            models,
            by,
        })
    }

    /// Where the spans of this page end, Unix seconds.
    pub fn page_end(&self) -> i64 {
        let all = (self.to - self.from + self.width.span_s - 1).div_euclid(self.width.span_s);
        self.from + all.clamp(0, self.count) * self.width.span_s
    }

    fn wants(&self, sum: &UsageSum, user: Option<&String>) -> bool {
        let among = |names: &[String], name: &String| names.is_empty() || names.contains(name);
        let encodes = is_encoding(&sum.endpoint);
        (self.asked == Asked::Costs || encodes == (self.asked == Asked::Embeddings))
            && sum.total.requests > 0
            && among(&self.projects, &sum.project)
            && among(&self.keys, &sum.key)
            && (self.users.is_empty() || user.is_some_and(|user| self.users.contains(user)))
            && among(&self.models, &sum.model)
    }

    /// The page of these sums, with costs in a currency; `owners` are those of keys.
    pub fn answer(&self, sums: &[UsageSum], owners: &BTreeMap<String, String>, currency: &str) -> UsagePage {
        let mut spans: BTreeMap<i64, BTreeMap<Of, UsageTotal>> = BTreeMap::new();
        for sum in sums {
            let user = owners.get(&sum.key).filter(|owner| is_person(owner));
            if !self.wants(sum, user) {
                continue;
            }
            let of = |told: bool, name: &String| told.then(|| name.clone());
            // Sums outlive the rows that tell whose they were.
            let of = Of {
                project: of(self.by.project, &sum.project),
                key: of(self.by.key && !sum.key.is_empty(), &sum.key),
                user: user.filter(|_| self.by.user).cloned(),
                model: of(self.by.model, &sum.model),
            };
            let span = spans.entry(sum.start).or_default();
            span.entry(of).or_default().add(sum.total);
        }
        let end = self.page_end();
        let starts = (0..)
            .map(|at| self.from + at * self.width.span_s)
            .take_while(|start| *start < end);
        let data = starts.map(|start| {
            let results = spans.remove(&start).unwrap_or_default();
            UsageBucket {
                object: "bucket",
                start_time: start,
                end_time: start + self.width.span_s,
                results: results
                    .into_iter()
                    .map(|(of, total)| self.result(of, total, currency))
                    .collect(),
            }
        });
        UsagePage {
            object: "page",
            data: data.collect(),
            has_more: end < self.to,
            next_page: (end < self.to).then(|| format!("{CURSOR}{end}")),
        }
    }

    fn result(&self, of: Of, total: UsageTotal, currency: &str) -> UsageResult {
        let Of {
            project: project_id,
            key: api_key_id,
            user: user_id,
            model,
        } = of;
        match self.asked {
            Asked::Completions => UsageResult::Completions {
                input_tokens: total.input,
                input_cached_tokens: total.cached,
                output_tokens: total.output,
                num_model_requests: total.requests,
                project_id,
                api_key_id,
                user_id,
                model,
            },
            Asked::Embeddings => UsageResult::Embeddings {
                input_tokens: total.input,
                num_model_requests: total.requests,
                project_id,
                api_key_id,
                user_id,
                model,
            },
            Asked::Costs => UsageResult::Costs {
                amount: Amount {
                    value: total.cost_nano as f64 / NANO,
                    currency: currency.to_owned(),
                },
                line_item: model,
                project_id,
                api_key_id,
            },
        }
    }
}

/// Whether an endpoint is one of encoders.
pub fn is_encoding(endpoint: &str) -> bool {
    ["embeddings", "rerank", "score"]
        .iter()
        .any(|name| endpoint.ends_with(name))
}

/// What a cursor begins with; the beginning of its first span follows.
const CURSOR: &str = "page_";

fn cursor(value: &str) -> Result<i64> {
    let start = value
        .strip_prefix(CURSOR)
        .ok_or(())
        .and_then(|start| time("page", start).map_err(drop));
    start.map_err(|()| {
        ApiError::invalid(
            "page",
            "invalid_value",
            "`page` is none that this server has given",
        )
    })
}

fn time(name: &str, value: &str) -> Result<i64> {
    let number: Option<i64> = value.parse().ok();
    number
        .filter(|time| (0..=TIME_MAX).contains(time))
        .ok_or_else(|| {
            let message = format!("`{name}` must be a time in Unix seconds, from 0 to {TIME_MAX}");
            ApiError::invalid(name, "out_of_range", message)
        })
}

fn named_width(widths: &[Width], value: &str) -> Result<Width> {
    let found = widths.iter().find(|width| width.name == value).copied();
    found.ok_or_else(|| {
        let names: Vec<&str> = widths.iter().map(|width| width.name).collect();
        let message = format!("`bucket_width` can be {}", names.join(", "));
        ApiError::invalid("bucket_width", "invalid_value", message)
    })
}

fn counted(width: Width, value: Option<&str>) -> Result<i64> {
    let Some(value) = value else {
        return Ok(width.count);
    };
    let count: Option<i64> = value.parse().ok();
    count
        .filter(|count| (1..=width.count_max).contains(count))
        .ok_or_else(|| {
            let message = format!(
                "`limit` must be from 1 to {} spans of {}",
                width.count_max, width.name
            );
            ApiError::invalid("limit", "out_of_range", message)
        })
}

fn add(name: &str, names: &mut Vec<String>, value: &str) -> Result<()> {
    if names.len() >= NAMES_MAX || value.len() > NAME_BYTES_MAX {
        let message = format!("`{name}` can have up to {NAMES_MAX} names of up to {NAME_BYTES_MAX} bytes");
        return Err(ApiError::invalid(name, "out_of_range", message));
    }
    names.push(value.to_owned());
    Ok(())
}

/// A name that is told back only if it looks like one.
fn short(name: &str) -> &str {
    let sane = name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if sane { name } else { "query" }
}

#[derive(Serialize, ToSchema)]
pub struct UsagePage {
    object: &'static str,
    data: Vec<UsageBucket>,
    has_more: bool,
    next_page: Option<String>,
}

#[derive(Serialize, ToSchema)]
pub struct UsageBucket {
    object: &'static str,
    /// Unix seconds; spans begin at whole days, hours or minutes of UTC.
    start_time: i64,
    end_time: i64,
    results: Vec<UsageResult>,
}

/// What was used. Project, key, person and model are told where results are grouped by them.
#[derive(Serialize, ToSchema)]
#[serde(tag = "object")]
pub enum UsageResult {
    #[serde(rename = "organization.usage.completions.result")]
    Completions {
        input_tokens: i64,
        /// Of these.
        input_cached_tokens: i64,
        output_tokens: i64,
        num_model_requests: i64,
        project_id: Option<String>,
        api_key_id: Option<String>,
        user_id: Option<String>,
        model: Option<String>,
    },
    #[serde(rename = "organization.usage.embeddings.result")]
    Embeddings {
        input_tokens: i64,
        num_model_requests: i64,
        project_id: Option<String>,
        api_key_id: Option<String>,
        user_id: Option<String>,
        model: Option<String>,
    },
    #[serde(rename = "organization.costs.result")]
    Costs {
        amount: Amount,
        /// The model.
        line_item: Option<String>,
        project_id: Option<String>,
        api_key_id: Option<String>,
    },
}

#[derive(Serialize, ToSchema)]
pub struct Amount {
    value: f64,
    currency: String,
}
