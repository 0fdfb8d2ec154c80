//! What a step reads and computes.

use rempart_kernels::{Format, Packed};

use crate::{KvDtype, ModelConfig, weights::Checkpoint};

/// Matrices of one shape and format that a step multiplies by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// How the weights are stored.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// How many of them there are.
    pub count: usize,
    /// Whether only the tokens that are sampled pass through: the output head.
    pub sampled: bool,
}

impl Product {
    /// Weights of all of them.
    pub fn weights(&self) -> f64 {
        self.rows as f64 * self.cols as f64 * self.count as f64
    }

    /// Bytes of all of them, as the layers hold them; saturates where no memory could.
    pub fn bytes(&self) -> usize {
        Packed::bytes_of(self.format, self.rows, self.cols).saturating_mul(self.count)
    }
}

/// One step: `sequences` that each compute `tokens` new tokens at the end of `context`, of which the last is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Rows of the batch.
    pub sequences: usize,
    /// New tokens of each: 1 where it decodes.
    pub tokens: usize,
    /// Tokens of each whose keys and values are read, the new ones included.
    pub context: usize,
    /// Whether a token is sampled of each: not before a prompt's last chunk.
    pub sampled: bool,
}

/// All that a model does for a token.
#[derive(Clone, Debug)]
pub struct Work {
    /// The matrices, by format and shape.
    pub products: Vec<Product>,
    /// How keys and values are held.
    pub kv_dtype: KvDtype,
    config: ModelConfig,
}

impl Work {
    /// Of a model's files: every matrix in its own format.
    pub fn of_checkpoint(config: &ModelConfig, checkpoint: &Checkpoint, kv_dtype: KvDtype) -> Self {
        let format = |name: &str| {
            let found = checkpoint.tensors().find(|(own, _)| *own == name);
            found.map(|(_, tensor)| tensor.format)
        };
        // A checkpoint without a head has its blocks at the root.
        let root = if checkpoint.contains("embed_tokens.weight") {
            ""
        } else {
            "model."
        };
        Self::new(config, kv_dtype, |name| {
            let name = if name == HEAD {
                name.to_owned()
            } else {
                format!("{root}{name}")
            };
            format(&name).unwrap_or(Format::F32)
        })
    }

    /// Of a shape, all of whose matrices are in one format.
    pub fn of_shape(config: &ModelConfig, format: Format, kv_dtype: KvDtype) -> Self {
        Self::new(config, kv_dtype, |_| format)
    }

    fn new(config: &ModelConfig, kv_dtype: KvDtype, format: impl Fn(&str) -> Format) -> Self {
        let mut work = Self {
            products: Vec::new(),
            kv_dtype,
            config: config.clone(),
        };
        for layer in 0..config.layers {
            for (name, rows, cols) in block(config) {
                work.add(
                    format(&format!("layers.{layer}.{name}.weight")),
                    rows,
                    cols,
                    false,
                );
            }
        }
        let head = if config.tied_head { EMBEDDING } else { HEAD };
        work.add(format(head), config.vocab_size, config.hidden_size, true);
        work
    }

    fn add(&mut self, format: Format, rows: usize, cols: usize, sampled: bool) {
        let one = Product {
            format,
            rows,
            cols,
            count: 1,
            sampled,
        };
        let same = |known: &&mut Product| Product { count: 1, ..**known } == one;
        match self.products.iter_mut().find(same) {
            Some(known) => known.count += 1,
            None => self.products.push(one),
        }
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Weights that a token meets, an embedding that is no head left out.
    pub fn weights(&self) -> f64 {
        self.products.iter().map(Product::weights).sum()
    }

    /// Bytes of weights that a step reads, each once however many rows it has.
    pub fn weight_bytes(&self, step: &Step) -> f64 {
        let read = |product: &&Product| step.sampled || !product.sampled;
        let bytes = |product: &Product| product.bytes() as f64;
        self.products.iter().filter(read).map(bytes).sum()
    }

    /// Bytes of keys and values that a step reads.
    pub fn kv_bytes(&self, step: &Step) -> f64 {
        self.kv_token_bytes() * self.seen(step) * step.sequences as f64
    }

    /// Multiplications with an addition each that a step makes: of weights, and of queries, keys and values.
    pub fn multiplications(&self, step: &Step) -> f64 {
        let of = |product: &Product| product.weights() * rows(product, step) as f64;
        self.products.iter().map(of).sum::<f64>() + self.attention(step)
    }

    /// Those of attention: each new token with each that it sees, once for the score and once for the value.
    pub fn attention(&self, step: &Step) -> f64 {
        let config = &self.config;
        let pairs: f64 = config.windows.iter().map(|&window| pairs(window, step)).sum();
        2.0 * pairs * step.sequences as f64 * config.query_size() as f64
    }

    /// Numbers between products that a token passes through: what is rotated, written, normalised, gated.
    pub(super) fn elements(&self) -> f64 {
        let config = &self.config;
        let layer = config.query_size()
            + 3 * config.kv_size()
            + 4 * config.hidden_size
            + 2 * config.intermediate_size;
        (layer * config.layers) as f64
    }

    /// Operations of a step, each of which is started once.
    pub(super) fn operations(&self) -> f64 {
        (OPERATIONS_OF_BLOCK * self.config.layers + OPERATIONS_AROUND) as f64
    }

    /// Bytes of one token's keys and values in one layer.
    fn kv_token_bytes(&self) -> f64 {
        let group = self.kv_dtype.group_bytes(self.config.head_dim);
        (2 * self.config.kv_heads * group) as f64 / rempart_kernels::op::KEY_GROUP as f64
    }

    /// Tokens whose keys and values a sequence reads, over all layers.
    fn seen(&self, step: &Step) -> f64 {
        let of = |window: &Option<usize>| {
            let all = step.context;
            window.map_or(all, |window| all.min(window + step.tokens - 1)) as f64
        };
        self.config.windows.iter().map(of).sum()
    }
}

/// Products, rotations, the cache's write and attention of a block: they are fused where they share an input.
const OPERATIONS_OF_BLOCK: usize = 8;
/// Embedding, final norm, head.
const OPERATIONS_AROUND: usize = 3;
const EMBEDDING: &str = "embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// The matrices of a block: name, outputs, inputs.
fn block(config: &ModelConfig) -> [(&'static str, usize, usize); 7] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (query, kv) = (config.query_size(), config.kv_size());
    [
        ("self_attn.q_proj", query, hidden),
        ("self_attn.k_proj", kv, hidden),
        ("self_attn.v_proj", kv, hidden),
        ("self_attn.o_proj", hidden, query),
        ("mlp.gate_proj", inner, hidden),
        ("mlp.up_proj", inner, hidden),
        ("mlp.down_proj", hidden, inner),
    ]
}

/// Rows that a product has in a step.
pub(super) fn rows(product: &Product, step: &Step) -> usize {
    match (product.sampled, step.sampled) {
        (false, _) => step.sequences * step.tokens,
        (true, true) => step.sequences,
        (true, false) => 0,
    }
}

/// Pairs of a new token and one that it sees, of one sequence in one layer.
fn pairs(window: Option<usize>, step: &Step) -> f64 {
    let seen = |position: usize| window.map_or(position, |window| position.min(window));
    let first = step.context - step.tokens;
    (first + 1..=step.context)
        .map(|position| seen(position) as f64)
        .sum()
}
