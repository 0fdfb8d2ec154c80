//! `POST /v1/embeddings`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::ApiError;
use super::{AppState, Arrived, generate, limits};
use crate::encoder::normalize;
use crate::openai::embeddings::{Embedding, Embeddings, EmbeddingsRequest, EncoderUsage, Vector};
use crate::traces;

/// Numbers of an answer that are written by the thread that serves its connection. It has the tokens of other connections to bring, which
/// wait for more.
const NUMBERS_HERE_MAX: usize = 1 << 12;

pub async fn embeddings(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = limits::read_json(&app, request).await?;
    let state = Arc::clone(&app);
    let check = move |body: &[u8]| EmbeddingsRequest::parse(body, &state.limits).map(drop);
    let model = generate::encoder_for(&app, &body, arrived.0, check).await;
    let (bytes, state) = (body.bytes.clone(), Arc::clone(&app));
    let asked = body.meter.clone();
    let work = move || {
        asked.asked(&bytes);
        let request = EmbeddingsRequest::parse(&bytes, &state.limits)?;
        asked.prompted(&request)?;
        let model = model?;
        let dimensions = model.dimensions()?;
        if request.dimensions.is_some_and(|asked| asked > dimensions) {
            let message =
                format!("`dimensions` must be at most {dimensions}, as many as this model's vectors have");
            return Err(ApiError::invalid("dimensions", "out_of_range", message));
        }
        let single = request.inputs.len() == 1;
        let encode = |(at, input)| {
            let path = if single {
                "input".to_owned()
            } else {
                format!("input[{at}]")
            };
            model.encode(input, &path, request.truncate, &state.limits)
        };
        let sequences: Vec<_> = request
            .inputs
            .iter()
            .enumerate()
            .map(encode)
            .collect::<Result<_, _>>()?;
        Ok((model, sequences, request))
    };
    let (model, sequences, request) = app.encoding.run(app.timing(arrived.0).deadline, work).await?;
    let meter = body.meter.clone();
    drop(body);
    let tokens = sequences.iter().map(|sequence| sequence.ids.len()).sum();
    meter.model(&model.name);
    traces::model(&model.name);
    let computing = model.engine.run(sequences, app.timing(arrived.0).deadline);
    let vectors = meter.encoding(tokens, computing).await?;
    let (name, numbers) = (model.name.clone(), vectors.iter().map(Vec::len).sum::<usize>());
    let write = move || Json(answer(vectors, &request, name, tokens)).into_response();
    if numbers <= NUMBERS_HERE_MAX {
        return Ok(write());
    }
    let deadline = app.timing(arrived.0).deadline;
    app.encoding.in_turn(deadline, move || Ok(write())).await
}

fn answer(vectors: Vec<Vec<f32>>, request: &EmbeddingsRequest, model: String, tokens: usize) -> Embeddings {
    let embedding = |(index, mut vector): (usize, Vec<f32>)| {
        if let Some(dimensions) = request.dimensions.filter(|asked| *asked < vector.len()) {
            // What is left of a vector gets the length 1 again (Kusupati et al. 2022, "Matryoshka representations").
            vector.truncate(dimensions);
            normalize(&mut vector);
        }
        Embedding {
            object: "embedding",
            index,
            embedding: if request.base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(STANDARD.encode(bytes))
            } else {
                Vector::Numbers(vector)
            },
        }
    };
    Embeddings {
        object: "list",
        data: vectors.into_iter().enumerate().map(embedding).collect(),
        model,
        usage: EncoderUsage {
            prompt_tokens: tokens,
            total_tokens: tokens,
        },
    }
}
