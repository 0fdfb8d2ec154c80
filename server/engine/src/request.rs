//! What a client asks for and what it gets back, in tokens.

use std::sync::Arc;

use thiserror::Error;

use crate::constraint::SharedGrammar;

/// A token id of the model's vocabulary.
pub type Token = u32;

/// The most sequences one request may ask for (`n`): OpenAI's own limit.
pub const SEQUENCES_PER_REQUEST_MAX: usize = 128;

/// The most weight a flow can have.
pub const FLOW_WEIGHT_MAX: u32 = 1000;

/// Who is served: requests of several flows share the engine by weight, those of one flow are served in order. The
/// caller decides what a flow is (a project, say).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Flow 0 may fill the whole queue, any other as much of it as is left free.
    pub id: u64,
    /// 1 to [`FLOW_WEIGHT_MAX`]. That of the request added last holds for the whole flow.
    pub weight: u32,
}

impl Default for Flow {
    fn default() -> Self {
        Self { id: 0, weight: 1 }
    }
}

/// Names a request. Chosen by the caller, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Names one sequence of a request. Given by the engine in order of arrival, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// How the next token is chosen. The default is plain sampling at temperature 1 with every filter off.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; so is anything below 1e-5.
    pub temperature: f32,
    /// Nucleus: the fewest best tokens whose probabilities sum to at least this. 1 is off.
    pub top_p: f32,
    /// The number of best tokens kept. 0 is off.
    pub top_k: u32,
    /// Tokens less probable than this share of the best one are dropped. 0 is off.
    pub min_p: f32,
    /// Over prompt and output: positive logits are divided by it, others multiplied. 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted once from every token of the output. 0 is off.
    pub presence_penalty: f32,
    /// Subtracted as often as the token occurs in the output. 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; tokens outside the vocabulary are ignored.
    pub logit_bias: Vec<(Token, f32)>,
    /// Key of the random draws: the same seed, prompt and parameters give the same tokens in any batch.
    pub seed: u64,
    /// `None`: no log-probabilities. `Some(k)`: that of the chosen token and of the `k` best.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// When a sequence ends by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopRules {
    /// End-of-sequence tokens and the client's stop tokens; empty when the client ignores end-of-sequence.
    pub tokens: Vec<Token>,
    /// The most tokens to generate. 0 computes the prompt only (scoring).
    pub max_tokens: usize,
    /// Stop tokens can't be chosen before this many tokens.
    pub min_tokens: usize,
}

/// What a client asked for, checked by the server; the engine checks only what would hurt the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<Token>,
    /// The number of sequences that continue this prompt, 1 to [`SEQUENCES_PER_REQUEST_MAX`].
    pub n: usize,
    /// Sequence `i` of `n` draws with the seed [`crate::rng::sequence_seed`] derives from `(seed, i)`.
    pub sampling: SamplingParams,
    pub stop: StopRules,
    /// `Some(k)`: log-probabilities of every prompt token after the first, and of the `k` best in its place.
    pub prompt_logprobs: Option<u32>,
    /// What the caller expects the output to be, for guesses; it changes no answer. Without effect where guesses are: under a
    /// grammar, or when steps make none. It counts as the prompt does while the request waits.
    pub prediction: Vec<Token>,
    /// The language that the output must be of. Tokens that it forces come without log-probabilities, or one by one with
    /// them if `sampling` asks for some.
    pub grammar: Option<SharedGrammar>,
    /// Requests share cached blocks only with requests of the same salt (one per tenant).
    pub cache_salt: u64,
    /// Lower runs first. Within one priority the flow that was served least is next, and within a flow first come, first
    /// served.
    pub priority: i32,
    pub flow: Flow,
    /// The request ends with [`Finish::Deadline`] at the first step at or after this time, in milliseconds of the
    /// caller's clock.
    pub deadline_ms: Option<u64>,
}

/// A token and the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logprob {
    pub token: Token,
    pub logprob: f32,
}

/// Log-probabilities at one position, of the raw logits before any bias, penalty or temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the chosen (or scored) token.
    pub chosen: f32,
    /// Its place among all tokens: 1 for the best; on ties the lowest token first.
    pub rank: u32,
    /// The best tokens, best first; on ties the lowest token first.
    pub top: Vec<Logprob>,
}

/// What a runner chose for one wanted row of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The chosen token; for a scored row, the token that was scored.
    pub token: Token,
    pub logprob: Option<Logprobs>,
}

impl Sampled {
    /// Stands in `token` when the logits allow no choice (all NaN or minus infinity). No vocabulary is that large.
    const NO_TOKEN: Token = Token::MAX;

    /// A row without any usable logit: the engine ends that sequence, and only that one, with [`Finish::Failed`].
    pub fn invalid() -> Self {
        Self {
            token: Self::NO_TOKEN,
            logprob: None,
        }
    }

    /// False for [`Sampled::invalid`]. Tokens in an [`Event::Token`] are always valid.
    pub fn is_valid(&self) -> bool {
        self.token != Self::NO_TOKEN
    }
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The grammar allows nothing more.
    Complete,
    /// The grammar has a next place, but no token leads there, or it is too costly to find.
    Stuck,
    /// This stop token was chosen. It is not part of the text, and no [`Event::Token`] carries it.
    Stop(Token),
    /// `max_tokens` were made, or the context is full.
    Length,
    /// The caller aborted it.
    Aborted,
    /// Its deadline passed.
    Deadline,
    /// The step it was in failed, or its logits were unusable.
    Failed,
}

/// Guesses taken from a [`Request::prediction`], in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Predicted {
    pub accepted: usize,
    pub rejected: usize,
}

/// Something that happened to one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub request: RequestId,
    /// 0 to `n - 1`.
    pub index: usize,
    pub seq: SeqId,
    pub event: Event,
}

/// What happened. Every sequence gets exactly one `Finished` and nothing after it; `Started` comes first, except
/// when the sequence ends before it ever ran.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It left the queue; this many of its prompt tokens were found in the prefix cache.
    Started {
        cached_tokens: usize,
    },
    /// One entry per prompt token, the first `None`. Comes once per sequence, before its first token.
    PromptLogprobs(Arc<[Option<Logprobs>]>),
    /// A token of the text.
    Token(Sampled),
    /// What became of a step's guesses, if they were taken from the request's prediction. Comes before the step's tokens.
    Predicted(Predicted),
    Finished(Finish),
}

/// Why a request was not taken. Numbers are for the client's message and for `Retry-After`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddError {
    /// Come back later.
    #[error(
        "the queue is full: {requests} of {requests_max} requests and {tokens} of {tokens_max} prompt tokens wait, \
         and this request has {needed} tokens"
    )]
    QueueFull {
        requests: usize,
        requests_max: usize,
        tokens: usize,
        tokens_max: usize,
        needed: usize,
    },
    /// The queue has room, but not for this flow, which may hold as much of it as is left free. Come back later.
    #[error(
        "flow {flow} fills its part of the queue: {requests} of its requests and {tokens} of its prompt tokens wait, \
         this request has {needed} tokens, and {requests_free} requests and {tokens_free} tokens are left free"
    )]
    FlowQueueFull {
        flow: u64,
        requests: usize,
        requests_free: usize,
        tokens: usize,
        tokens_free: usize,
        needed: usize,
    },
    /// The prompt leaves no room in the context for one more token.
    #[error("the prompt has {tokens} tokens, the limit is {limit}")]
    PromptTooLong { tokens: usize, limit: usize },
    /// Prompt and completion would need more blocks than the whole pool has.
    #[error("the request needs up to {blocks} cache blocks, the pool has {blocks_total}")]
    TooLarge { blocks: usize, blocks_total: usize },
    /// `n` is 0 or above [`SEQUENCES_PER_REQUEST_MAX`].
    #[error("n is {n}, it must be 1 to {limit}")]
    SequenceCount { n: usize, limit: usize },
    /// The weight is 0 or above [`FLOW_WEIGHT_MAX`].
    #[error("the weight of the flow is {weight}, it must be 1 to {limit}")]
    FlowWeight { weight: u32, limit: u32 },
    #[error("the prompt has no tokens")]
    Empty,
    /// A request of this id is still alive.
    #[error("a request with this id is already being served")]
    Duplicate,
}
