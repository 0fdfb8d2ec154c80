//! Causal self-attention over the paged cache, with grouped key and value heads (GQA, arXiv:2305.13245).

use std::ops::Range;

use candle_core::Tensor;
use rempart_kernels::op;

use super::{Linear, RmsNorm, Rope, RowParallel, balance::Balance};
use crate::{ForwardInput, ModelConfig, Result, weights::Weights};

/// What differs between families and layers.
pub(crate) struct AttentionOptions {
    /// Rotary embedding of this layer.
    pub(crate) rope: Rope,
    /// Tokens seen, the token itself included; `None` sees all.
    pub(crate) window: Option<usize>,
    /// Normalise each query and key head, the norms' weights offset by this much.
    pub(crate) qk_norm_offset: Option<f32>,
}

/// Projections, rotary embedding, cache write, attention, output projection: of a rank's heads.
pub(crate) struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: RowParallel,
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    /// What rotated queries and keys are multiplied by.
    balance: Option<(Tensor, Tensor)>,
    rope: Rope,
    options: op::AttentionOptions,
}

impl Attention {
    /// Loads `q_proj`, `k_proj`, `v_proj`, `o_proj` and, where asked for, `q_norm` and `k_norm`.
    pub(crate) fn load(
        config: &ModelConfig,
        weights: &Weights<'_>,
        options: AttentionOptions,
    ) -> Result<Self> {
        let (hidden, query, kv, bias) = (
            config.hidden_size,
            config.query_size(),
            config.kv_size(),
            config.attention_bias,
        );
        let head_norm = |name: &str, offset: f32| {
            RmsNorm::load_with_offset(&weights.at(name), config.head_dim, config.norm_eps, offset)
        };
        let qk_norm = match options.qk_norm_offset {
            Some(offset) => Some((head_norm("q_norm", offset)?, head_norm("k_norm", offset)?)),
            None => None,
        };
        let o = weights.at("o_proj");
        let own = weights
            .shard()
            .heads_in_blocks(config, &o.to_string(), o.block_len())?;
        let dims = |heads: &Range<usize>| heads.start * config.head_dim..heads.end * config.head_dim;
        let (own_query, own_kv) = (dims(&own.query), dims(&own.kv));
        let k = Linear::load(&weights.at("k_proj"), [kv, hidden], own_kv.clone(), bias)?;
        // A norm takes a bias's magnitude from keys.
        let balance = match (k.bias(), &qk_norm) {
            (Some(bias), None) => {
                let group = own.query.len() / own.kv.len();
                let bias = bias.to_vec1()?;
                let Balance { q, k } = Balance::new(&bias, group, config.head_dim, &options.rope);
                let device = weights.device();
                Some((
                    Tensor::from_vec(q, own_query.len(), device)?,
                    Tensor::from_vec(k, own_kv.len(), device)?,
                ))
            }
            _ => None,
        };
        Ok(Self {
            q: Linear::load(&weights.at("q_proj"), [query, hidden], own_query.clone(), bias)?,
            k,
            v: Linear::load(&weights.at("v_proj"), [kv, hidden], own_kv, bias)?,
            o: RowParallel::load(&o, [hidden, query], own_query)?,
            qk_norm,
            balance,
            rope: options.rope,
            options: op::AttentionOptions {
                scale: config.attention_scale,
                window: options.window,
                softcap: None,
            },
        })
    }

    /// Of `x` `[n, hidden]`, normalised; onto `residual` `[n, hidden]` where there is one. Keys and values of the batch are
    /// written to `kv` first.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        norm: &RmsNorm,
        residual: Option<&Tensor>,
        input: &ForwardInput<'_>,
        kv: &op::KvCache,
    ) -> Result<Tensor> {
        let parts = [self.q.projection(), self.k.projection(), self.v.projection()];
        let qkv = op::projections(x, Some(norm.of_input()), &parts)?;
        let (q_size, kv_size) = (self.q.outputs(), self.k.outputs());
        let (q, k) = (qkv.narrow(1, 0, q_size)?, qkv.narrow(1, q_size, kv_size)?);
        let v = qkv.narrow(1, q_size + kv_size, kv_size)?;
        let (q_norm, k_norm) = self.qk_norm.as_ref().map(|(q, k)| (q, k)).unzip();
        let (q_factors, k_factors) = self.balance.as_ref().map(|(q, k)| (q, k)).unzip();
        let multiplied = [(q_norm, q_factors), (k_norm, k_factors)];
        let q = self.rope.forward_and_store([&q, &k, &v], multiplied, input, kv)?;
        let attended = op::paged_attention(&q, kv, input.rows, &self.options)?;
        self.o.forward_onto(&attended, residual)
    }
}
