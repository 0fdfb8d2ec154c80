//! An answer in the making: all choices of a request, as updates in the order they happen.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rempart_engine::{AddError, Event, Finish, Logprobs, Predicted};
use tokio::time::{Sleep, sleep_until};
use tracing::Span;

use super::assemble::{Assembler, Entry, Piece, Said, prompt_entries};
use super::{Prepared, Rules};
use crate::engine_thread::{NeverQueued, StreamEvent, SubmitError, Timing, TokenStream};
use crate::http::error::ApiError;
use crate::ledger::{Meter, Used};
use crate::model::Model;
use crate::openai::logprobs::{self, PromptLogprobs};
use crate::openai::shared::{CompletionTokensDetails, Usage};
use crate::traces::Moments;

/// What happened to one choice.
#[derive(Debug)]
pub struct Update {
    pub choice: usize,
    /// Whether it is the choice's first.
    pub first: bool,
    pub said: Vec<Said>,
    pub entries: Vec<Entry>,
    /// The prompt's tokens, with the choice's first update, and the tokens made since its last; empty unless asked for.
    pub prompt_tokens: Vec<u32>,
    pub tokens: Vec<u32>,
    pub finish_reason: Option<&'static str>,
    /// The stop string that ended it, by its number.
    pub stop: Option<usize>,
    /// With the first update of a prompt's first choice, if asked for.
    pub prompt_logprobs: Option<PromptLogprobs>,
}

/// The choices of one HTTP request. Dropping it stops whatever still runs.
pub struct Generation {
    model: Arc<Model>,
    stream: TokenStream,
    rules: Rules,
    choices: Vec<Choice>,
    prompts: Vec<PromptState>,
    open: usize,
    completion_tokens: usize,
    predicted: Predicted,
    /// Resolves with why the answer must not go on.
    cut: Cut,
    /// The engine ends a request at its deadline; this is for an engine that does not move.
    overdue: Pin<Box<Sleep>>,
    arrived: Instant,
    meter: Meter,
    moments: Moments,
    span: Span,
}

/// What waits for a reason to end an answer, whatever its engine does.
pub type Cut = Pin<Box<dyn Future<Output = ApiError> + Send>>;

/// How long after its deadline a request is given up on without the engine's word.
const OVERDUE: Duration = Duration::from_secs(5);
/// The status of an answer that was made.
const OK: u16 = 200;

struct Choice {
    assembler: Assembler,
    /// Text of the prompt, until it is given out.
    echo: Option<String>,
    /// Tokens not told yet, if they are to be told.
    tokens: Vec<u32>,
    begun: bool,
    finished: bool,
}

struct PromptState {
    /// Kept only where they or their likelihoods will be told.
    tokens: Vec<u32>,
    len: usize,
    cached: Option<usize>,
}

impl Generation {
    /// Hands a prepared request to the engine.
    pub async fn start(
        model: Arc<Model>,
        prepared: Prepared,
        timing: Timing,
        cut: Cut,
        meter: Meter,
    ) -> Result<Self, ApiError> {
        let Prepared {
            requests,
            echoes,
            rules,
            format: _,
            thinking: _,
            tokens: _,
        } = prepared;
        let mut choices = Vec::new();
        let mut prompts = Vec::new();
        for (request, echo) in requests.iter().zip(echoes) {
            let offset = echo.as_ref().map_or(0, |text| text.chars().count());
            for _ in 0..request.n {
                let assembler =
                    Assembler::new(&model.tokenizer, &rules, offset).map_err(|_| undecodable())?;
                choices.push(Choice {
                    assembler,
                    echo: echo.clone(),
                    tokens: Vec::new(),
                    begun: false,
                    finished: false,
                });
            }
            let told = rules.token_ids || request.prompt_logprobs.is_some();
            let tokens = if told { request.prompt.clone() } else { Vec::new() };
            prompts.push(PromptState {
                tokens,
                len: request.prompt.len(),
                cached: None,
            });
        }
        let stream = model
            .engine
            .submit(requests, timing)
            .await
            .map_err(|error| refusal(&model, &error))?;
        let open = choices.len();
        let (arrived, span) = (timing.arrived, Span::current());
        Ok(Self {
            model,
            stream,
            rules,
            choices,
            prompts,
            open,
            completion_tokens: 0,
            predicted: Predicted::default(),
            cut,
            overdue: Box::pin(sleep_until((timing.deadline + OVERDUE).into())),
            arrived,
            meter,
            moments: Moments::new(arrived),
            span,
        })
    }

    /// The choices, which number from 0.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// What was used so far.
    pub fn usage(&self) -> Usage {
        let prompt = self.prompts.iter().map(|prompt| prompt.len).sum();
        let cached = self.prompts.iter().filter_map(|prompt| prompt.cached).sum();
        let reasoning = self
            .choices
            .iter()
            .map(|choice| choice.assembler.reasoning_tokens());
        let details = CompletionTokensDetails {
            reasoning_tokens: reasoning.sum(),
            accepted_prediction_tokens: self.predicted.accepted,
            rejected_prediction_tokens: self.predicted.rejected,
        };
        Usage::new(prompt, self.completion_tokens, cached, details)
    }

    /// The next update, or `None` after the last choice has finished and what was used is recorded.
    pub async fn next(&mut self) -> Result<Option<Update>, ApiError> {
        let next = self.next_update().await;
        match next {
            Ok(Some(_)) => {}
            Ok(None) => self.settle(OK).await,
            Err(ref error) => self.settle(error.status.as_u16()).await,
        }
        next
    }

    async fn settle(&mut self, status: u16) {
        self.meter.used(self.used());
        self.meter.settle(status).await;
    }

    /// What was computed so far: of prompts those that have begun.
    fn used(&self) -> Used {
        let begun = self.prompts.iter().filter(|prompt| prompt.cached.is_some());
        Used {
            input: begun.map(|prompt| prompt.len).sum(),
            cached: self.prompts.iter().filter_map(|prompt| prompt.cached).sum(),
            output: self.completion_tokens,
        }
    }

    async fn next_update(&mut self) -> Result<Option<Update>, ApiError> {
        while self.open > 0 {
            let event = tokio::select! {
                // An answer that is read slowly has events waiting all the time.
                biased;
                why = &mut self.cut => return Err(why),
                () = &mut self.overdue => return Err(ApiError::deadline()),
                event = self.stream.next() => event,
            };
            let Some(event) = event else {
                return Err(if self.model.engine.is_closed() {
                    ApiError::model_unloaded()
                } else {
                    ApiError::internal()
                });
            };
            if let Some(update) = self.update(event)? {
                return Ok(Some(update));
            }
        }
        Ok(None)
    }

    fn update(&mut self, event: StreamEvent) -> Result<Option<Update>, ApiError> {
        self.moments.note(&event.event, event.at);
        let StreamEvent {
            choice: at, event, ..
        } = event;
        if self.choices[at].finished {
            return Ok(None);
        }
        let prompt = at * self.prompts.len() / self.choices.len();
        match event {
            Event::Started { cached_tokens } => {
                self.prompts[prompt].cached.get_or_insert(cached_tokens);
                Ok(None)
            }
            Event::PromptLogprobs(scores) => self.scored(at, prompt, &scores).map(Some),
            Event::Predicted(predicted) => {
                self.predicted.accepted += predicted.accepted;
                self.predicted.rejected += predicted.rejected;
                Ok(None)
            }
            Event::Token(sampled) => {
                self.count(at, sampled.token);
                let piece = self.choices[at]
                    .assembler
                    .token(sampled)
                    .map_err(|_| undecodable())?;
                let reason = piece.stop.map(|_| "stop");
                if piece.stop.is_some() {
                    self.stream.stop(at);
                }
                let begun = self.choices[at].begun;
                Ok((!piece.is_silent() || !begun).then(|| self.told(at, piece, reason)))
            }
            Event::Finished(finish) => self.finished(at, finish).map(Some),
        }
    }

    /// Tells the likelihoods of a prompt.
    fn scored(&mut self, at: usize, prompt: usize, scores: &[Option<Logprobs>]) -> Result<Update, ApiError> {
        let tokens = &self.prompts[prompt].tokens;
        let tokenizer = &self.model.tokenizer;
        // Every choice of a prompt would say the same.
        let first = at.is_multiple_of(self.choices.len() / self.prompts.len());
        let text = |token| String::from_utf8_lossy(&self.model.token_bytes(token)).into_owned();
        let asked = self.rules.prompt_logprobs.filter(|_| first);
        let told = asked.map(|top| logprobs::told(tokens, scores, top, text));
        let mut piece = Piece::default();
        if let Some(top) = self.rules.echo_logprobs {
            let skip = self.rules.skip_special_tokens;
            let entries = prompt_entries(tokenizer, skip, tokens, scores, top);
            piece.entries = entries.map_err(|_| undecodable())?;
        }
        let mut update = self.told(at, piece, None);
        update.prompt_logprobs = told;
        Ok(update)
    }

    fn finished(&mut self, at: usize, finish: Finish) -> Result<Update, ApiError> {
        if let Finish::Stop(token) = finish {
            self.count(at, token);
        }
        let choice = &mut self.choices[at];
        let mut piece = Piece::default();
        let reason = match finish {
            Finish::Stop(token) => {
                if self.rules.include_stop && self.rules.stop_token_ids.contains(&token) {
                    let sampled = rempart_engine::Sampled { token, logprob: None };
                    piece = choice.assembler.token(sampled).map_err(|_| undecodable())?;
                }
                "stop"
            }
            Finish::Complete => "stop",
            Finish::Length => "length",
            Finish::Deadline => return Err(ApiError::deadline()),
            Finish::Stuck => return Err(ApiError::format_stuck()),
            Finish::Aborted | Finish::Failed => return Err(ApiError::internal()),
        };
        if piece.stop.is_some() {
            return Ok(self.told(at, piece, Some(reason)));
        }
        let rest = choice.assembler.finish();
        piece.said.extend(rest.said);
        piece.entries.extend(rest.entries);
        piece.stop = rest.stop;
        let reason = rest.stop.map_or(reason, |_| "stop");
        Ok(self.told(at, piece, Some(reason)))
    }

    fn note_unread(&mut self, unread: &StreamEvent) {
        let StreamEvent { choice, event, at } = unread;
        self.moments.note(event, *at);
        if self.choices[*choice].finished {
            return;
        }
        match event {
            Event::Started { cached_tokens } => {
                let prompt = choice * self.prompts.len() / self.choices.len();
                self.prompts[prompt].cached.get_or_insert(*cached_tokens);
            }
            Event::Token(_) | Event::Finished(Finish::Stop(_)) => self.completion_tokens += 1,
            _ => {}
        }
    }

    fn count(&mut self, at: usize, token: u32) {
        if self.completion_tokens == 0 {
            self.meter.first_token();
        }
        self.completion_tokens += 1;
        if self.rules.token_ids {
            self.choices[at].tokens.push(token);
        }
    }

    fn told(&mut self, at: usize, piece: Piece, finish_reason: Option<&'static str>) -> Update {
        let prompt = at * self.prompts.len() / self.choices.len();
        let choice = &mut self.choices[at];
        let first = !std::mem::replace(&mut choice.begun, true);
        let mut said: Vec<Said> = choice.echo.take().map(Said::Content).into_iter().collect();
        said.extend(piece.said);
        // An answer that ends by itself and has calls ends for their results.
        let called = choice.assembler.calls() > 0;
        let finish_reason = match finish_reason {
            Some("stop") if called => Some("tool_calls"),
            other => other,
        };
        self.meter.said(at, &said, finish_reason);
        if let Some(reason) = finish_reason {
            self.moments.finished(reason);
            choice.finished = true;
            self.open -= 1;
        }
        Update {
            choice: at,
            first,
            said,
            entries: piece.entries,
            prompt_tokens: if first && self.rules.token_ids {
                self.prompts[prompt].tokens.clone()
            } else {
                Vec::new()
            },
            tokens: std::mem::take(&mut choice.tokens),
            finish_reason,
            stop: piece.stop,
            prompt_logprobs: None,
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        // What was made and never read was made all the same.
        while let Some(unread) = self.stream.try_next() {
            self.note_unread(&unread);
        }
        self.meter.used(self.used());
        if self.open == 0 {
            // Whoever read that far has all of it.
            self.meter.end(Some(OK));
        }
        let usage = self.usage();
        self.moments.tell(&usage);
        self.span.in_scope(|| {
            tracing::info!(
                prompt_tokens = usage.prompt_tokens,
                cached_tokens = usage.prompt_tokens_details.cached_tokens,
                completion_tokens = usage.completion_tokens,
                complete = self.open == 0,
                seconds = self.arrived.elapsed().as_secs_f64(),
                "generation ended"
            );
        });
    }
}

fn undecodable() -> ApiError {
    tracing::error!("a token of the model cannot be decoded");
    ApiError::internal()
}

/// What a client is told whose requests were not taken.
pub fn refusal(model: &Model, error: &SubmitError) -> ApiError {
    match error {
        SubmitError::Overloaded { retry_after_s } => ApiError::overloaded(*retry_after_s),
        SubmitError::NeverQueued(limit) => {
            let message = match limit {
                NeverQueued::Requests { count, limit } => format!(
                    "the request has {count} prompts, but at most {limit} can wait at one time (--queue-requests-max \
                     of this server): send fewer in one request"
                ),
                NeverQueued::Tokens { count, limit } => format!(
                    "the prompts have {count} tokens together, but at most {limit} can wait at one time \
                     (--queue-tokens-max of this server): send fewer in one request"
                ),
            };
            ApiError::invalid("prompt", "request_too_large", message)
        }
        SubmitError::Refused(AddError::PromptTooLong { tokens, .. }) => {
            ApiError::context_exceeded("prompt", model.context_length, *tokens, None)
        }
        SubmitError::Refused(AddError::TooLarge { .. }) => {
            let message = format!("{error}: ask for fewer tokens");
            ApiError::invalid("max_tokens", "request_too_large", message)
        }
        SubmitError::Refused(error) => {
            tracing::error!(%error, "the engine refused a prepared request. This is a bug.");
            ApiError::internal()
        }
        SubmitError::Stopped if model.engine.is_closed() => ApiError::model_unloaded(),
        SubmitError::Stopped => ApiError::not_ready("the engine has stopped"),
    }
}
