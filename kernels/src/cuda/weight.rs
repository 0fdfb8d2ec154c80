//! Weights in a card's memory.

use std::sync::Arc;

use candle_core::{CudaDevice, Result, bail, cuda_backend::cudarc::driver::CudaSlice};

use super::{args::Address, device::Gpu, packed::Factor};
use crate::{Activations, Format, Matrix, Packed};

/// A matrix on a card, in panels. Cloning shares it.
#[derive(Debug, Clone)]
pub struct CardWeight {
    format: Format,
    rows: usize,
    cols: usize,
    panel_bytes: usize,
    gpu: Arc<Gpu>,
    panels: Arc<CudaSlice<u8>>,
}

impl CardWeight {
    /// Copies a matrix's panels.
    ///
    /// # Errors
    /// The card has no room, or the weights ask for activations of more than 8 bits.
    pub(crate) fn new(packed: &Packed, device: &CudaDevice) -> Result<Self> {
        if packed.activations() != Activations::Int8 {
            bail!("on CUDA activations are rounded to 8 bits: choose --activations int8 or --device cpu");
        }
        let shape = (packed.format(), packed.rows(), packed.cols());
        Self::upload(shape, super::panels::arrange(packed), device)
    }

    /// Copies a matrix of numbers of 16 bits.
    ///
    /// # Errors
    /// The card has no room, or the numbers are others.
    pub(crate) fn dense(matrix: &Matrix, device: &CudaDevice) -> Result<Self> {
        let format = matrix.format();
        if !super::packed::is_dense(format) {
            bail!(
                "a card has no kernels for weights in {}: choose --device cpu",
                format.name()
            );
        }
        let shape = (format, matrix.rows(), matrix.cols());
        Self::upload(shape, super::panels::arrange_16(matrix), device)
    }

    fn upload(
        (format, rows, cols): (Format, usize, usize),
        (panels, panel_bytes): (Vec<u8>, usize),
        device: &CudaDevice,
    ) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let panels = gpu.upload(&panels)?;
        Ok(Self {
            format,
            rows,
            cols,
            panel_bytes,
            gpu,
            panels: Arc::new(panels),
        })
    }

    /// The format of the file.
    pub fn format(&self) -> Format {
        self.format
    }

    /// How activations are rounded for it; `None` where it multiplies numbers of 16 bits.
    pub(crate) fn activations(&self) -> Option<Activations> {
        (!super::packed::is_dense(self.format)).then_some(Activations::Int8)
    }

    /// Rows: outputs of a linear layer, entries of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Weights of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// With a bias `[rows]` at `bias`.
    pub(crate) fn factor(&self, bias: Address) -> Factor {
        Factor {
            format: self.format,
            rows: self.rows,
            panels: self.gpu.address(&self.panels),
            panel_bytes: self.panel_bytes,
            bias,
        }
    }
}
