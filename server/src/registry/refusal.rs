//! Why a model was not loaded, for the audit chain: a word, and nothing that files say.

use std::fmt;

use rempart_hub::{manifest, signature, store};

/// A model of the command line that was not loaded, and why; told as that.
#[derive(Debug)]
pub struct Refused {
    pub model: String,
    pub why: anyhow::Error,
}

impl Refused {
    /// An error about a model.
    pub fn of(model: &str) -> impl FnOnce(anyhow::Error) -> anyhow::Error + use<> {
        let model = model.to_owned();
        |why| anyhow::Error::new(Self { model, why })
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#}", self.why)
    }
}

impl std::error::Error for Refused {}

/// The kind of a reason not to load a model.
pub fn reason(error: &anyhow::Error) -> &'static str {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return reason(&refused.why);
    }
    let found = error.chain().find_map(|cause| {
        let signed = cause.downcast_ref().map(of_signature);
        let listed = || cause.downcast_ref().map(of_manifest);
        let stored = || cause.downcast_ref::<store::Error>().map(|_| "missing");
        let read = || cause.downcast_ref().map(of_files);
        signed.or_else(listed).or_else(stored).or_else(read)
    });
    found.unwrap_or("failed")
}

fn of_signature(error: &signature::Error) -> &'static str {
    use signature::Error;
    match error {
        Error::Unsigned { .. } | Error::FolderUnsigned { .. } => "unsigned",
        Error::Invalid { .. } | Error::Untrusted { .. } | Error::TooLarge { .. } | Error::Key { .. } => {
            "untrusted"
        }
        Error::Differs { .. } => "differs",
        Error::Changed { .. } => "changed",
        _ => "files",
    }
}

fn of_manifest(error: &manifest::Error) -> &'static str {
    use manifest::Error;
    match error {
        Error::Missing { .. } | Error::Extra { .. } | Error::Size { .. } | Error::Digest { .. } => "differs",
        Error::Invalid { .. } | Error::Version { .. } => "manifest",
        Error::Io { .. } | Error::Name { .. } => "files",
    }
}

fn of_files(error: &rempart_models::Error) -> &'static str {
    use rempart_models::Error;
    match error {
        Error::DoesNotFit(_) => "memory",
        Error::Weights(_)
        | Error::Config { .. }
        | Error::UnsupportedArchitecture(_)
        | Error::UnsupportedEncoder(_)
        | Error::Io { .. } => "files",
        Error::Input(_) | Error::Parallel(_) | Error::Tensor(_) | Error::Kernel(_) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn a_reason_is_found_beneath_what_is_said_of_it() {
        let path = || "secret/path".into();
        let unsigned = signature::Error::FolderUnsigned {
            folder: path(),
            inside: path(),
        };
        let told = Err::<(), _>(unsigned).context("only signed models").unwrap_err();
        assert_eq!(reason(&told), "unsigned");
        let told = Refused::of("m")(told);
        assert_eq!(reason(&told), "unsigned");
        assert!(format!("{told:#}").starts_with("only signed models: secret/path has no signature"));
        let missing = manifest::Error::Missing {
            dir: path(),
            file: "a".to_owned(),
        };
        assert_eq!(reason(&missing.into()), "differs");
        let full = rempart_models::Error::DoesNotFit("too much".to_owned());
        assert_eq!(reason(&full.into()), "memory");
        assert_eq!(reason(&anyhow!("unsigned")), "failed");
    }
}
