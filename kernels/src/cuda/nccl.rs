//! What cards exchange among each other, by NVIDIA's library NCCL. It compiles; it has run on no machine yet.

use std::{
    ffi::c_char,
    fmt,
    sync::{Mutex, PoisonError},
};

use candle_core::{
    CpuStorage, CudaStorage, DType, Device, Error, InplaceOp1, InplaceOp2, Layout, Result, Tensor, bail,
    cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp},
};

/// Bytes of what the ranks of a group find each other by.
pub const CARD_GROUP_BYTES: usize = 128;

/// One card of a group, of which each rank has one.
pub struct CardGroup {
    /// None once the group has ended.
    comm: Mutex<Option<Exclusive>>,
    of: usize,
}

/// NCCL's handle on a group, behind a lock.
struct Exclusive(Comm);

// SAFETY: NCCL allows a handle to be used from any thread, though only from one at a time, which the lock around it sees to.
unsafe impl Send for Exclusive {}

impl fmt::Debug for CardGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CardGroup")
            .field("of", &self.of)
            .finish_non_exhaustive()
    }
}

impl CardGroup {
    /// A new group's name, which the first rank makes and tells the others.
    ///
    /// # Errors
    /// The library's.
    pub fn name() -> Result<[u8; CARD_GROUP_BYTES]> {
        let id = Id::new().map_err(refused)?;
        Ok(id.internal().map(c_char::cast_unsigned))
    }

    /// Joins a group as `rank` of `of` with the card `device`; returns once all have joined.
    ///
    /// # Errors
    /// The device is no card, or the library's.
    pub fn join(device: &Device, rank: usize, of: usize, name: [u8; CARD_GROUP_BYTES]) -> Result<Self> {
        let Device::Cuda(device) = device else {
            bail!("ranks exchange by NCCL what is on cards, and this is none")
        };
        let id = Id::uninit(name.map(u8::cast_signed));
        let comm = Comm::from_rank(device.cuda_stream(), rank, of, id).map_err(refused)?;
        Ok(Self {
            comm: Mutex::new(Some(Exclusive(comm))),
            of,
        })
    }

    /// Puts the sum of all ranks' `x`, f32 of one shape, in place of each.
    ///
    /// # Errors
    /// The group has ended, `x` is not contiguous f32 on the card, or the library's.
    pub fn all_reduce(&self, x: &Tensor) -> Result<()> {
        x.inplace_op1(&Reduce(self))
    }

    /// All ranks' `x`, f32 of one shape, one behind the other: `[of, …]`.
    ///
    /// # Errors
    /// As [`CardGroup::all_reduce`].
    pub fn all_gather(&self, x: &Tensor) -> Result<Tensor> {
        let shape = [&[self.of], x.dims()].concat();
        let all = Tensor::zeros(shape, DType::F32, x.device())?;
        all.inplace_op2(&x.contiguous()?, &Gather(self))?;
        Ok(all)
    }

    /// Ends the group on all ranks, whatever they still wait for.
    pub fn end(&self) {
        drop(self.comm.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn with<T>(&self, work: impl FnOnce(&Comm) -> Result<T>) -> Result<T> {
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
        match &*comm {
            Some(comm) => work(&comm.0),
            None => bail!("the group of cards has ended"),
        }
    }
}

/// The library's own words.
fn refused(error: impl fmt::Debug) -> Error {
    Error::msg(format!("NCCL: {error:?}"))
}

/// Whether all of a storage is a tensor of one piece: the library knows no layouts.
fn whole(op: &str, layout: &Layout, elements: usize) -> Result<()> {
    if layout.contiguous_offsets() != Some((0, elements)) {
        bail!("{op}: the tensor {:?} is a part of another", layout.shape());
    }
    Ok(())
}

struct Reduce<'a>(&'a CardGroup);

impl InplaceOp1 for Reduce<'_> {
    fn name(&self) -> &'static str {
        "all_reduce"
    }

    fn cpu_fwd(&self, _storage: &mut CpuStorage, _layout: &Layout) -> Result<()> {
        bail!("all_reduce: the tensor is not on a card")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let x = storage.as_cuda_slice_mut::<f32>()?;
        whole("all_reduce", layout, x.len())?;
        self.0.with(|comm| {
            let reduced = comm.all_reduce_in_place(x, &ReduceOp::Sum);
            reduced.map(drop).map_err(refused)
        })
    }
}

struct Gather<'a>(&'a CardGroup);

impl InplaceOp2 for Gather<'_> {
    fn name(&self) -> &'static str {
        "all_gather"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("all_gather: the tensor is not on a card")
    }

    fn cuda_fwd(&self, all: &mut CudaStorage, to: &Layout, own: &CudaStorage, from: &Layout) -> Result<()> {
        let (all, own) = (all.as_cuda_slice_mut::<f32>()?, own.as_cuda_slice::<f32>()?);
        whole("all_gather", to, all.len())?;
        whole("all_gather", from, own.len())?;
        self.0.with(|comm| {
            let gathered = comm.all_gather(own, all);
            gathered.map(drop).map_err(refused)
        })
    }
}
