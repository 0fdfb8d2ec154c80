//! From a checked wire request to what the engine takes: template, tokens, limits of the model. After this nothing is
//! validated again.

pub mod assemble;
pub mod blocks;
pub mod generation;
pub mod plan;
pub mod template;
mod tokens;

use rempart_engine::{Flow, Request, SamplingParams, StopRules};
use rempart_text::{OwnedSegment, RenderInput, Segment};

use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::http::models::unix_now;
use crate::ledger::Expected;
use crate::model::Model;
use crate::openai::chat::{ChatRequest, Conversation};
use crate::openai::completions::{CompletionRequest, MAX_TOKENS_DEFAULT};
use crate::openai::format::AskedFormat;
use crate::openai::shared::Common;
use crate::openai::tools::Tools;
use plan::{Budget, Reading, Thinking};
use template::Chat;
pub use tokens::{check_bytes, check_vocabulary, decode, text_tokens};
use tokens::{counted_max, echo, encode, infill, prediction, prompt_tokens, shorten};

/// Tokens of an answer whose length nobody has limited.
const EXPECTED_TOKENS: usize = 512;

type Result<T> = std::result::Result<T, ApiError>;

/// A request ready for the engine, and what its answer needs.
pub struct Prepared {
    pub requests: Vec<Request>,
    /// Per request: the text to repeat before its answers.
    pub echoes: Vec<Option<String>>,
    /// What every answer must be; its grammar is not in the requests yet.
    pub format: Option<AskedFormat>,
    /// What reasoning in front of it is held to.
    pub thinking: Option<Thinking>,
    pub rules: Rules,
    /// Tokens that it may use, for limits.
    pub tokens: Expected,
}

/// How tokens become text, the same for every choice.
#[derive(Clone)]
pub struct Rules {
    pub stops: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub include_stop: bool,
    /// Tokens that must be made before a stop string can end a choice.
    pub min_tokens: usize,
    pub skip_special_tokens: bool,
    pub logprobs: Option<u32>,
    /// Likelihoods of the prompt, told by themselves: how many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// The same, told as the first of an echoed answer.
    pub echo_logprobs: Option<u32>,
    /// Whether the tokens themselves are told beside their text.
    pub token_ids: bool,
    pub reading: Reading,
}

/// Prepares `/v1/chat/completions`.
pub fn prepare_chat(request: &ChatRequest, model: &Model, limits: &RequestLimits) -> Result<Prepared> {
    let common = &request.common;
    model.check_name(&common.model)?;
    check_tokens_known(common, model)?;
    let tools = request.conversation.tools.as_ref();
    let chat = chat_of(model)?;
    let counted = counted_max(model, common);
    let rendered = render(&request.conversation, model, limits, counted)?;
    let prompt = shorten(rendered.tokens, common.truncate, common.max_tokens, model);
    let max_tokens = room("messages", model, prompt.len(), common.max_tokens)?;
    check_min_tokens(common, max_tokens)?;
    let reading = Reading::new(chat, &rendered.text, tools, common.format.is_some());
    let format = match tools {
        Some(tools) => {
            let content = common.format.as_ref().map(|asked| &asked.format);
            Some(plan::calls(tools, &chat.dialect, content))
        }
        None => common.format.clone(),
    };
    check_format(common, format.as_ref())?;
    let thinking = Thinking::plan(chat, &reading, rendered.budget, format.as_ref())?;
    let mut prepared = engine_request(common, model, prompt, max_tokens, request.logprobs);
    if let Some(text) = &request.prediction {
        prepared.prediction = prediction(text, model, limits)?;
    }
    check_scores(&prepared, limits)?;
    let last = request.conversation.messages.last();
    Ok(Prepared {
        tokens: expected(std::slice::from_ref(&prepared), common.max_tokens),
        requests: vec![prepared],
        echoes: vec![
            last.filter(|_| request.echo)
                .map(|message| message.content.clone()),
        ],
        format,
        thinking,
        rules: Rules {
            token_ids: request.return_token_ids,
            reading,
            ..rules(common, request.logprobs)
        },
    })
}

/// Prepares `/v1/completions`.
pub fn prepare_completion(
    request: &CompletionRequest,
    model: &Model,
    limits: &RequestLimits,
) -> Result<Prepared> {
    let common = &request.common;
    model.check_name(&common.model)?;
    check_tokens_known(common, model)?;
    let default = request.max_tokens.is_none().then_some(MAX_TOKENS_DEFAULT);
    check_format(common, common.format.as_ref())?;
    let (mut requests, mut echoes) = (Vec::new(), Vec::new());
    for prompt in &request.prompts {
        let mut tokens = prompt_tokens(prompt, request, model, limits)?;
        if let Some(suffix) = &request.suffix {
            tokens = infill(&tokens, suffix, model, limits)?;
        }
        let tokens = shorten(tokens, common.truncate, request.max_tokens, model);
        let room = room("prompt", model, tokens.len(), request.max_tokens)?;
        let max_tokens = default.map_or(room, |default| room.min(default));
        check_min_tokens(common, max_tokens)?;
        echoes.push(if request.echo {
            Some(echo(prompt, &tokens, common, model)?)
        } else {
            None
        });
        let mut prepared = engine_request(common, model, tokens, max_tokens, request.logprobs);
        if request.suffix.is_some() {
            let ends = model.infill.iter().flat_map(|infill| &infill.ends);
            prepared.stop.tokens.extend(ends);
        }
        let echoed = request.logprobs.filter(|_| request.echo);
        prepared.prompt_logprobs = prepared.prompt_logprobs.max(echoed);
        check_scores(&prepared, limits)?;
        requests.push(prepared);
    }
    let asked = request.max_tokens.or(default);
    Ok(Prepared {
        tokens: expected(&requests, asked),
        requests,
        echoes,
        format: common.format.clone(),
        thinking: None,
        rules: Rules {
            token_ids: request.return_token_ids,
            echo_logprobs: request.logprobs.filter(|_| request.echo),
            ..rules(common, request.logprobs)
        },
    })
}

fn chat_of(model: &Model) -> Result<&Chat> {
    model.chat.as_ref().ok_or_else(|| {
        let message = "this model has no chat template: use /v1/completions";
        ApiError::invalid("messages", "no_chat_template", message)
    })
}

/// A conversation as a model is given it.
pub struct Rendered {
    pub text: String,
    pub tokens: Vec<u32>,
    /// What limits the reasoning in the answer.
    pub budget: Option<Budget>,
}

/// Renders a conversation with the model's template and tokenizes it.
pub fn render(
    conversation: &Conversation,
    model: &Model,
    limits: &RequestLimits,
    tokens_max: usize,
) -> Result<Rendered> {
    let chat = chat_of(model)?;
    check_bytes("messages", conversation.content_bytes(), limits)?;
    // Where an answer goes on with the last message, a mark that no client can know tells where its content ends.
    let mark = conversation
        .continue_final_message
        .then(|| uuid::Uuid::new_v4().simple().to_string());
    let messages = conversation.template_messages(mark.as_deref().unwrap_or_default());
    let tools = conversation.tools.as_ref().map(Tools::template_tools);
    let (messages, tools) = chat.dialect.conversation(messages, tools);
    let (mut kwargs, budget) = plan::reasoning(conversation.reasoning, chat)?;
    kwargs.extend(conversation.template_kwargs.clone());
    let input = RenderInput {
        messages: &messages,
        tools: tools.as_ref(),
        documents: None,
        add_generation_prompt: conversation.add_generation_prompt,
        kwargs,
        now_s: unix_now(),
    };
    // These errors quote the template at most, never the conversation.
    let mut segments = chat
        .template
        .render(&input)
        .map_err(|error| ApiError::invalid("messages", "chat_template_error", error.to_string()))?;
    if let Some(mark) = mark {
        cut_at(&mut segments, &mark)?;
    }
    let text: String = segments.iter().map(OwnedSegment::as_str).collect();
    check_bytes("messages", text.len(), limits)?;
    let segments: Vec<Segment<'_>> = segments.iter().map(OwnedSegment::as_segment).collect();
    let tokens = encode("messages", &segments, false, model, tokens_max)?;
    Ok(Rendered { text, tokens, budget })
}

/// Cuts off what a template writes from the mark on, which stands behind the last message's content.
fn cut_at(segments: &mut Vec<OwnedSegment>, mark: &str) -> Result<()> {
    let text: String = segments.iter().map(OwnedSegment::as_str).collect();
    let Some(mut left) = text.find(mark) else {
        let message = "this model's chat template rewrites the last message, which so can't be continued";
        return Err(ApiError::invalid(
            "continue_final_message",
            "chat_template_error",
            message,
        ));
    };
    segments.retain_mut(|segment| {
        let (OwnedSegment::Text(text) | OwnedSegment::Markup(text)) = segment;
        text.truncate(left.min(text.len()));
        left -= text.len();
        !text.is_empty()
    });
    Ok(())
}

/// Refuses more likelihoods of a prompt than an answer may carry.
fn check_scores(request: &Request, limits: &RequestLimits) -> Result<()> {
    let Some(top) = request.prompt_logprobs else {
        return Ok(());
    };
    let (tokens, limit) = (request.prompt.len(), limits.prompt_logprobs_max);
    let count = tokens * (top as usize + 1);
    if count <= limit {
        return Ok(());
    }
    let message = format!(
        "likelihoods of a prompt of {tokens} tokens with {top} alternatives are {count}, but the limit is {limit}"
    );
    Err(ApiError::invalid("prompt_logprobs", "out_of_range", message))
}

fn check_tokens_known(common: &Common, model: &Model) -> Result<()> {
    check_vocabulary("stop_token_ids", &common.stop_token_ids, model)?;
    let biased: Vec<u32> = common
        .sampling
        .logit_bias
        .iter()
        .map(|(token, _)| *token)
        .collect();
    check_vocabulary("logit_bias", &biased, model)
}

/// The tokens an answer may have; all that the context leaves when the client names no limit.
fn room(param: &str, model: &Model, prompt: usize, wanted: Option<usize>) -> Result<usize> {
    let context = model.context_length;
    if prompt >= context {
        return Err(ApiError::context_exceeded(param, context, prompt, None));
    }
    match wanted {
        Some(wanted) if prompt + wanted > context => {
            Err(ApiError::context_exceeded(param, context, prompt, Some(wanted)))
        }
        Some(wanted) => Ok(wanted),
        None => Ok(context - prompt),
    }
}

fn check_min_tokens(common: &Common, max_tokens: usize) -> Result<()> {
    if common.min_tokens <= max_tokens {
        return Ok(());
    }
    let message = format!(
        "`min_tokens` is {}, but at most {max_tokens} tokens can be generated",
        common.min_tokens
    );
    Err(ApiError::invalid("min_tokens", "out_of_range", message))
}

/// An answer ends where its format does.
fn check_format(common: &Common, asked: Option<&AskedFormat>) -> Result<()> {
    let Some(asked) = asked else {
        return Ok(());
    };
    for (set, param) in [
        (common.min_tokens > 0, "min_tokens"),
        (common.ignore_eos, "ignore_eos"),
        (!common.stop_token_ids.is_empty(), "stop_token_ids"),
    ] {
        if set {
            let message = format!("`{param}` can't be combined with `{}`", asked.param);
            return Err(ApiError::invalid(param, "invalid_value", message));
        }
    }
    Ok(())
}

/// The tokens of prompts and their answers: as many as are asked for or, where that is left open, as answers mostly have.
fn expected(requests: &[Request], asked: Option<usize>) -> Expected {
    let tokens = |answer: usize| {
        let of = |request: &Request| request.prompt.len() + request.n * answer.min(request.stop.max_tokens);
        requests.iter().map(of).sum()
    };
    Expected {
        expected: tokens(asked.unwrap_or(EXPECTED_TOKENS)),
        most: tokens(usize::MAX),
    }
}

fn engine_request(
    common: &Common,
    model: &Model,
    prompt: Vec<u32>,
    max_tokens: usize,
    logprobs: Option<u32>,
) -> Request {
    let eos: &[u32] = if common.ignore_eos { &[] } else { &model.eos_tokens };
    let stop = StopRules {
        tokens: eos.iter().chain(&common.stop_token_ids).copied().collect(),
        max_tokens,
        min_tokens: common.min_tokens,
    };
    let sampling = &common.sampling;
    let sampling = SamplingParams {
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        repetition_penalty: sampling.repetition_penalty,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        logit_bias: sampling.logit_bias.clone(),
        seed: sampling
            .seed
            .unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0),
        logprobs,
    };
    Request {
        prompt,
        n: common.n,
        sampling,
        stop,
        prompt_logprobs: common.prompt_logprobs,
        prediction: Vec::new(),
        grammar: None,
        cache_salt: 0,
        flow: Flow::default(),
        priority: common.priority,
        deadline_ms: None,
    }
}

fn rules(common: &Common, logprobs: Option<u32>) -> Rules {
    Rules {
        stops: common.stop.clone(),
        stop_token_ids: common.stop_token_ids.clone(),
        include_stop: common.include_stop,
        min_tokens: common.min_tokens,
        skip_special_tokens: common.skip_special_tokens,
        logprobs,
        prompt_logprobs: common.prompt_logprobs,
        echo_logprobs: None,
        token_ids: false,
        reading: Reading::default(),
    }
}
