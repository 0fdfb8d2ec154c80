//! What sentence-transformers writes beside a model: `modules.json` and a folder for each module.

use std::path::{Component, Path};

use serde::Deserialize;
use serde_json::Value;

use super::pooling::{Pooling, Projection};
use crate::{Error, Result, layers::DenseLinear, load::read_optional, weights::Checkpoint};

/// Inputs and outputs of a module that is a dense layer: well above any published model's.
const FEATURES_MAX: usize = 1 << 16;

/// What stands behind an encoder.
pub(super) struct Modules {
    /// Mean where the files name none.
    pub(super) pooling: Pooling,
    pub(super) projection: Option<Projection>,
    /// Elements of a vector behind the projection.
    pub(super) dimensions: usize,
    pub(super) normalize: bool,
    /// Most tokens of a sequence, where the files say.
    pub(super) tokens_max: Option<usize>,
}

#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    class: String,
    #[serde(default)]
    path: String,
}

#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
}

fn yes() -> bool {
    true
}

fn parse<T: for<'a> Deserialize<'a>>(file: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| refusal(file, error.to_string()))
}

fn refusal(file: &Path, message: impl Into<String>) -> Error {
    Error::config(file.display().to_string(), message)
}

/// Whether `dir` has a `modules.json` that names a pooling module: hidden states are then for embeddings.
///
/// # Errors
/// When there is one that is no list of modules.
pub(super) fn pools(dir: &Path) -> Result<bool> {
    let file = dir.join("modules.json");
    let Some(bytes) = read_optional(&file)? else {
        return Ok(false);
    };
    let modules: Vec<Module> = parse(&file, &bytes)?;
    Ok(modules.iter().any(|module| module.kind() == "Pooling"))
}

impl Module {
    /// The name of its class, without that of the package.
    fn kind(&self) -> &str {
        self.class.rsplit('.').next().unwrap_or_default()
    }
}

impl Modules {
    /// Pooling alone, of a model with hidden states of `width`: vectors have length 1, as clients expect.
    pub(super) fn pooled_by(pooling: Pooling, width: usize) -> Self {
        Self {
            pooling,
            projection: None,
            dimensions: width,
            normalize: true,
            tokens_max: None,
        }
    }

    /// Reads the files in `dir` of a model with hidden states of `width`.
    ///
    /// # Errors
    /// When one of them is malformed, or names a module that is not known or in a place where it is not known.
    pub(super) fn read(dir: &Path, width: usize) -> Result<Self> {
        let mut all = Self::pooled_by(Pooling::Mean, width);
        let settings = dir.join("sentence_bert_config.json");
        if let Some(bytes) = read_optional(&settings)? {
            let settings: Value = parse(&settings, &bytes)?;
            let max = settings.get("max_seq_length").and_then(Value::as_u64);
            all.tokens_max = max.and_then(|max| usize::try_from(max).ok());
        }
        let file = dir.join("modules.json");
        let Some(bytes) = read_optional(&file)? else {
            // Nothing says that lengths mean anything.
            return Ok(all);
        };
        all.normalize = false;
        let modules: Vec<Module> = parse(&file, &bytes)?;
        // Each kind once, in this order.
        let mut place = 0;
        for module in &modules {
            let class = module.kind();
            let order = ["Transformer", "Pooling", "Dense", "Normalize"];
            let Some(next) = order.iter().position(|known| *known == class) else {
                let class: String = class.chars().take(64).collect();
                return Err(refusal(
                    &file,
                    format!("module '{class}' is not supported; known are {order:?}"),
                ));
            };
            if next < place {
                return Err(refusal(
                    &file,
                    format!("module {class} is not supported in its place"),
                ));
            }
            place = next + 1;
            match class {
                "Pooling" => all.pooling = pooling(&folder(dir, &file, &module.path)?, width)?,
                "Dense" => all.add_projection(&folder(dir, &file, &module.path)?)?,
                "Normalize" => all.normalize = true,
                _ => {}
            }
        }
        Ok(all)
    }

    fn add_projection(&mut self, dir: &Path) -> Result<()> {
        let file = dir.join("config.json");
        let bytes = read_optional(&file)?.ok_or_else(|| refusal(&file, "the file is missing"))?;
        let config: DenseConfig = parse(&file, &bytes)?;
        let sizes = [config.in_features, config.out_features];
        if config.in_features != self.dimensions || sizes.iter().any(|&size| size == 0 || size > FEATURES_MAX)
        {
            let message = format!(
                "{sizes:?} features behind {}; at most {FEATURES_MAX}",
                self.dimensions
            );
            return Err(refusal(&file, message));
        }
        let name = config
            .activation_function
            .as_deref()
            .unwrap_or("torch.nn.modules.activation.Tanh");
        let tanh = match name.rsplit('.').next() {
            Some("Tanh") => true,
            Some("Identity") => false,
            _ => return Err(refusal(&file, "activation_function must be Tanh or Identity")),
        };
        let checkpoint = Checkpoint::open_safetensors(dir)?;
        let place = checkpoint.weights().at("linear");
        let shape = (config.out_features, config.in_features);
        let layer = DenseLinear::load(&[place], shape, config.bias, rempart_kernels::Precision::F32)?;
        self.projection = Some(Projection { layer, tanh });
        self.dimensions = config.out_features;
        Ok(())
    }
}

/// A module's folder, which must lie in the model's own.
fn folder(dir: &Path, file: &Path, name: &str) -> Result<std::path::PathBuf> {
    let plain = Path::new(name)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !plain || name.len() > 255 {
        return Err(refusal(
            file,
            "a module's path must be a folder within the model's",
        ));
    }
    Ok(dir.join(name))
}

fn pooling(dir: &Path, width: usize) -> Result<Pooling> {
    let file = dir.join("config.json");
    let bytes = read_optional(&file)?.ok_or_else(|| refusal(&file, "the file is missing"))?;
    let config: Value = parse(&file, &bytes)?;
    let dimensions = ["embedding_dimension", "word_embedding_dimension"];
    let dimension = dimensions.iter().find_map(|name| config.get(name)?.as_u64());
    if dimension.is_some_and(|dimension| dimension != width as u64) {
        return Err(refusal(
            &file,
            format!("vectors of {dimension:?} elements; the model has {width}"),
        ));
    }
    // A name or a list of them, or a field for each in older files.
    let older = [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_lasttoken", "lasttoken"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ];
    let modes: Vec<&str> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        _ => {
            let is_set = |field: &str| config.get(field).and_then(Value::as_bool) == Some(true);
            older
                .iter()
                .filter(|(field, _)| is_set(field))
                .map(|(_, mode)| *mode)
                .collect()
        }
    };
    match modes[..] {
        ["cls"] => Ok(Pooling::Cls),
        ["mean"] => Ok(Pooling::Mean),
        ["max"] => Ok(Pooling::Max),
        ["lasttoken"] => Ok(Pooling::Last),
        _ => {
            let modes: String = modes.join(", ").chars().take(64).collect();
            let known = "it must be one of cls, mean, max and lasttoken";
            Err(refusal(
                &file,
                format!("pooling by '{modes}' is not supported; {known}"),
            ))
        }
    }
}
