//! Which files of a repository make a model: one GGUF, or the safetensors set with its configuration and tokenizer.

use super::cache::RemoteFile;
use super::error::Error;
use crate::reference::{HubReference, check_file, has_extension};

/// What a safetensors model is read from beside its weights.
const COMPANIONS: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];
/// Formats that run code when they are read. They are never fetched.
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "pkl", "ckpt"];
/// Most names in an error message.
const NAMES_SHOWN_MAX: usize = 40;

/// Picks the files of the model that `reference` means, ordered by path.
pub(super) fn select(reference: &HubReference, listing: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, Error> {
    let repository = reference.repository();
    let mut files = match reference.file() {
        Some(file) => vec![named(reference, file, listing)?],
        None => implied(&repository, listing)?,
    };
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    for file in &files {
        let hidden = file.path.split('/').any(|component| component.starts_with('.'));
        if hidden || check_file(&file.path).is_err() {
            return Err(Error::UnsafeName {
                repository,
                name: shown(&file.path),
            });
        }
    }
    Ok(files)
}

fn named(reference: &HubReference, file: &str, listing: Vec<RemoteFile>) -> Result<RemoteFile, Error> {
    let repository = reference.repository();
    if !has_extension(file, "gguf") {
        let reason = format!("`{file}` is not a .gguf file; leave the file out to pull a safetensors model");
        return Err(Error::NoModel { repository, reason });
    }
    if is_split(file) {
        let reason =
            format!("`{file}` is one part of a split GGUF, which is not supported: choose a whole one");
        return Err(Error::NoModel { repository, reason });
    }
    let ggufs: Vec<String> = listing
        .iter()
        .filter(|f| is_gguf(&f.path))
        .map(|f| f.path.clone())
        .collect();
    listing
        .into_iter()
        .find(|f| f.path == file)
        .ok_or_else(|| Error::NoModel {
            repository,
            reason: match ggufs.as_slice() {
                [] => format!(
                    "there is no `{file}` and no other GGUF at revision {}",
                    reference.revision()
                ),
                _ => format!("there is no `{file}`; it has {}", names(&ggufs)),
            },
        })
}

fn implied(repository: &str, listing: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, Error> {
    let has = |path: &str| listing.iter().any(|file| file.path == path);
    let ggufs: Vec<String> = listing
        .iter()
        .filter(|f| is_gguf(&f.path))
        .map(|f| f.path.clone())
        .collect();
    if has("config.json") && listing.iter().any(|file| is_weights(&file.path)) {
        let whole = has("model.safetensors");
        let wanted = |path: &str| match path {
            "model.safetensors" => true,
            "model.safetensors.index.json" => !whole,
            path => COMPANIONS.contains(&path) || (!whole && is_weights(path)),
        };
        return Ok(listing.into_iter().filter(|file| wanted(&file.path)).collect());
    }
    match ggufs.as_slice() {
        [one] if !is_split(one) => {
            let one = one.clone();
            Ok(listing.into_iter().filter(|file| file.path == one).collect())
        }
        [] | [_] => Err(Error::NoModel {
            repository: repository.to_owned(),
            reason: why_not(&listing),
        }),
        several => Err(Error::SeveralGgufs {
            repository: repository.to_owned(),
            files: names(several),
        }),
    }
}

fn why_not(listing: &[RemoteFile]) -> String {
    let pickled = listing
        .iter()
        .find(|file| PICKLES.iter().any(|ending| has_extension(&file.path, ending)));
    match pickled {
        Some(file) => format!(
            "its weights are pickled (`{}`), which can run code when read and is refused: look for a safetensors or GGUF version",
            shown(&file.path)
        ),
        None => "it has neither a whole GGUF nor config.json with safetensors".to_owned(),
    }
}

/// Weights of the model at the repository's root: adapters, and Mistral's second copy (`consolidated`), are others.
fn is_weights(path: &str) -> bool {
    has_extension(path, "safetensors") && path.starts_with("model") && !path.contains('/')
}

/// A language model's GGUF; `mmproj` files are the vision tower of one.
fn is_gguf(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    has_extension(path, "gguf") && !name.starts_with("mmproj")
}

/// `name-00001-of-00003.gguf`.
fn is_split(path: &str) -> bool {
    let stem = path.strip_suffix(".gguf").unwrap_or(path);
    let mut parts = stem.rsplit('-');
    let number =
        |part: Option<&str>| part.is_some_and(|p| p.len() == 5 && p.bytes().all(|b| b.is_ascii_digit()));
    number(parts.next()) && parts.next() == Some("of") && number(parts.next())
}

fn names(paths: &[String]) -> String {
    let mut list = paths
        .iter()
        .take(NAMES_SHOWN_MAX)
        .map(|path| shown(path))
        .collect::<Vec<_>>()
        .join(", ");
    if paths.len() > NAMES_SHOWN_MAX {
        list = format!("{list} and {} more", paths.len() - NAMES_SHOWN_MAX);
    }
    list
}

fn shown(text: &str) -> String {
    text.chars().take(200).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::cache::Identity;

    fn listing(paths: &[&str]) -> Vec<RemoteFile> {
        paths
            .iter()
            .map(|p| RemoteFile {
                path: (*p).to_owned(),
                bytes: 1,
                identity: Identity::Unknown,
            })
            .collect()
    }

    fn picked(reference: &str, paths: &[&str]) -> Result<Vec<String>, Error> {
        let reference = HubReference::parse(reference).unwrap();
        Ok(select(&reference, listing(paths))?
            .into_iter()
            .map(|file| file.path)
            .collect())
    }

    #[test]
    fn a_safetensors_model_comes_with_what_it_is_read_from() {
        let files = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "model.safetensors",
            "pytorch_model.bin",
            "onnx/model.safetensors",
            "consolidated.safetensors",
            "adapter_model.safetensors",
            "chat_template.jinja",
        ];
        assert_eq!(
            picked("a/b", &files).unwrap(),
            [
                "chat_template.jinja",
                "config.json",
                "model.safetensors",
                "tokenizer.json"
            ]
        );
    }

    #[test]
    fn shards_come_with_their_index_unless_the_whole_is_there() {
        let mut files = vec![
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        assert_eq!(picked("a/b", &files).unwrap().len(), 4);
        files.push("model.safetensors");
        assert_eq!(
            picked("a/b", &files).unwrap(),
            ["config.json", "model.safetensors"]
        );
    }

    #[test]
    fn ggufs_are_named_or_alone() {
        let files = [
            "q4.gguf",
            "q8.gguf",
            "mmproj-f16.gguf",
            "sub/big-00001-of-00002.gguf",
        ];
        assert_eq!(picked("a/b:q8.gguf", &files).unwrap(), ["q8.gguf"]);
        let error = picked("a/b", &files).unwrap_err();
        assert!(
            matches!(&error, Error::SeveralGgufs { files, .. } if files.contains("q4.gguf, q8.gguf")),
            "{error}"
        );
        assert_eq!(
            picked("a/b", &["q4.gguf", "mmproj-f16.gguf", "config.json"]).unwrap(),
            ["q4.gguf"]
        );
        assert!(matches!(
            picked("a/b:sub/big-00001-of-00002.gguf", &files).unwrap_err(),
            Error::NoModel { .. }
        ));
        assert!(
            picked("a/b:q5.gguf", &files)
                .unwrap_err()
                .to_string()
                .contains("q4.gguf")
        );
        assert!(matches!(
            picked("a/b:model.bin", &["model.bin"]).unwrap_err(),
            Error::NoModel { .. }
        ));
    }

    #[test]
    fn pickles_are_refused_with_the_reason() {
        let message = picked("a/b", &["config.json", "pytorch_model.bin"])
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("pytorch_model.bin") && message.contains("safetensors"),
            "{message}"
        );
    }

    #[test]
    fn unsafe_names_are_refused_only_where_they_would_be_fetched() {
        assert!(matches!(
            picked("a/b", &["../../x.gguf"]).unwrap_err(),
            Error::UnsafeName { .. }
        ));
        assert!(matches!(
            picked("a/b", &["/etc/x.gguf"]).unwrap_err(),
            Error::UnsafeName { .. }
        ));
        assert!(matches!(
            picked("a/b", &["a\\..\\x.gguf"]).unwrap_err(),
            Error::UnsafeName { .. }
        ));
        assert!(matches!(
            picked("a/b", &[".git/x.gguf"]).unwrap_err(),
            Error::UnsafeName { .. }
        ));
        assert!(matches!(
            picked("a/b", &["config.json", "model\u{1b}[2J.safetensors"]).unwrap_err(),
            Error::UnsafeName { .. }
        ));
        assert_eq!(picked("a/b", &["../evil.sh", "q4.gguf"]).unwrap(), ["q4.gguf"]);
    }
}
