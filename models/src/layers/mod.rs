//! The parts models are composed of. Each knows its own tensor names and nothing of file formats.

mod attention;
mod balance;
mod dense;
mod linear;
mod mlp;
mod norm;
mod pre_norm;
mod rope;

pub(crate) use attention::{Attention, AttentionOptions};
pub(crate) use dense::{DenseLinear, LayerNorm, find_root};
pub(crate) use linear::{Embedding, Linear, RowParallel};
pub(crate) use mlp::GatedMlp;
pub(crate) use norm::RmsNorm;
pub(crate) use pre_norm::PreNormBlock;
pub(crate) use rope::Rope;
