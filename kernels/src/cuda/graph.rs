//! Steps of decoding, recorded once and started as a whole: a step of one token starts some hundreds of kernels, and starting
//! them one by one takes longer than they do.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
};

use candle_core::{Device, Error, Result, Storage, Tensor, bail, cuda_backend::cudarc::driver};
use driver::{
    CudaGraph, CudaSlice,
    sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
};

use super::{
    args::Address,
    attention::{Plan, SPLIT, part_rows},
    device::{Gpu, Memory, Scratch, lock},
};
use crate::{Heads, StepArrays, op::AttentionRow};

/// A step for as many sequences as it was recorded with, of contexts up to [`graph_splits`].
pub(crate) struct StepGraph {
    gpu: Arc<Gpu>,
    graph: CudaGraph,
    heads: Heads,
    layout: Layout,
    inputs: CudaSlice<u32>,
    logits: Tensor,
    /// What the recorded kernels write.
    _scratch: Vec<Memory>,
}

// SAFETY: the driver wants calls on a graph one after the other, from whatever thread: `run` has it to itself.
unsafe impl Send for StepGraph {}

/// Where arrays lie among the inputs, in words: one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    n: usize,
    sequences: usize,
    tiles: usize,
    /// Room for them.
    blocks: usize,
    splits: usize,
}

impl Layout {
    fn new(arrays: &StepArrays<'_>, plan: &Plan, heads: &Heads) -> Self {
        let (n, splits) = (arrays.tokens.len(), graph_splits(arrays.rows));
        Self {
            n,
            sequences: plan.few.sequences.len(),
            tiles: plan.few.tiles.len(),
            blocks: n * (splits * SPLIT).div_ceil(heads.block_size),
            splits,
        }
    }

    fn words(&self) -> usize {
        3 * self.n + self.sequences + self.tiles + self.blocks
    }
}

/// The inputs, in the order in which they lie.
fn parts<'a>(arrays: &StepArrays<'a>, plan: &'a Plan) -> [&'a [u32]; 6] {
    [
        arrays.tokens,
        arrays.positions,
        arrays.slots,
        &plan.few.sequences,
        &plan.few.tiles,
        &plan.blocks,
    ]
}

/// A step while it is recorded.
#[derive(Debug)]
pub(super) struct Recording {
    /// Arrays by where they are in the host's memory, and where they will be on the card.
    arrays: Vec<(Range<usize>, Address)>,
    plan: Arc<Plan>,
    heads: Heads,
    pub(super) keep: Vec<Memory>,
}

fn place(numbers: &[u32]) -> Range<usize> {
    let range = numbers.as_ptr_range();
    range.start as usize..range.end as usize
}

impl Recording {
    fn new(arrays: &StepArrays<'_>, plan: Plan, heads: Heads, inputs: Address) -> Self {
        let plan = Arc::new(plan);
        let mut at = inputs.0;
        let arrays = parts(arrays, &plan).map(|numbers| {
            let address = Address(at);
            at += size_of_val(numbers) as u64;
            (place(numbers), address)
        });
        Self {
            arrays: arrays.to_vec(),
            plan,
            heads,
            keep: Vec::new(),
        }
    }

    pub(super) fn address_of(&self, numbers: &[u32]) -> Result<Address> {
        let known = self.arrays.iter().find(|(known, _)| *known == place(numbers));
        match known {
            // Nothing is read of an array that is empty.
            _ if numbers.is_empty() => Ok(Address::default()),
            Some((_, address)) => Ok(*address),
            None => bail!("a recorded step reads numbers that are not its inputs"),
        }
    }
}

impl Gpu {
    /// How attention goes over a batch; while a step is recorded, over all that it will serve.
    pub(super) fn plan(&self, rows: &[AttentionRow], heads: &Heads) -> Result<Arc<Plan>> {
        match &*lock(&self.recording) {
            Some(recording) if recording.heads == *heads => Ok(recording.plan.clone()),
            Some(_) => bail!("a recorded step has heads of several shapes"),
            None => Ok(Arc::new(Plan::new(rows, heads))),
        }
    }

    /// What `work` starts while `recording` says where its inputs are, as a graph, and what that writes; nothing of it runs.
    fn capture(
        &self,
        recording: Recording,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<(CudaGraph, Vec<Memory>)> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream().begin_capture(mode).map_err(Error::wrap)?;
        *lock(&self.recording) = Some(recording);
        // The stream and the card must leave this state whatever happens.
        let done = catch_unwind(AssertUnwindSafe(work));
        let recording = lock(&self.recording).take();
        let graph = self.stream().end_capture(CUgraphInstantiate_flags(0));
        done.unwrap_or_else(|panic| resume_unwind(panic))?;
        match graph.map_err(Error::wrap)? {
            Some(graph) => Ok((
                graph,
                recording.map(|recording| recording.keep).unwrap_or_default(),
            )),
            None => bail!("a recorded step has started nothing"),
        }
    }
}

/// Splits of a context that a graph has room for: a power of two, so that few graphs serve all lengths.
pub(crate) fn graph_splits(rows: &[AttentionRow]) -> usize {
    let longest = rows.iter().map(|row| row.context_len).max().unwrap_or(0);
    longest.div_ceil(SPLIT).next_power_of_two()
}

impl StepGraph {
    /// Records `step`, which computes logits `[n, vocab]` of `arrays`. The same step must have run before on the same device,
    /// so that the kernels are loaded and all memory for passing use is there.
    ///
    /// # Errors
    /// The step does what cannot be recorded, or the driver's.
    pub(crate) fn record(
        device: &Device,
        heads: Heads,
        arrays: &StepArrays<'_>,
        vocab: usize,
        step: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Self> {
        let Device::Cuda(device) = device else {
            bail!("only what a card computes is recorded")
        };
        let gpu = Gpu::of(device)?;
        let mut plan = Plan::new(arrays.rows, &heads);
        if !plan.many.tiles.is_empty() {
            bail!("only steps of few tokens are recorded");
        }
        let layout = Layout::new(arrays, &plan, &heads);
        plan.few.splits = layout.splits;
        // What is recorded has room for longer contexts than those that ran before.
        plan.few.part_rows = layout.n * part_rows(&heads, 1, layout.splits);
        gpu.scratch(Scratch::Parts, plan.parts(&heads) * 4)?;
        let inputs = gpu.empty::<u32>(layout.words())?;
        let mut out = gpu.empty::<f32>(layout.n * vocab)?;
        let recording = Recording::new(arrays, plan, heads, gpu.address(&inputs));
        let (graph, scratch) = gpu.capture(recording, || {
            let logits = step()?;
            match &*logits.storage_and_layout().0 {
                Storage::Cuda(storage) if logits.dims() == [layout.n, vocab] => {
                    let logits = storage.as_cuda_slice::<f32>()?;
                    gpu.stream().memcpy_dtod(logits, &mut out).map_err(Error::wrap)
                }
                _ => bail!("a recorded step gives {:?}, not logits", logits.shape()),
            }
        })?;
        Ok(Self {
            graph,
            heads,
            layout,
            inputs,
            logits: gpu.tensor(out, (layout.n, vocab)),
            _scratch: scratch,
            gpu,
        })
    }

    /// Logits `[n, vocab]` of a step like the recorded one. They are the graph's own: the next run writes them again.
    ///
    /// # Errors
    /// The step has another shape, or the driver's.
    pub(crate) fn run(&mut self, arrays: &StepArrays<'_>) -> Result<Tensor> {
        let plan = Plan::new(arrays.rows, &self.heads);
        if Layout::new(arrays, &plan, &self.heads) != self.layout || !plan.many.tiles.is_empty() {
            bail!("a step of another shape than the recorded one");
        }
        self.gpu.stage(&parts(arrays, &plan), &self.inputs)?;
        self.graph.launch().map_err(Error::wrap)?;
        Ok(self.logits.clone())
    }
}
