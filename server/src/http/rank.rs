//! `POST /v1/rerank`, `/rerank`, `/v2/rerank`, `/v1/score` and `/score`: by a model that scores pairs or, with one that
//! embeds, by the cosine of their vectors.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use rempart_models::Task;
use rempart_text::Encoded;

use super::error::ApiError;
use super::models::unix_now;
use super::{AppState, Arrived, generate, limits};
use crate::chat::check_bytes;
use crate::config::RequestLimits;
use crate::encoder::{EncoderModel, cosine};
use crate::openai::embeddings::{EncoderUsage, Input};
use crate::openai::rank::{
    DocumentText, RankedDocument, RerankRequest, Reranked, Score, ScoreRequest, Scores,
};
use crate::openai::shared::Truncate;
use crate::traces;

pub async fn rerank(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Json<Reranked>, ApiError> {
    reranked(&app, arrived.0, request, true).await
}

/// Cohere's second version gives no documents back unless it is asked to.
pub async fn rerank_v2(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Json<Reranked>, ApiError> {
    reranked(&app, arrived.0, request, false).await
}

async fn reranked(
    app: &AppState,
    arrived: Instant,
    request: Request,
    returns_documents: bool,
) -> Result<Json<Reranked>, ApiError> {
    let body = limits::read_json(app, request).await?;
    let state = Arc::clone(app);
    let check = move |body: &[u8]| RerankRequest::parse(body, &state.limits, returns_documents).map(drop);
    let model = generate::encoder_for(app, &body, arrived, check).await;
    let (bytes, state) = (body.bytes.clone(), Arc::clone(app));
    let meter = body.meter.clone();
    let work = move || {
        meter.asked(&bytes);
        let request = RerankRequest::parse(&bytes, &state.limits, returns_documents)?;
        meter.prompted(&request)?;
        let model = model?;
        let documents = request.documents.iter().map(String::as_str);
        let pairs: Vec<(&str, &str)> = documents.map(|text| (request.query.as_str(), text)).collect();
        let asked = Asked {
            pairs: &pairs,
            paths: ["query", "documents"],
            truncate: request.truncate,
            second_tokens_max: request.document_tokens_max,
        };
        let comparison = Comparison::prepare(model, &asked, &state.limits)?;
        Ok((comparison, request))
    };
    let deadline = app.timing(arrived).deadline;
    let (comparison, request) = app.encoding.run(deadline, work).await?;
    let meter = body.meter.clone();
    drop(body);
    let (model, tokens) = (comparison.model.name.clone(), comparison.tokens());
    meter.model(&model);
    traces::model(&model);
    let computing = comparison.scores(app.timing(arrived).deadline);
    let scores = meter.encoding(tokens, computing).await?;
    let mut order: Vec<(usize, f32)> = scores.into_iter().enumerate().collect();
    // Of equals the first stays first.
    order.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    order.truncate(request.top_n.unwrap_or(usize::MAX));
    let mut documents: Vec<Option<String>> = request.documents.into_iter().map(Some).collect();
    let result = |(index, relevance_score): (usize, f32)| RankedDocument {
        index,
        relevance_score,
        document: documents[index]
            .take()
            .filter(|_| request.return_documents)
            .map(|text| DocumentText { text }),
    };
    Ok(Json(Reranked {
        id: format!("rerank-{}", uuid::Uuid::new_v4().simple()),
        model,
        results: order.into_iter().map(result).collect(),
        usage: usage(tokens),
    }))
}

pub async fn score(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Json<Scores>, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let state = Arc::clone(&app);
    let check = move |body: &[u8]| ScoreRequest::parse(body, &state.limits).map(drop);
    let model = generate::encoder_for(&app, &body, arrived.0, check).await;
    let (bytes, state) = (body.bytes.clone(), Arc::clone(&app));
    let meter = body.meter.clone();
    let work = move || {
        meter.asked(&bytes);
        let request = ScoreRequest::parse(&bytes, &state.limits)?;
        meter.prompted(&request)?;
        let model = model?;
        let pairs = request.pairs();
        let asked = Asked {
            pairs: &pairs,
            paths: request.names,
            truncate: request.truncate,
            second_tokens_max: None,
        };
        Comparison::prepare(model, &asked, &state.limits)
    };
    let deadline = app.timing(arrived.0).deadline;
    let comparison = app.encoding.run(deadline, work).await?;
    let meter = body.meter.clone();
    drop(body);
    let (model, tokens) = (comparison.model.name.clone(), comparison.tokens());
    meter.model(&model);
    traces::model(&model);
    let computing = comparison.scores(app.timing(arrived.0).deadline);
    let scores = meter.encoding(tokens, computing).await?;
    let score = |(index, score)| Score {
        index,
        object: "score",
        score,
    };
    Ok(Json(Scores {
        id: format!("score-{}", uuid::Uuid::new_v4().simple()),
        object: "list",
        created: unix_now(),
        model,
        data: scores.into_iter().enumerate().map(score).collect(),
        usage: usage(tokens),
    }))
}

fn usage(tokens: usize) -> EncoderUsage {
    EncoderUsage {
        prompt_tokens: tokens,
        total_tokens: tokens,
    }
}

/// What is to be compared.
struct Asked<'a> {
    pairs: &'a [(&'a str, &'a str)],
    /// Where the first and the second texts stand.
    paths: [&'static str; 2],
    truncate: Option<Truncate>,
    second_tokens_max: Option<usize>,
}

impl Asked<'_> {
    /// A second text, cut if that was asked for.
    fn second(&self, model: &EncoderModel, text: &str) -> Result<String, ApiError> {
        match self.second_tokens_max {
            Some(max) => model.cut(text, max),
            None => Ok(text.to_owned()),
        }
    }
}

/// Pairs, ready for a model.
struct Comparison {
    model: Arc<EncoderModel>,
    sequences: Vec<Encoded>,
    /// Of a model that embeds: which sequences make a pair.
    pairs: Option<Vec<(usize, usize)>>,
}

impl Comparison {
    fn prepare(
        model: Arc<EncoderModel>,
        asked: &Asked<'_>,
        limits: &RequestLimits,
    ) -> Result<Self, ApiError> {
        for (first, _) in asked.pairs {
            check_bytes(asked.paths[0], first.len(), limits)?;
        }
        // A query counts once for each document: that is how often it is read.
        let bytes = asked
            .pairs
            .iter()
            .map(|(first, second)| first.len() + second.len())
            .sum();
        check_bytes(asked.paths[1], bytes, limits)?;
        match model.task {
            Task::Rank { labels: 1, .. } => Self::of_pairs(model, asked),
            Task::Rank { labels, .. } => {
                let message =
                    format!("this model tells {labels} classes apart, and gives no score of relevance");
                Err(ApiError::invalid("model", "model_not_supported", message))
            }
            Task::Embed { .. } => Self::of_texts(model, asked, limits),
        }
    }

    fn of_pairs(model: Arc<EncoderModel>, asked: &Asked<'_>) -> Result<Self, ApiError> {
        let mut sequences = Vec::with_capacity(asked.pairs.len());
        for (at, (first, second)) in asked.pairs.iter().enumerate() {
            let path = format!("{}[{at}]", asked.paths[1]);
            let second = asked.second(&model, second)?;
            sequences.push(model.encode_pair((first, &second), &path, asked.truncate)?);
        }
        Ok(Self {
            model,
            sequences,
            pairs: None,
        })
    }

    fn of_texts(
        model: Arc<EncoderModel>,
        asked: &Asked<'_>,
        limits: &RequestLimits,
    ) -> Result<Self, ApiError> {
        let mut sequences: Vec<Encoded> = Vec::new();
        let mut pairs = Vec::with_capacity(asked.pairs.len());
        let mut last_first: Option<(&str, usize)> = None;
        for (at, (first, second)) in asked.pairs.iter().enumerate() {
            // One query for all documents is computed once.
            let known = last_first.filter(|(text, _)| text == first);
            let first_at = if let Some((_, at)) = known {
                at
            } else {
                let input = Input::Text((*first).to_owned());
                sequences.push(model.encode(&input, asked.paths[0], asked.truncate, limits)?);
                sequences.len() - 1
            };
            last_first = Some((first, first_at));
            let input = Input::Text(asked.second(&model, second)?);
            let path = format!("{}[{at}]", asked.paths[1]);
            sequences.push(model.encode(&input, &path, asked.truncate, limits)?);
            pairs.push((first_at, sequences.len() - 1));
        }
        Ok(Self {
            model,
            sequences,
            pairs: Some(pairs),
        })
    }

    fn tokens(&self) -> usize {
        self.sequences.iter().map(|sequence| sequence.ids.len()).sum()
    }

    async fn scores(self, deadline: Instant) -> Result<Vec<f32>, ApiError> {
        let results = self.model.engine.run(self.sequences, deadline).await?;
        Ok(match self.pairs {
            Some(pairs) => pairs
                .iter()
                .map(|(a, b)| cosine(&results[*a], &results[*b]))
                .collect(),
            None => results
                .iter()
                .map(|scores| scores.first().copied().unwrap_or(0.0))
                .collect(),
        })
    }
}
