//! Writers of model files, valid and broken, for tests.

pub(crate) mod gguf;
pub(crate) mod safetensors;
