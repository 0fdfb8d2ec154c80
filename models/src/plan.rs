//! How much memory a model will take, decided before anything is allocated, and on a card once more when its weights are there.

use std::fmt;

use crate::{Error, KvCache, KvDtype, ModelConfig, Result, parallel::Shard};

const MIB: u64 = 1 << 20;
/// An automatic plan gives one part in so many of the memory left after weights and activations to keys and values.
const KV_PARTS: u64 = 2;
/// Most that an automatic plan gives to keys and values, unless one full context needs more.
const KV_AUTO_MAX: u64 = 2 << 30;

/// Shortest context that an automatic plan falls back to before it gives up, tokens.
pub const CONTEXT_AUTO_MIN: usize = 1024;

/// What the plan must provide for.
#[derive(Clone, Copy, Debug)]
pub struct PlanRequest {
    /// Memory the process may use, bytes.
    pub available: u64,
    /// Bytes of the tensors as the layers hold them: [`Checkpoint::loaded_bytes`](crate::weights::Checkpoint::loaded_bytes).
    pub weights: u64,
    /// Longest sequence served, tokens.
    pub context_length: usize,
    /// Token slots per block.
    pub block_size: usize,
    /// Most tokens in one step.
    pub step_tokens: usize,
    /// Most rows whose logits are computed in one step.
    pub logit_rows: usize,
    /// Bytes that large steps were measured to take ([`LargestSteps`](crate::LargestSteps)), where that is more than the estimate.
    pub measured_activations: Option<u64>,
    /// How keys and values are held.
    pub kv_dtype: KvDtype,
    /// Bytes for keys and values; `None` lets the plan decide.
    pub kv: Option<u64>,
    /// Whether the memory is there for models alone, as a card's is: then a plan that decides gives keys and values all that
    /// is left. What samples there needs memory, too.
    pub dedicated: bool,
    /// Ranks that have a part of the model each, all in this memory: `weights` are those of all.
    pub ranks: usize,
}

/// Memory by use, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What the process may use.
    pub available: u64,
    /// Tensors, as the layers hold them.
    pub weights: u64,
    /// Keys and values.
    pub kv: u64,
    /// Largest intermediate results of a step, and what operations keep for passing use.
    pub activations: u64,
    /// Blocks of keys and values.
    pub blocks: usize,
    /// Token slots per block.
    pub block_size: usize,
}

impl MemoryPlan {
    /// Plans memory for `request`.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] with every figure when the parts exceed what is available, or when keys and values of
    /// one sequence of full length have no room.
    pub fn new(config: &ModelConfig, request: &PlanRequest) -> Result<Self> {
        let block_bytes = block_bytes(config, request)?;
        let one_context = request.context_length.div_ceil(request.block_size) as u64 * block_bytes;
        // What a rank does not divide is the larger part.
        let estimated = request.ranks as u64 * activations(config, request);
        let activations = estimated.max(request.measured_activations.unwrap_or(0));
        let left = request.available.saturating_sub(request.weights + activations);
        let kv = request.kv.unwrap_or_else(|| {
            let automatic = if request.dedicated {
                left
            } else {
                (left / KV_PARTS).min(KV_AUTO_MAX)
            };
            automatic.max(one_context)
        });
        let blocks = kv / block_bytes;
        let plan = Self {
            available: request.available,
            weights: request.weights,
            kv: blocks * block_bytes,
            activations,
            blocks: blocks as usize,
            block_size: request.block_size,
        };
        if kv < one_context {
            return Err(Error::DoesNotFit(format!(
                "{plan}\nkeys and values of one sequence of {} tokens need {} MiB: \
                 raise --kv-cache-mib or lower --context-length",
                request.context_length,
                one_context.div_ceil(MIB)
            )));
        }
        if plan.total() > plan.available {
            return Err(Error::DoesNotFit(format!(
                "{plan}\nthe plan exceeds the memory available by {} MiB: \
                 choose a smaller model, or lower --context-length, --kv-cache-mib or --step-tokens-max",
                (plan.total() - plan.available).div_ceil(MIB)
            )));
        }
        Ok(plan)
    }

    /// As [`MemoryPlan::new`], with the context length that it is for. Where the context may be `shorter`, it is halved until the
    /// plan fits, down to [`CONTEXT_AUTO_MIN`] tokens.
    ///
    /// # Errors
    /// As [`MemoryPlan::new`].
    pub fn within(config: &ModelConfig, mut request: PlanRequest, shorter: bool) -> Result<(Self, usize)> {
        loop {
            match Self::new(config, &request) {
                Ok(plan) => return Ok((plan, request.context_length)),
                Err(_) if shorter && request.context_length > CONTEXT_AUTO_MIN => {
                    request.context_length = (request.context_length / 2).max(CONTEXT_AUTO_MIN);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// All parts together, bytes.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.activations
    }

    /// Tokens whose keys and values fit at once.
    pub fn kv_tokens(&self) -> usize {
        self.blocks * self.block_size
    }
}

/// Bytes that one block takes on all ranks: where these have heads in common, more than the model's.
fn block_bytes(config: &ModelConfig, request: &PlanRequest) -> Result<u64> {
    let mut sum = 0;
    for shard in Shard::all(request.ranks)? {
        let part = config.part(shard)?;
        sum += KvCache::block_bytes(&part, request.block_size, request.kv_dtype) as u64;
    }
    Ok(sum)
}

/// Intermediate results that live at the same time in the widest part of a block, plus the logits; a card that samples keeps
/// weights beside the logits of rows whose likelihoods are told, in a buffer of at most the power of two above.
fn activations(config: &ModelConfig, request: &PlanRequest) -> u64 {
    let attention = 3 * config.query_size() + 4 * config.kv_size();
    let mlp = 2 * config.intermediate_size;
    let per_token = 4 * config.hidden_size + attention.max(mlp);
    let logits = request.logit_rows * config.vocab_size * size_of::<f32>();
    let weights = if request.dedicated {
        logits.next_power_of_two()
    } else {
        0
    };
    (request.step_tokens * per_token * size_of::<f32>() + logits + weights) as u64
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "memory plan: weights {} MiB + keys and values {} MiB ({} blocks of {} tokens) + activations {} MiB \
             = {} MiB of {} MiB",
            self.weights.div_ceil(MIB),
            self.kv.div_ceil(MIB),
            self.blocks,
            self.block_size,
            self.activations.div_ceil(MIB),
            self.total().div_ceil(MIB),
            self.available / MIB
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    fn request() -> PlanRequest {
        PlanRequest {
            available: 4 << 30,
            weights: 100 << 20,
            context_length: 2048,
            block_size: 16,
            step_tokens: 512,
            logit_rows: 64,
            measured_activations: None,
            kv_dtype: KvDtype::Bf16,
            kv: None,
            dedicated: false,
            ranks: 1,
        }
    }

    #[test]
    fn the_parts_add_up_and_fit() {
        let plan = MemoryPlan::new(&tiny(), &request()).unwrap();
        assert!(plan.total() <= plan.available);
        assert_eq!(
            plan.kv,
            (plan.blocks * KvCache::block_bytes(&tiny(), 16, KvDtype::Bf16)) as u64
        );
        assert!(plan.kv_tokens() >= 2048);
    }

    #[test]
    fn a_card_has_room_for_weights_beside_the_logits() {
        let own = PlanRequest {
            dedicated: true,
            ..request()
        };
        let [card, host] = [own, request()].map(|request| MemoryPlan::new(&tiny(), &request).unwrap());
        let (more, logits) = (
            card.activations - host.activations,
            request().logit_rows * tiny().vocab_size * 4,
        );
        assert!(more.is_power_of_two() && more >= logits as u64);
        assert!(card.total() <= card.available);
    }

    #[test]
    fn what_was_measured_counts_where_it_is_more() {
        let own = PlanRequest {
            dedicated: true,
            ..request()
        };
        let estimated = MemoryPlan::new(&tiny(), &own).unwrap();
        let measured = |bytes| {
            let measured_activations = Some(bytes);
            let request = PlanRequest {
                measured_activations,
                ..own
            };
            MemoryPlan::new(&tiny(), &request).unwrap()
        };
        assert_eq!(measured(1), estimated);
        let more = measured(estimated.activations + (64 << 20));
        assert_eq!(more.activations, estimated.activations + (64 << 20));
        let (less, block) = (estimated.kv - more.kv, more.kv / more.blocks as u64);
        assert!(
            less.abs_diff(64 << 20) <= block,
            "{less} bytes less for keys and values"
        );
    }

    #[test]
    fn ranks_keep_the_heads_that_they_share_more_than_once() {
        let of = |ranks| {
            let request = PlanRequest { ranks, ..request() };
            let plan = MemoryPlan::new(&tiny(), &request).unwrap();
            (plan.kv / plan.blocks as u64, plan.activations)
        };
        let ((one, activations), (two, twice)) = (of(1), of(2));
        assert_eq!(
            (one, 2 * activations),
            (two, twice),
            "two heads of keys for two ranks"
        );
        assert_eq!(of(4).0, 2 * one, "and for four");
        let five = MemoryPlan::new(
            &tiny(),
            &PlanRequest {
                ranks: 5,
                ..request()
            },
        );
        assert!(five.unwrap_err().to_string().contains("num_attention_heads is 4"));
    }

    #[test]
    fn too_little_memory_is_refused_with_the_figures() {
        let error = MemoryPlan::new(
            &tiny(),
            &PlanRequest {
                available: 64 << 20,
                ..request()
            },
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("weights 100 MiB") && text.contains("of 64 MiB"),
            "{text}"
        );
    }

    #[test]
    fn keys_and_values_below_one_context_are_refused() {
        let error = MemoryPlan::new(
            &tiny(),
            &PlanRequest {
                kv: Some(1 << 10),
                ..request()
            },
        )
        .unwrap_err();
        assert!(
            error.to_string().contains("one sequence of 2048 tokens"),
            "{error}"
        );
    }
}
