//! A path into the tensors' names, which is how a model's layers find their weights.

use std::fmt::{self, Display};
use std::ops::Range;
use std::sync::Arc;

use candle_core::Device;
use rempart_kernels::{Activations, Format, Matrix, Weight};

use super::{Checkpoint, Error, Source, TensorEntry};
use crate::parallel::{Collective, Shard, Single};

/// A place in the tree of Hugging Face names, such as `model.layers.3.self_attn`.
///
/// Every tensor that is read is marked as taken, so that [`Checkpoint::refuse_leftovers`] can tell what no layer
/// wanted.
#[derive(Clone, Debug)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    path: String,
    activations: Option<Activations>,
    device: Device,
    progress: Progress<'a>,
    collective: Arc<dyn Collective>,
}

/// What of a weight a rank has.
#[derive(Clone, Debug)]
pub enum Part {
    /// Rows.
    Outputs(Range<usize>),
    /// Columns, in whole blocks.
    Inputs(Range<usize>),
}

/// Is told the bytes of weights done and to do.
#[derive(Clone, Copy)]
pub struct Progress<'a>(pub Option<&'a dyn Fn(u64, u64)>);

impl fmt::Debug for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.0.is_some()).finish()
    }
}

impl<'a> Weights<'a> {
    pub(super) fn root(checkpoint: &'a Checkpoint) -> Self {
        Self {
            checkpoint,
            path: String::new(),
            activations: Some(Activations::default()),
            device: Device::Cpu,
            progress: Progress(None),
            collective: Arc::new(Single),
        }
    }

    /// The place `part` below this one: a name, a number or several of them with dots.
    #[must_use]
    pub fn at(&self, part: impl Display) -> Self {
        Self {
            checkpoint: self.checkpoint,
            path: self.join(part),
            ..self.clone()
        }
    }

    /// The same place, for layers whose loading is watched.
    #[must_use]
    pub fn with_progress(&self, progress: Progress<'a>) -> Self {
        Self {
            progress,
            ..self.clone()
        }
    }

    /// The same place, for layers of which one rank has a part.
    #[must_use]
    pub fn with_collective(&self, collective: &Arc<dyn Collective>) -> Self {
        Self {
            collective: Arc::clone(collective),
            ..self.clone()
        }
    }

    /// What the layers' ranks exchange their results by.
    pub fn collective(&self) -> &Arc<dyn Collective> {
        &self.collective
    }

    /// Which part of the layers is this rank's.
    pub fn shard(&self) -> Shard {
        self.collective.shard()
    }

    /// The same place, for layers that compute on `device`.
    #[must_use]
    pub fn with_device(&self, device: &Device) -> Self {
        Self {
            device: device.clone(),
            ..self.clone()
        }
    }

    /// Where the layers compute.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The same place, for layers that round their activations so, or not at all, where weights are then not packed.
    #[must_use]
    pub fn with_activations(&self, activations: Option<Activations>) -> Self {
        Self {
            activations,
            ..self.clone()
        }
    }

    /// A part of the `.weight` here as the layers' kernels read it, in the processor's memory; see [`Weights::linear`]. Only
    /// the part is copied into memory.
    ///
    /// # Errors
    /// It is missing, is not `[outputs, inputs]`, or has no such rows or whole blocks of columns.
    pub fn weight(&self, [outputs, inputs]: [usize; 2], part: Part) -> Result<Weight, Error> {
        let whole = self.linear(outputs, inputs)?;
        let part = match part {
            Part::Outputs(rows) => whole.slice_rows(rows),
            Part::Inputs(columns) => whole.copy_columns(columns, self.checkpoint),
        };
        let part = part.map_err(|source| Error::Matrix {
            path: self.checkpoint.path().to_path_buf(),
            tensor: self.checkpoint.full_name(&self.join("weight")),
            source,
        })?;
        let weight = match self.activations {
            Some(activations) => Weight::read(part, activations, self.checkpoint),
            None => Weight::from(part),
        };
        if let Progress(Some(progress)) = self.progress {
            progress(self.checkpoint.taken_bytes(), self.checkpoint.total_bytes());
        }
        Ok(weight)
    }

    /// Elements of a block of the `.weight` here, along its rows; 1 where there is none.
    pub fn block_len(&self) -> usize {
        let format = self.checkpoint.format(&self.join("weight"));
        format.map_or(1, Format::block_len)
    }

    /// The `.weight` here as a matrix that maps `inputs` values to `outputs`, rows being outputs.
    ///
    /// # Errors
    /// It is missing, or is not `[outputs, inputs]`.
    pub fn linear(&self, outputs: usize, inputs: usize) -> Result<Matrix, Error> {
        let name = self.join("weight");
        let tensor = self.checkpoint.tensor(&name)?;
        self.matrix(&name, tensor, &[outputs, inputs])
    }

    /// The `.weight` here as `length` numbers, whatever the format.
    ///
    /// # Errors
    /// It is missing, or is not `[length]`.
    pub fn vector(&self, length: usize) -> Result<Vec<f32>, Error> {
        self.numbers_of("weight", length)
    }

    /// As [`Weights::vector`], or `None` where there is no `.weight`.
    ///
    /// # Errors
    /// It is not `[length]`.
    pub fn optional_vector(&self, length: usize) -> Result<Option<Vec<f32>>, Error> {
        self.optional(&self.join("weight"), length)
    }

    /// The `.bias` here as `length` numbers, or `None` where there is none.
    ///
    /// # Errors
    /// It is not `[length]`.
    pub fn bias(&self, length: usize) -> Result<Option<Vec<f32>>, Error> {
        self.optional(&self.join("bias"), length)
    }

    /// The tensor `name` here as `length` numbers, whatever the format.
    ///
    /// # Errors
    /// It is missing, or is not `[length]`.
    pub fn numbers_of(&self, name: &str, length: usize) -> Result<Vec<f32>, Error> {
        let name = self.join(name);
        let tensor = self.checkpoint.tensor(&name)?;
        self.numbers(&name, tensor, length)
    }

    /// The tensor `name` here as its file holds it, for shapes that no other method knows.
    ///
    /// # Errors
    /// It is missing.
    pub fn tensor(&self, name: &str) -> Result<&'a TensorEntry, Error> {
        self.checkpoint.tensor(&self.join(name))
    }

    /// Row-major shape of the tensor `name` here. Looking does not take.
    pub fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.checkpoint.shape(&self.join(name))
    }

    /// Whether the tensor `name`, such as `weight` or `q_proj.bias`, is here. Looking does not take.
    pub fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.join(name))
    }

    /// Which format the weights have.
    pub fn source(&self) -> Source {
        self.checkpoint.source()
    }

    /// The checkpoint that this is a place in.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    fn join(&self, part: impl Display) -> String {
        if self.path.is_empty() {
            part.to_string()
        } else {
            format!("{}.{part}", self.path)
        }
    }

    fn optional(&self, name: &str, length: usize) -> Result<Option<Vec<f32>>, Error> {
        self.checkpoint
            .find(name)
            .map(|tensor| self.numbers(name, tensor, length))
            .transpose()
    }

    fn numbers(&self, name: &str, tensor: &TensorEntry, length: usize) -> Result<Vec<f32>, Error> {
        Ok(self.matrix(name, tensor, &[length])?.dequantize())
    }

    /// A vector becomes a matrix of one row.
    fn matrix(&self, name: &str, tensor: &TensorEntry, expected: &[usize]) -> Result<Matrix, Error> {
        let path = || self.checkpoint.path().to_path_buf();
        if tensor.shape != expected {
            let tensor_name = self.checkpoint.full_name(name);
            let (expected, found) = (expected.to_vec(), tensor.shape.clone());
            return Err(Error::Shape {
                path: path(),
                tensor: tensor_name,
                expected,
                found,
            });
        }
        let (columns, leading) = expected
            .split_last()
            .map_or((1, expected), |(last, leading)| (*last, leading));
        let rows = leading.iter().product();
        Matrix::new(tensor.format, rows, columns, tensor.bytes.clone()).map_err(|source| Error::Matrix {
            path: path(),
            tensor: self.checkpoint.full_name(name),
            source,
        })
    }
}

/// Shows the path.
impl Display for Weights<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}
