//! A card: its memory, and kernels started on it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use candle_core::{
    CudaDevice, CudaStorage, Device, Error, Layout, Result, Storage, Tensor, WithDType, bail,
    cuda_backend::{
        CudaDType,
        cudarc::{
            driver::{
                CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig,
                PushKernelArg, sys,
            },
            nvrtc::Ptx,
        },
    },
};

use super::{
    args::{Address, Args, Launch},
    graph::Recording,
    staging::Staging,
};
use crate::MemoryUse;

/// The kernels' machine code.
const KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));
/// Arrays of a step that every layer asks for again: tokens, positions, slots, and what attention needs.
const UPLOADS_MAX: usize = 16;
/// Shared memory that a block gets without asking.
const SHARED_MAX: u32 = 48 << 10;

/// Opens card `ordinal`. All work of the device is in one stream of its own: each model has a device, so that what one loads,
/// frees or records never meets what another computes.
///
/// # Errors
/// There is no driver or no such card, or these kernels were compiled for another generation.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    let device = CudaDevice::new_with_stream(ordinal)?;
    // SAFETY: whatever uses a tensor does so in the device's one stream, in which it was made.
    unsafe { device.disable_event_tracking() };
    Gpu::of(&device)?.keep_memory()?;
    Ok(Device::Cuda(device))
}

/// Gives back to the first card what this process has freed of its memory.
///
/// # Errors
/// The driver's.
pub(crate) fn trim() -> Result<()> {
    Gpu::of(&CudaDevice::new_with_stream(0)?)?.trim()
}

/// Bytes of a card that are free.
///
/// # Errors
/// The driver's.
pub(crate) fn free_memory(device: &CudaDevice) -> Result<u64> {
    let (free, _) = device
        .cuda_stream()
        .context()
        .mem_get_info()
        .map_err(Error::wrap)?;
    Ok(free as u64)
}

/// As [`crate::forget_scratch`].
///
/// # Errors
/// The driver's.
pub(crate) fn forget_scratch(device: &CudaDevice) -> Result<()> {
    *lock(&Gpu::of(device)?.scratch) = [const { None }; SCRATCHES];
    Ok(())
}

/// As [`crate::take_memory_use`]: of the pool that all devices of the process have theirs from. What is recorded has another.
///
/// # Errors
/// The driver's.
pub(crate) fn take_memory_use(device: &CudaDevice) -> Result<MemoryUse> {
    use sys::CUmemPool_attribute_enum as Attribute;
    let gpu = Gpu::of(device)?;
    gpu.stream.synchronize().map_err(Error::wrap)?;
    let pool = gpu.pool()?;
    let read = |attribute| {
        let mut bytes = 0_u64;
        // SAFETY: a plain call of the driver, with a place for what it writes, a number of 64 bits.
        unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) }
            .result()
            .map(|()| bytes)
            .map_err(Error::wrap)
    };
    let found = MemoryUse {
        now: read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
        peak: read(Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
    };
    let mut zero = 0_u64;
    // SAFETY: likewise. Zero, the one value that is taken, stands for what is in use now.
    unsafe {
        sys::cuMemPoolSetAttribute(
            pool,
            Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
            (&raw mut zero).cast(),
        )
    }
    .result()
    .map_err(Error::wrap)?;
    Ok(found)
}

/// A card with the kernels loaded.
#[derive(Debug)]
pub(crate) struct Gpu {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    /// Kernels by name, and the shared memory that each may use.
    functions: Mutex<HashMap<String, (CudaFunction, u32)>>,
    uploads: Mutex<VecDeque<Upload>>,
    scratch: Mutex<[Option<Memory>; SCRATCHES]>,
    pub(super) staging: Mutex<Staging>,
    /// The step that is being recorded.
    pub(super) recording: Mutex<Option<Recording>>,
}

/// Numbers, and the same on the card.
type Upload = (Vec<u32>, Arc<CudaSlice<u32>>);

/// Bytes of a card.
pub(crate) type Memory = Arc<CudaSlice<u8>>;

/// Numbers of 32 bits in a card's memory, which stay while this is held or, in a recorded step, while that is.
pub(crate) struct Words {
    pub(crate) address: Address,
    _memory: Option<Arc<CudaSlice<u32>>>,
}

/// What an operation needs for itself alone. Work on a card is in one stream: the next one may write where the last one is
/// still to read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scratch {
    Codes,
    Scales,
    Shares,
    Bf16,
    F16,
    F16Scales,
    Wide,
    Parts,
    Weights,
}

const SCRATCHES: usize = 9;

/// How much is asked for where so much is needed: at least a quarter more than `before`, so that few steps ask again, and few
/// recorded ones keep what was before.
fn scratch_bytes(needed: usize, before: usize) -> usize {
    const LARGE: usize = 64 << 20;
    if needed > LARGE {
        needed.max(before + before / 4).next_multiple_of(LARGE)
    } else {
        needed.next_power_of_two()
    }
}

/// Devices that have the kernels, as long as weights or recorded steps are on them.
static LOADED: Mutex<Vec<Weak<Gpu>>> = Mutex::new(Vec::new());

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// The card of a Candle device.
    pub(crate) fn of(device: &CudaDevice) -> Result<Arc<Self>> {
        let mut loaded = lock(&LOADED);
        loaded.retain(|gpu| gpu.strong_count() > 0);
        let mut known = loaded.iter().filter_map(Weak::upgrade);
        if let Some(gpu) = known.find(|gpu| gpu.device.id() == device.id()) {
            return Ok(gpu);
        }
        let stream = device.cuda_stream();
        let module = stream
            .context()
            .load_module(Ptx::from_binary(KERNELS.to_vec()))
            .map_err(Error::wrap)?;
        let gpu = Arc::new(Self {
            device: device.clone(),
            stream,
            module,
            functions: Mutex::default(),
            uploads: Mutex::default(),
            scratch: Mutex::default(),
            staging: Mutex::default(),
            recording: Mutex::default(),
        });
        loaded.push(Arc::downgrade(&gpu));
        Ok(gpu)
    }

    /// Memory that is freed stays with the process: every step asks for what the last one gave back.
    fn keep_memory(&self) -> Result<()> {
        let mut threshold = u64::MAX;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: a plain call of the driver, with a place for what it reads.
        unsafe { sys::cuMemPoolSetAttribute(self.pool()?, attribute, (&raw mut threshold).cast()) }
            .result()
            .map_err(Error::wrap)
    }

    /// What the process holds of the card's memory.
    fn pool(&self) -> Result<sys::CUmemoryPool> {
        let mut pool = std::ptr::null_mut();
        // SAFETY: a plain call of the driver, with a place for its result.
        unsafe { sys::cuDeviceGetDefaultMemPool(&raw mut pool, self.ordinal()?) }
            .result()
            .map_err(Error::wrap)?;
        Ok(pool)
    }

    fn ordinal(&self) -> Result<i32> {
        i32::try_from(self.stream.context().ordinal()).map_err(Error::wrap)
    }

    /// Gives back to the card what nobody uses: else models that were unloaded leave no room for others.
    fn trim(&self) -> Result<()> {
        self.stream.context().synchronize().map_err(Error::wrap)?;
        // SAFETY: plain calls of the driver.
        unsafe {
            sys::cuMemPoolTrimTo(self.pool()?, 0)
                .result()
                .map_err(Error::wrap)?;
            sys::cuDeviceGraphMemTrim(self.ordinal()?)
                .result()
                .map_err(Error::wrap)
        }
    }

    /// Memory that nothing has written.
    pub(crate) fn empty<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>> {
        // SAFETY: whoever asks has it written by a kernel before it is read. At least one element: there is no memory of none.
        unsafe { self.stream.alloc(len.max(1)) }.map_err(Error::wrap)
    }

    pub(crate) fn zeros(&self, len: usize) -> Result<CudaSlice<f32>> {
        self.stream.alloc_zeros(len.max(1)).map_err(Error::wrap)
    }

    /// Weights, and what else is too large for the host's page-locked memory.
    pub(crate) fn upload<T: DeviceRepr + Clone>(&self, numbers: &[T]) -> Result<CudaSlice<T>> {
        if numbers.is_empty() {
            return self.empty(1);
        }
        self.stream.clone_htod(numbers).map_err(Error::wrap)
    }

    /// Numbers on the card; the same ones are copied there once while they are among the latest.
    pub(crate) fn words(&self, numbers: &[u32]) -> Result<Words> {
        if let Some(recording) = &*lock(&self.recording) {
            let address = recording.address_of(numbers)?;
            return Ok(Words {
                address,
                _memory: None,
            });
        }
        let mut uploads = lock(&self.uploads);
        let known = uploads.iter().find(|(known, _)| known == numbers);
        let memory = if let Some((_, memory)) = known {
            memory.clone()
        } else {
            let memory = Arc::new(self.upload_words(numbers)?);
            uploads.truncate(UPLOADS_MAX - 1);
            uploads.push_front((numbers.to_vec(), memory.clone()));
            memory
        };
        Ok(Words {
            address: self.address(&memory),
            _memory: Some(memory),
        })
    }

    /// Memory that nothing has written and that the next operation may write again.
    pub(crate) fn scratch(&self, of: Scratch, bytes: usize) -> Result<Address> {
        let memory = &mut lock(&self.scratch)[of as usize];
        let mut recording = lock(&self.recording);
        if memory.as_ref().is_none_or(|memory| memory.len() < bytes) {
            if recording.is_some() {
                bail!("a recorded step asks for more memory than it did before");
            }
            let before = memory.as_ref().map_or(0, |memory| memory.len());
            *memory = Some(Arc::new(self.empty(scratch_bytes(bytes, before))?));
        }
        let memory = memory.clone().expect("made above. This is a bug.");
        let address = self.address(&memory);
        if let Some(recording) = &mut *recording {
            // Should a larger step take its place, the recorded one goes on with this.
            recording.keep.push(memory);
        }
        Ok(address)
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(crate) fn address<T>(&self, memory: &CudaSlice<T>) -> Address {
        Address(memory.device_ptr(&self.stream).0)
    }

    /// Starts a kernel, after all that was started before.
    ///
    /// # Safety
    /// The kernel reads and writes where its arguments point.
    pub(crate) unsafe fn launch<A: Args>(&self, launch: &Launch<A>) -> Result<()> {
        let [x, y, z] = launch.grid;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let function = self.function(&launch.kernel, launch.shared)?;
        let config = LaunchConfig {
            grid_dim: (x, y, z),
            block_dim: (launch.block, 1, 1),
            shared_mem_bytes: launch.shared,
        };
        let args = Plain(launch.args);
        let mut builder = self.stream.launch_builder(&function);
        builder.arg(&args);
        // SAFETY: the caller's promise.
        unsafe { builder.launch(config) }.map_err(Error::wrap)?;
        Ok(())
    }

    /// A kernel with leave to use so much shared memory: what it asks for depends on the matrix.
    fn function(&self, name: &str, shared: u32) -> Result<CudaFunction> {
        let mut functions = lock(&self.functions);
        if !functions.contains_key(name) {
            let function = self.module.load_function(name).map_err(Error::wrap)?;
            functions.insert(name.to_owned(), (function, SHARED_MAX));
        }
        let (function, granted) = functions.get_mut(name).expect("inserted above. This is a bug.");
        if shared > *granted {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function
                .set_attribute(attribute, shared.cast_signed())
                .map_err(Error::wrap)?;
            *granted = shared;
        }
        Ok(function.clone())
    }

    /// A result of an operation.
    pub(crate) fn storage<T: CudaDType + WithDType>(&self, memory: CudaSlice<T>) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(memory, self.device.clone())
    }

    pub(crate) fn tensor(&self, memory: CudaSlice<f32>, shape: (usize, usize)) -> Tensor {
        let none = candle_core::op::BackpropOp::none();
        Tensor::from_storage(Storage::Cuda(self.storage(memory)), shape, none, false)
    }
}

/// Arguments, as a kernel takes them.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Plain<A>(A);

// SAFETY: `Args` are laid out as the kernel's.
unsafe impl<A: Args> DeviceRepr for Plain<A> {}

/// Where a contiguous tensor's numbers are.
pub(crate) fn elements<T: CudaDType>(
    op: &str,
    gpu: &Gpu,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<Address> {
    let Some((start, _)) = layout.contiguous_offsets() else {
        bail!("{op}: the tensor {:?} must be contiguous", layout.shape())
    };
    let memory = storage.as_cuda_slice::<T>()?;
    Ok(offset::<T>(gpu.address(memory), start))
}

/// Where the rows of an `f32` tensor `[n, width]` are, and how many numbers they are apart.
pub(crate) fn rows(op: &str, gpu: &Gpu, storage: &CudaStorage, layout: &Layout) -> Result<(Address, usize)> {
    let (&[_, width], &[stride, step]) = (layout.dims(), layout.stride()) else {
        bail!("{op}: the tensor must be [n, width], it is {:?}", layout.shape())
    };
    if step != 1 && width > 1 {
        bail!(
            "{op}: the rows of the tensor {:?} must be contiguous",
            layout.shape()
        );
    }
    let memory = storage.as_cuda_slice::<f32>()?;
    Ok((offset::<f32>(gpu.address(memory), layout.start_offset()), stride))
}

fn offset<T>(Address(at): Address, elements: usize) -> Address {
    Address(at + (elements * size_of::<T>()) as u64)
}

/// Calls `work` with the addresses of contiguous tensors of one type on the card.
pub(crate) fn with_elements<T: CudaDType, R>(
    op: &str,
    gpu: &Gpu,
    tensors: &[&Tensor],
    work: impl FnOnce(&[Address]) -> Result<R>,
) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let addresses = guards
        .iter()
        .map(|(storage, layout)| match &**storage {
            Storage::Cuda(storage) => elements::<T>(op, gpu, storage, layout),
            _ => bail!("{op}: every tensor must be on the same device"),
        })
        .collect::<Result<Vec<_>>>()?;
    work(&addresses)
}
