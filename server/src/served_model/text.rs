//! Tokenizer and chat template from the model's own files.

use anyhow::{Context as _, bail};
use rempart_models::weights::gguf::Metadata;
use rempart_models::{ModelFiles, TextSource};
use rempart_text::{ChatTemplate, GgufVocab, SpecialTokens, Tokenizer};
use serde_json::Value;

/// A tokenizer, and the chat template if the model has one.
pub(super) type Text = (Tokenizer, Option<ChatTemplate>);

/// Builds both from the model's files.
pub(super) fn build(files: &ModelFiles) -> anyhow::Result<Text> {
    let tokenizer = tokenizer(files)?;
    let vocab_size = files.config.vocab_size;
    if tokenizer.vocab_size() > vocab_size {
        bail!(
            "the tokenizer has {} tokens, the model's embedding {vocab_size} rows: these files do not belong together",
            tokenizer.vocab_size(),
        );
    }
    let template = chat_template(files, &tokenizer)?;
    Ok((tokenizer, template))
}

/// The tokenizer alone, for a model that does not chat.
pub(super) fn tokenizer(files: &ModelFiles) -> anyhow::Result<Tokenizer> {
    match &files.text {
        TextSource::Gguf => {
            Tokenizer::from_gguf(&vocab(metadata(files)?)?).context("the GGUF file's tokenizer")
        }
        TextSource::Files { tokenizer, .. } => Tokenizer::from_json(tokenizer).context("tokenizer.json"),
    }
}

fn chat_template(files: &ModelFiles, tokenizer: &Tokenizer) -> anyhow::Result<Option<ChatTemplate>> {
    let mut special = tokenizer.special_tokens();
    let source = match &files.text {
        TextSource::Gguf => metadata(files)?
            .find::<&str>("tokenizer.chat_template")?
            .map(str::to_owned),
        TextSource::Files {
            tokenizer_config,
            chat_template,
            ..
        } => {
            let config: Option<Value> = tokenizer_config
                .as_deref()
                .map(|bytes| serde_json::from_slice(bytes).context("tokenizer_config.json"))
                .transpose()?;
            let inside = config.as_ref().and_then(|config| {
                fill(&mut special, config);
                template_of(config)
            });
            chat_template.clone().or(inside)
        }
    };
    source
        .map(|source| ChatTemplate::new(&source, special).context("the model's chat template"))
        .transpose()
}

fn metadata(files: &ModelFiles) -> anyhow::Result<&Metadata> {
    files
        .checkpoint
        .metadata()
        .context("the GGUF file has no metadata")
}

fn vocab(metadata: &Metadata) -> anyhow::Result<GgufVocab> {
    let text = |key: &str| Ok::<_, anyhow::Error>(metadata.find::<&str>(key)?.map(str::to_owned));
    Ok(GgufVocab {
        model: metadata.get_str("tokenizer.ggml.model")?.to_owned(),
        pre: text("tokenizer.ggml.pre")?,
        tokens: metadata.get_strings("tokenizer.ggml.tokens")?,
        scores: metadata.find("tokenizer.ggml.scores")?,
        token_types: metadata.find("tokenizer.ggml.token_type")?,
        merges: metadata.find("tokenizer.ggml.merges")?,
        bos: metadata.find("tokenizer.ggml.bos_token_id")?,
        eos: metadata.find("tokenizer.ggml.eos_token_id")?,
        unknown: metadata.find("tokenizer.ggml.unknown_token_id")?,
        padding: metadata.find("tokenizer.ggml.padding_token_id")?,
        add_bos: metadata.find("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.find("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.find("tokenizer.ggml.add_space_prefix")?,
    })
}

/// `tokenizer_config.json` names special tokens by their text, or by an object with a `content`.
fn fill(special: &mut SpecialTokens, config: &Value) {
    let token = |name: &str| {
        let value = config.get(name)?;
        value
            .as_str()
            .or_else(|| value.get("content")?.as_str())
            .map(str::to_owned)
    };
    special.bos = token("bos_token").or(special.bos.take());
    special.eos = token("eos_token").or(special.eos.take());
    special.unknown = token("unk_token").or(special.unknown.take());
    special.padding = token("pad_token").or(special.padding.take());
}

/// A template is a string, or a list of named ones of which "default" is for chat.
fn template_of(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(source) => Some(source.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| entry.get("template")?.as_str())
            .map(str::to_owned),
        _ => None,
    }
}
