//! The weights of a layer, in the layout its kernel reads.

use candle_core::{Device, Result, bail};

use crate::{
    Activations, Format, Matrix, Packed, cpu,
    packed::{Pages, Resident},
};

/// A weight matrix `[rows, cols]`. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Floating-point numbers (F32, F16, BF16), as in the file.
    Dense(Matrix),
    /// Integer codes with scales, in panels.
    Packed(Packed),
    /// Either in a card's memory.
    #[cfg(feature = "cuda")]
    Card(crate::CardWeight),
}

impl Weight {
    /// Packs what has integer codes, on all threads; after that the file's bytes are no longer needed.
    pub fn new(matrix: Matrix, activations: Activations) -> Self {
        Self::read(matrix, activations, &Resident)
    }

    /// As [`Weight::new`], telling whoever holds the matrix's bytes which are read, and which are then needed no longer.
    pub fn read(matrix: Matrix, activations: Activations, pages: &dyn Pages) -> Self {
        if let Some(packed) = Packed::read(&matrix, activations, pages) {
            return Self::Packed(packed);
        }
        pages.ahead(matrix.bytes());
        Self::Dense(matrix)
    }

    /// The weights in the memory of `device`: themselves for the CPU.
    ///
    /// # Errors
    /// The device has no room, or no kernels for weights of this format.
    pub fn to_device(self, device: &Device) -> Result<Self> {
        match (self, device) {
            (weight, Device::Cpu) => Ok(weight),
            #[cfg(feature = "cuda")]
            (Self::Packed(packed), Device::Cuda(device)) => {
                Ok(Self::Card(crate::CardWeight::new(&packed, device)?))
            }
            #[cfg(feature = "cuda")]
            (Self::Dense(matrix), Device::Cuda(device)) => {
                Ok(Self::Card(crate::CardWeight::dense(&matrix, device)?))
            }
            (weight, device) => bail!(
                "this version has no kernels for weights in {} on {:?}: choose --device cpu",
                weight.format().name(),
                device.location()
            ),
        }
    }

    /// Whether it is in the processor's memory.
    pub fn on_cpu(&self) -> bool {
        matches!(self, Self::Dense(_) | Self::Packed(_))
    }

    /// The format of the file.
    pub fn format(&self) -> Format {
        match self {
            Self::Dense(matrix) => matrix.format(),
            Self::Packed(packed) => packed.format(),
            #[cfg(feature = "cuda")]
            Self::Card(weight) => weight.format(),
        }
    }

    /// How activations are rounded for it; `None` where it multiplies numbers, on a card those of its own 16 bits.
    pub fn activations(&self) -> Option<Activations> {
        match self {
            Self::Dense(_) => None,
            Self::Packed(packed) => Some(packed.activations()),
            #[cfg(feature = "cuda")]
            Self::Card(weight) => weight.activations(),
        }
    }

    /// Rows: outputs of a linear layer, entries of an embedding.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.rows(),
            Self::Packed(packed) => packed.rows(),
            #[cfg(feature = "cuda")]
            Self::Card(weight) => weight.rows(),
        }
    }

    /// Weights of a row.
    pub fn cols(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.cols(),
            Self::Packed(packed) => packed.cols(),
            #[cfg(feature = "cuda")]
            Self::Card(weight) => weight.cols(),
        }
    }

    /// One row as `f32`. Panics where there is none, or where `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Dense(matrix) => {
                assert!(out.len() == matrix.cols(), "a row has another length");
                cpu::best().dequantize(matrix.format(), matrix.rows_bytes(row..row + 1), out);
            }
            Self::Packed(packed) => packed.row(row, out),
            #[cfg(feature = "cuda")]
            Self::Card(_) => panic!("rows of a card's weights are read there, by `embed`"),
        }
    }
}

impl From<Matrix> for Weight {
    /// Leaves the weights as they are in the file, whatever their format.
    fn from(matrix: Matrix) -> Self {
        Self::Dense(matrix)
    }
}
