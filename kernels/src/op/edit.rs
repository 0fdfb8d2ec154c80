//! Work on a tensor's numbers where they are.

use std::cell::Cell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, bail};

use super::{Activation, contiguous_mut};
use crate::cpu;

/// Calls `work` with the elements of a contiguous `f32` tensor on the CPU, which it may change: a copy of logits for each
/// step would cost as much as sampling from them.
pub fn edit<R>(tensor: &Tensor, work: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let op = Edit {
        work: Cell::new(Some(work)),
        result: Cell::new(None),
    };
    tensor.inplace_op1(&op)?;
    match op.result.into_inner() {
        Some(result) => Ok(result),
        None => bail!("edit: the tensor was not handed over"),
    }
}

struct Edit<W, R> {
    work: Cell<Option<W>>,
    result: Cell<Option<R>>,
}

impl<W: FnOnce(&mut [f32]) -> R, R> InplaceOp1 for Edit<W, R> {
    fn name(&self) -> &'static str {
        "edit"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(all) = storage else {
            bail!("edit: the tensor must be f32")
        };
        let elements = contiguous_mut("edit", all, layout)?;
        self.result.set(self.work.take().map(|work| work(elements)));
        Ok(())
    }
}

/// Applies an activation to each element of a contiguous `f32` tensor on the CPU, in place.
pub fn activate(tensor: &Tensor, activation: Activation) -> Result<()> {
    edit(tensor, |elements| cpu::best().activate(activation, elements))
}
