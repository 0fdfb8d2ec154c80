//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::{Extension, Json};

use super::error::ApiError;
use super::{AppState, Arrived, generate, limits};
use crate::chat;
use crate::openai::tokenize::{DetokenizeRequest, Detokenized, Source, TokenizeRequest, Tokenized};

pub async fn tokenize(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Json<Tokenized>, ApiError> {
    app.registry.check_opened()?;
    let body = limits::read_json(&app, request).await?;
    let state = Arc::clone(&app);
    let check = move |body: &[u8]| TokenizeRequest::parse(body, &state.limits).map(drop);
    let model = generate::model_for(&app, &body, arrived.0, check).await;
    let (bytes, request_limits) = (body.bytes.clone(), app.limits.clone());
    let work = move || {
        let request = TokenizeRequest::parse(&bytes, &request_limits)?;
        let model = model?;
        request
            .model
            .as_deref()
            .map_or(Ok(()), |name| model.check_name(name))?;
        let tokens = match &request.source {
            Source::Prompt(prompt) => {
                let special = request.add_special_tokens.unwrap_or(true);
                chat::text_tokens(prompt, special, &model, &request_limits, usize::MAX)?
            }
            Source::Chat(conversation) => {
                chat::render(conversation, &model, &request_limits, usize::MAX)?.tokens
            }
        };
        let text = |token: &u32| String::from_utf8_lossy(&model.token_bytes(*token)).into_owned();
        let token_strs = request
            .return_token_strs
            .then(|| tokens.iter().map(text).collect());
        Ok(Json(Tokenized {
            count: tokens.len(),
            max_model_len: model.context_length,
            tokens,
            token_strs,
        }))
    };
    app.preparation.run(app.timing(arrived.0).deadline, work).await
}

pub async fn detokenize(
    State(app): State<AppState>,
    Extension(arrived): Extension<Arrived>,
    request: Request,
) -> Result<Json<Detokenized>, ApiError> {
    app.registry.check_opened()?;
    let body = limits::read_json(&app, request).await?;
    let state = Arc::clone(&app);
    let check = move |body: &[u8]| DetokenizeRequest::parse(body, &state.limits).map(drop);
    let model = generate::model_for(&app, &body, arrived.0, check).await;
    let (bytes, request_limits) = (body.bytes.clone(), app.limits.clone());
    let work = move || {
        let request = DetokenizeRequest::parse(&bytes, &request_limits)?;
        let model = model?;
        request
            .model
            .as_deref()
            .map_or(Ok(()), |name| model.check_name(name))?;
        chat::check_vocabulary("tokens", &request.tokens, &model)?;
        // A token of two digits can stand for hundreds of bytes.
        let bytes = |token: &u32| model.tokenizer.token_bytes(*token).map_or(0, <[u8]>::len);
        chat::check_bytes("tokens", request.tokens.iter().map(bytes).sum(), &request_limits)?;
        Ok(Json(Detokenized {
            prompt: chat::decode(&request.tokens, false, &model)?,
        }))
    };
    app.preparation.run(app.timing(arrived.0).deadline, work).await
}
