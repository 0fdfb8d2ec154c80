//! Limits of a single request.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;

/// Limits of a single request.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Request")]
pub struct RequestArgs {
    /// Levels of nesting in a JSON body
    #[arg(long, env = "REMPART_JSON_DEPTH_MAX", default_value_t = 64, value_parser = clap::value_parser!(u8).range(8..=100))]
    pub json_depth_max: u8,
    /// Bytes of prompt, checked before it is tokenized
    #[arg(long, env = "REMPART_PROMPT_BYTES_MAX", default_value = "4194304")]
    pub prompt_bytes_max: NonZeroUsize,
    /// Messages of a conversation
    #[arg(long, env = "REMPART_MESSAGES_MAX", default_value = "4096")]
    pub messages_max: NonZeroUsize,
    /// Text parts of one message
    #[arg(long, env = "REMPART_CONTENT_PARTS_MAX", default_value = "1024")]
    pub content_parts_max: NonZeroUsize,
    /// The least `priority` that a request may ask for: below 0, clients can have themselves served before others
    #[arg(long, env = "REMPART_PRIORITY_MIN", default_value_t = 0, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=0))]
    pub priority_min: i32,
    /// Likelihoods of a prompt's tokens, alternatives included, that one prompt may ask for
    #[arg(long, env = "REMPART_PROMPT_LOGPROBS_MAX", default_value = "65536")]
    pub prompt_logprobs_max: NonZeroUsize,
    /// The largest `n`
    #[arg(long, env = "REMPART_CHOICES_MAX", default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..=128))]
    pub choices_max: u8,
    /// Prompts of one completion request, and prompts times `n`
    #[arg(long, env = "REMPART_PROMPTS_MAX", default_value = "64")]
    pub prompts_max: NonZeroUsize,
    /// Inputs of `/v1/embeddings`, documents of `/v1/rerank`, and pairs of `/v1/score`
    #[arg(long, env = "REMPART_INPUTS_MAX", default_value = "2048")]
    pub inputs_max: NonZeroUsize,
    /// Stop strings
    #[arg(long, env = "REMPART_STOPS_MAX", default_value = "16")]
    pub stops_max: NonZeroUsize,
    /// Bytes of one stop string
    #[arg(long, env = "REMPART_STOP_BYTES_MAX", default_value = "512")]
    pub stop_bytes_max: NonZeroUsize,
    /// Entries of `stop_token_ids`
    #[arg(long, env = "REMPART_STOP_TOKENS_MAX", default_value = "128")]
    pub stop_tokens_max: NonZeroUsize,
    /// Entries of `logit_bias`
    #[arg(long, env = "REMPART_LOGIT_BIAS_MAX", default_value = "1024")]
    pub logit_bias_max: NonZeroUsize,
    /// Bytes of a schema, regular expression, grammar or choice that an answer must follow
    #[arg(long, env = "REMPART_FORMAT_BYTES_MAX", default_value = "131072")]
    pub format_bytes_max: NonZeroUsize,
    /// Functions in `tools`, and calls in a message
    #[arg(long, env = "REMPART_TOOLS_MAX", default_value = "128")]
    pub tools_max: NonZeroUsize,
    /// Bytes of `tools`
    #[arg(long, env = "REMPART_TOOLS_BYTES_MAX", default_value = "524288")]
    pub tools_bytes_max: NonZeroUsize,
    /// Choices of `structured_outputs`
    #[arg(long, env = "REMPART_FORMAT_CHOICES_MAX", default_value = "1024")]
    pub format_choices_max: NonZeroUsize,
    /// Milliseconds that compiling one of these may take; longer gets a 400
    #[arg(long, env = "REMPART_GRAMMAR_TIMEOUT_MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub grammar_timeout_ms: u64,
    /// Compiled formats that are kept for the next request
    #[arg(long, env = "REMPART_GRAMMARS_MAX", default_value_t = 32, value_parser = clap::value_parser!(u16).range(0..=4096))]
    pub grammars_max: u16,
    /// Seconds that answers of `/v1/responses` are kept, in memory, for a later request to go on from; 0 keeps none
    #[arg(long, env = "REMPART_RESPONSES_RETENTION_S", default_value_t = 3600, value_parser = clap::value_parser!(u32).range(0..=2_592_000))]
    pub responses_retention_s: u32,
    /// Bytes of them; the oldest go first
    #[arg(long, env = "REMPART_RESPONSES_BYTES_MAX", default_value = "67108864")]
    pub responses_bytes_max: NonZeroUsize,
}

/// What a request may ask for, on any model.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    pub json_depth_max: usize,
    pub prompt_bytes_max: usize,
    pub messages_max: usize,
    pub content_parts_max: usize,
    pub priority_min: i32,
    pub prompt_logprobs_max: usize,
    pub choices_max: usize,
    pub prompts_max: usize,
    pub inputs_max: usize,
    pub stops_max: usize,
    pub stop_bytes_max: usize,
    pub stop_tokens_max: usize,
    pub logit_bias_max: usize,
    pub tools_max: usize,
    pub tools_bytes_max: usize,
    pub format_bytes_max: usize,
    pub format_choices_max: usize,
    pub grammar_timeout: Duration,
    pub grammars_max: usize,
    pub responses_retention: Duration,
    pub responses_bytes_max: usize,
}

impl RequestArgs {
    pub(super) fn limits(self) -> RequestLimits {
        RequestLimits {
            json_depth_max: usize::from(self.json_depth_max),
            prompt_bytes_max: self.prompt_bytes_max.get(),
            messages_max: self.messages_max.get(),
            content_parts_max: self.content_parts_max.get(),
            priority_min: self.priority_min,
            prompt_logprobs_max: self.prompt_logprobs_max.get(),
            choices_max: usize::from(self.choices_max),
            prompts_max: self.prompts_max.get(),
            inputs_max: self.inputs_max.get(),
            stops_max: self.stops_max.get(),
            stop_bytes_max: self.stop_bytes_max.get(),
            stop_tokens_max: self.stop_tokens_max.get(),
            logit_bias_max: self.logit_bias_max.get(),
            tools_max: self.tools_max.get(),
            tools_bytes_max: self.tools_bytes_max.get(),
            format_bytes_max: self.format_bytes_max.get(),
            format_choices_max: self.format_choices_max.get(),
            grammar_timeout: Duration::from_millis(self.grammar_timeout_ms),
            grammars_max: usize::from(self.grammars_max),
            responses_retention: Duration::from_secs(u64::from(self.responses_retention_s)),
            responses_bytes_max: self.responses_bytes_max.get(),
        }
    }
}
