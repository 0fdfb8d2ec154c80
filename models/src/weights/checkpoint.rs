//! One view over GGUF and safetensors, under Hugging Face tensor names.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rempart_kernels::{Format, Packed, Pages};

use super::error::shown;
use super::gguf::{self, Gguf, Metadata};
use super::mapping::Mapping;
use super::{Error, Refusal, TensorEntry, Weights, safetensors};

/// Names that an error about leftover tensors lists.
const LEFTOVERS_SHOWN_MAX: usize = 8;

/// Where the weights come from, for the two things that differ by format beyond names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Rows of llama's query and key projections are permuted for interleaved rotary embedding, and gemma's norm
    /// weights have their 1 added.
    Gguf,
    /// As the model was trained: rotary embedding by halves, gemma's norm weights without their 1.
    Safetensors,
}

/// An opened, validated model file or set of files.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    source: Source,
    metadata: Option<Metadata>,
    tensors: BTreeMap<String, Stored>,
    mappings: Vec<Mapping>,
}

#[derive(Debug)]
struct Stored {
    tensor: TensorEntry,
    /// The file's own name, where it is another one.
    alias: Option<String>,
    taken: AtomicBool,
}

impl Checkpoint {
    /// Opens a GGUF file and renames its tensors by `general.architecture`.
    ///
    /// Tensors without a Hugging Face name keep their own.
    ///
    /// # Errors
    /// The file cannot be read, breaks a rule of its format, is one of several parts, or is of an architecture whose
    /// names are unknown.
    pub fn open_gguf(path: &Path) -> Result<Self, Error> {
        Self::from_gguf(Gguf::open(path)?, path)
    }

    /// As [`Checkpoint::open_gguf`] for a file that is open already.
    ///
    /// # Errors
    /// The file is one of several parts, or is of an architecture whose names are unknown.
    pub fn from_gguf(gguf: Gguf, path: &Path) -> Result<Self, Error> {
        let (metadata, tensors, mapping) = gguf.into_parts();
        refuse_parts(&metadata, path)?;
        let architecture = metadata.get_str("general.architecture")?;
        if !gguf::ARCHITECTURES.contains(&architecture) {
            let rule = format!("known are {}", gguf::ARCHITECTURES.join(", "));
            return Err(Refusal::new("general.architecture", shown(architecture), rule).of(path));
        }
        let mut renamed = BTreeMap::new();
        for (own_name, tensor) in tensors {
            let (name, alias) = match gguf::hugging_face_name(architecture, &own_name) {
                Some(name) if name != own_name => (name, Some(own_name)),
                _ => (own_name, None),
            };
            insert(
                &mut renamed,
                name,
                Stored {
                    tensor,
                    alias,
                    taken: AtomicBool::new(false),
                },
            )
            .map_err(|refusal| refusal.of(path))?;
        }
        Ok(Self {
            path: path.to_path_buf(),
            source: Source::Gguf,
            metadata: Some(metadata),
            tensors: renamed,
            mappings: mapping.into_iter().collect(),
        })
    }

    /// Opens a directory with `model.safetensors`, or with `model.safetensors.index.json` and the files that it names;
    /// or a single safetensors file.
    ///
    /// # Errors
    /// A file cannot be read or breaks a rule of its format, or the index and the files disagree.
    pub fn open_safetensors(path: &Path) -> Result<Self, Error> {
        let files = safetensors::open(path)?;
        let mut tensors = BTreeMap::new();
        let mut mappings = Vec::new();
        for file in files {
            for (name, tensor) in file.tensors {
                insert(
                    &mut tensors,
                    name,
                    Stored {
                        tensor,
                        alias: None,
                        taken: AtomicBool::new(false),
                    },
                )
                .map_err(|refusal| refusal.of(path))?;
            }
            mappings.push(file.mapping);
        }
        Ok(Self {
            path: path.to_path_buf(),
            source: Source::Safetensors,
            metadata: None,
            tensors,
            mappings,
        })
    }

    /// A cursor at the root of the tensors' names.
    pub fn weights(&self) -> Weights<'_> {
        Weights::root(self)
    }

    /// Bytes that the tensors take in memory once their layers have packed them.
    pub fn loaded_bytes(&self) -> u64 {
        let bytes = |tensor: &TensorEntry| match tensor.shape[..] {
            [rows, cols] => Packed::bytes_of(tensor.format, rows, cols),
            _ => tensor.bytes.len(),
        };
        self.tensors().fold(0, |sum: u64, (_, tensor)| {
            sum.saturating_add(bytes(tensor) as u64)
        })
    }

    /// The file or directory that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which format the weights have.
    pub fn source(&self) -> Source {
        self.source
    }

    /// A GGUF file's metadata; `None` for safetensors, whose configuration is in files beside them.
    pub fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// Whether there is a tensor with this Hugging Face name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor of this Hugging Face name, which counts as taken from now on.
    ///
    /// # Errors
    /// There is none.
    pub fn tensor(&self, name: &str) -> Result<&TensorEntry, Error> {
        self.find(name).ok_or_else(|| Error::Missing {
            path: self.path.clone(),
            tensor: name.to_owned(),
        })
    }

    /// As [`Checkpoint::tensor`], or `None`.
    pub fn find(&self, name: &str) -> Option<&TensorEntry> {
        let stored = self.tensors.get(name)?;
        stored.taken.store(true, Ordering::Relaxed);
        Some(&stored.tensor)
    }

    /// Row-major shape of the tensor of this Hugging Face name. Looking does not take.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors
            .get(name)
            .map(|stored| stored.tensor.shape.as_slice())
    }

    /// How the tensor of this Hugging Face name is encoded. Looking does not take.
    pub fn format(&self, name: &str) -> Option<Format> {
        self.tensors.get(name).map(|stored| stored.tensor.format)
    }

    /// All tensors by Hugging Face name, in order of name. Looking does not take.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorEntry)> {
        self.tensors
            .iter()
            .map(|(name, stored)| (name.as_str(), &stored.tensor))
    }

    /// What tells its files from all others, in their order: of each the device, the number there, the bytes, and the time of change
    /// in nanoseconds. A process that opens the same path and finds the same has the same weights before it.
    pub fn identities(&self) -> Vec<[u64; 4]> {
        self.mappings.iter().map(Mapping::identity).collect()
    }

    /// Encoded bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(Stored::bytes).sum()
    }

    /// Encoded bytes of the tensors taken so far, for a progress bar.
    pub fn taken_bytes(&self) -> u64 {
        self.tensors
            .values()
            .filter(|stored| stored.is_taken())
            .map(Stored::bytes)
            .sum()
    }

    /// Encoded bytes by format.
    pub fn bytes_by_format(&self) -> Vec<(Format, u64)> {
        let mut totals: Vec<(Format, u64)> = Vec::new();
        for stored in self.tensors.values() {
            match totals
                .iter_mut()
                .find(|(format, _)| *format == stored.tensor.format)
            {
                Some((_, total)) => *total += stored.bytes(),
                None => totals.push((stored.tensor.format, stored.bytes())),
            }
        }
        totals
    }

    /// Names of the tensors that nobody has taken, in order.
    pub fn leftovers(&self) -> impl Iterator<Item = &str> {
        self.tensors
            .iter()
            .filter(|(_, stored)| !stored.is_taken())
            .map(|(name, _)| name.as_str())
    }

    /// Refuses a checkpoint with tensors that were not taken and that `ignorable` does not know either.
    ///
    /// # Errors
    /// There are such tensors: the checkpoint is another model than its configuration says.
    pub fn refuse_leftovers(&self, ignorable: impl Fn(&str) -> bool) -> Result<(), Error> {
        let left: Vec<&str> = self.leftovers().filter(|name| !ignorable(name)).collect();
        if left.is_empty() {
            return Ok(());
        }
        let names = left
            .iter()
            .take(LEFTOVERS_SHOWN_MAX)
            .map(|name| shown(name))
            .collect();
        Err(Error::Leftover {
            path: self.path.clone(),
            count: left.len(),
            names,
        })
    }

    /// Refuses when a file was changed since it was opened; call it after reading the weights.
    ///
    /// Weight files are memory-mapped: they must be replaced by renaming, never rewritten or shortened in place while
    /// a process serves them. Reading a page that a shortened file has lost ends the process (SIGBUS).
    ///
    /// # Errors
    /// A file's length or time of change is no longer what it was.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        self.mappings.iter().try_for_each(Mapping::check_unchanged)
    }

    /// The name with the file's own, where that is another: for messages.
    pub(super) fn full_name(&self, name: &str) -> String {
        match self.tensors.get(name).and_then(|stored| stored.alias.as_deref()) {
            Some(alias) => format!("{} ({})", shown(name), shown(alias)),
            None => shown(name),
        }
    }
}

/// Bytes of a map come with one call each time, and go once they are packed.
impl Pages for Checkpoint {
    fn ahead(&self, bytes: &[u8]) {
        self.mappings.iter().for_each(|mapping| mapping.read_ahead(bytes));
    }

    fn done(&self, bytes: &[u8]) {
        self.mappings.iter().for_each(|mapping| mapping.release(bytes));
    }
}

impl Stored {
    fn bytes(&self) -> u64 {
        self.tensor.bytes.len() as u64
    }

    fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed)
    }
}

fn insert(tensors: &mut BTreeMap<String, Stored>, name: String, stored: Stored) -> Result<(), Refusal> {
    match tensors.entry(name) {
        MapEntry::Vacant(entry) => {
            entry.insert(stored);
            Ok(())
        }
        MapEntry::Occupied(entry) => Err(Refusal::new(
            "tensor name",
            shown(entry.key()),
            "a tensor must be stored only once",
        )),
    }
}

fn refuse_parts(metadata: &Metadata, path: &Path) -> Result<(), Error> {
    match metadata.find::<u32>("split.count")? {
        Some(parts) if parts > 1 => {
            let rule =
                "a model in several GGUF files must be merged into one first (llama-gguf-split --merge)";
            Err(Refusal::new("split.count", parts, rule).of(path))
        }
        _ => Ok(()),
    }
}
