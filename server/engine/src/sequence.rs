//! One token stream of a request, and the request its sequences share.

use std::sync::Arc;

use crate::blocks::BlockId;
use crate::constraint::{Constraint, TokenMask};
use crate::draft::Drafter;
use crate::hash::{BlockKey, Hasher, Salt};
use crate::request::{Event, Logprobs, Output, Request, RequestId, SeqId, Token};

/// The order of service within a flow: priority first, then arrival. Preemption takes the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub(crate) priority: i32,
    pub(crate) seq: SeqId,
}

/// One token stream.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "none of these facts follows from another"
)]
pub(crate) struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) request: RequestId,
    pub(crate) index: usize,
    pub(crate) spec: Arc<Request>,
    pub(crate) seed: u64,
    pub(crate) salt: Salt,
    /// The prompt, then the output.
    pub(crate) tokens: Vec<Token>,
    /// Tokens at the end of `tokens` that are only guessed; none between steps.
    pub(crate) drafted: usize,
    pub(crate) drafter: Drafter,
    /// Its place in the grammar, after all of `tokens`.
    pub(crate) constraint: Option<Box<dyn Constraint>>,
    /// What it allows in the step under way.
    pub(crate) allowed: Option<TokenMask>,
    /// Leading tokens whose keys and values are in `table`.
    pub(crate) computed: usize,
    pub(crate) table: Vec<BlockId>,
    /// What `computed` was when it last gave way, if the end of that lies in a parked block.
    pub(crate) parked: usize,
    /// Leading blocks of `table` that are findable by content.
    pub(crate) published: usize,
    /// False once a block could not be published: its successors can't be either.
    pub(crate) publishing: bool,
    /// Keys of the leading full blocks of `tokens`, as far as they were needed.
    pub(crate) keys: Vec<BlockKey>,
    /// It runs and has one token to compute: counted in the scheduler's `decoding`.
    pub(crate) decodes: bool,
    pub(crate) started: bool,
    /// The prompt was computed at least once.
    pub(crate) prompt_done: bool,
    /// What it adds to the queue's token count while it waits.
    pub(crate) queue_tokens: usize,
}

impl Sequence {
    pub(crate) fn new(id: SeqId, request: RequestId, index: usize, spec: Arc<Request>, salt: Salt) -> Self {
        Self {
            id,
            request,
            index,
            seed: crate::rng::sequence_seed(spec.sampling.seed, index),
            salt,
            tokens: spec.prompt.clone(),
            drafted: 0,
            drafter: Drafter::new(),
            constraint: spec.grammar.as_ref().map(|grammar| grammar.0.start()),
            allowed: None,
            computed: 0,
            table: Vec::new(),
            parked: 0,
            published: 0,
            publishing: true,
            keys: Vec::new(),
            decodes: false,
            started: false,
            prompt_done: false,
            // Siblings find the prompt in the cache when the first of them has computed it.
            queue_tokens: if index == 0 {
                spec.prompt.len() + spec.prediction.len()
            } else {
                1
            },
            spec,
        }
    }

    pub(crate) fn rank(&self) -> Rank {
        Rank {
            priority: self.spec.priority,
            seq: self.id,
        }
    }

    /// Who it is served for.
    pub(crate) fn flow(&self) -> u64 {
        self.spec.flow.id
    }

    /// Tokens still to compute: more than one is prefill, one is decode.
    pub(crate) fn pending(&self) -> usize {
        self.tokens.len() - self.drafted - self.computed
    }

    /// How many guesses can be of use: the last token that it may make is never computed.
    pub(crate) fn drafts_max(&self, context_max: usize) -> usize {
        // The places after a guess would each need an excursion of the constraint, which forces what is certain anyway.
        if !self.prompt_done || self.constraint.is_some() {
            return 0;
        }
        let left = self.spec.stop.max_tokens.saturating_sub(self.output().len());
        left.min(context_max - self.tokens.len()).saturating_sub(1)
    }

    pub(crate) fn prompt(&self) -> &[Token] {
        &self.tokens[..self.spec.prompt.len()]
    }

    pub(crate) fn output(&self) -> &[Token] {
        self.output_before(self.tokens.len())
    }

    /// The output in front of a position, guesses included.
    pub(crate) fn output_before(&self, position: usize) -> &[Token] {
        let start = self.spec.prompt.len();
        &self.tokens[start..position.max(start)]
    }

    /// Stop tokens, if they are not allowed yet at this position.
    pub(crate) fn banned(&self, position: usize) -> &[Token] {
        if self.output_before(position).len() < self.spec.stop.min_tokens {
            &self.spec.stop.tokens
        } else {
            &[]
        }
    }

    /// Brings `keys` up to date with `tokens`.
    pub(crate) fn extend_keys(&mut self, hasher: &Hasher, block_size: usize) {
        for block in self.tokens.chunks_exact(block_size).skip(self.keys.len()) {
            let parent = self
                .keys
                .last()
                .copied()
                .unwrap_or_else(|| hasher.root(self.salt));
            self.keys.push(hasher.chain(parent, block));
        }
    }

    /// Key and tokens of the begun block that was parked; those before it have theirs in `keys`.
    pub(crate) fn begun(&self, hasher: &Hasher, block_size: usize) -> (BlockKey, &[Token]) {
        let full = self.parked / block_size;
        let parent = match full {
            0 => hasher.root(self.salt),
            _ => self.keys[full - 1],
        };
        let tokens = &self.tokens[full * block_size..self.parked];
        (hasher.chain(parent, tokens), tokens)
    }

    pub(crate) fn event(&self, event: Event) -> Output {
        Output {
            request: self.request,
            index: self.index,
            seq: self.id,
            event,
        }
    }
}

/// The living sequences of one request, and what they share.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) spec: Arc<Request>,
    /// In order of index. The first computes the prompt; the others wait until that is done.
    pub(crate) seqs: Vec<SeqId>,
    pub(crate) prompt_done: bool,
    /// Prompt log-probabilities so far, when asked for.
    pub(crate) scores: Vec<Option<Logprobs>>,
    /// All of them, once one sequence was told.
    pub(crate) all_scores: Option<Arc<[Option<Logprobs>]>>,
    pub(crate) started: bool,
    pub(crate) added_ms: u64,
}

impl Group {
    /// Scores are still missing, so the prompt must be computed rather than found.
    pub(crate) fn is_scoring(&self) -> bool {
        self.spec.prompt_logprobs.is_some() && !self.prompt_done
    }

    /// The scores of the whole prompt, which all sequences share.
    pub(crate) fn told(&mut self) -> Arc<[Option<Logprobs>]> {
        let scores = &mut self.scores;
        Arc::clone(
            self.all_scores
                .get_or_insert_with(|| std::mem::take(scores).into()),
        )
    }

    /// The sequence must wait for the first one to compute the prompt.
    pub(crate) fn holds_back(&self, seq: SeqId) -> bool {
        !self.prompt_done && self.seqs.first() != Some(&seq)
    }
}
