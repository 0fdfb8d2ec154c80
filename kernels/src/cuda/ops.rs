//! The operations of [`crate::op`] on a card: their shapes are checked there.

use candle_core::{CudaStorage, Layout, Result, Shape, Tensor, bail};

use super::{
    args::Address,
    attention::{self, Arrays, Tensors, Work},
    block::{self, NormArgs, RopeArgs, RotatedArgs},
    device::{Gpu, Scratch, elements, rows, with_elements},
    packed::{self, Rounded},
    sample::{self, Inputs, Places},
    weight::CardWeight,
};
use crate::{
    Format, Heads, Weight,
    op::{
        Activation, AttentionOptions, AttentionRow, InputNorm, KvDtype, Projection, RopeOptions,
        SampledToken, SamplingRow,
    },
};

/// A tensor's numbers as an operation gets them.
pub(crate) type Input<'a> = (&'a CudaStorage, &'a Layout);

/// What a product does with its results.
pub(crate) struct Finish<'a> {
    /// `activation(first) * second` of two parts.
    pub(crate) gate: Option<Activation>,
    /// Added to the result.
    pub(crate) addends: Option<Input<'a>>,
}

fn on_card<'a>(op: &str, weight: &'a Weight) -> Result<&'a CardWeight> {
    match weight {
        Weight::Card(weight) => Ok(weight),
        _ => bail!("{op}: the input is on a card, the weight is not"),
    }
}

/// Products of `x` `[n, k]`, `n` rows of `width` results in all.
pub(crate) fn product(
    op: &str,
    (storage, layout): Input<'_>,
    norm: Option<InputNorm<'_>>,
    parts: &[Projection<'_>],
    finish: &Finish<'_>,
) -> Result<(CudaStorage, Shape)> {
    let gpu = &*Gpu::of(&storage.device)?;
    let (x, stride) = rows(op, gpu, storage, layout)?;
    let (n, k) = layout.shape().dims2()?;
    let weights = parts
        .iter()
        .map(|part| on_card(op, part.weight))
        .collect::<Result<Vec<_>>>()?;
    let tensors: Vec<_> = norm
        .iter()
        .map(|norm| norm.weight)
        .chain(parts.iter().filter_map(|part| part.bias))
        .collect();
    let width: usize = weights.iter().map(|weight| weight.rows()).sum();
    let rounded = room(gpu, &weights, (n, k))?;
    let addends = match finish.addends {
        Some((storage, layout)) => elements::<f32>(op, gpu, storage, layout)?,
        None => Address::default(),
    };
    let columns = if finish.gate.is_some() { width / 2 } else { width };
    let out = gpu.empty::<f32>(n * columns)?;
    // Gates and what they open, before they meet.
    let to = match finish.gate {
        Some(_) => gpu.scratch(Scratch::Wide, n * width * 4)?,
        None => gpu.address(&out),
    };
    with_elements::<f32, _>(op, gpu, &tensors, |addresses| {
        let mut addresses = addresses.iter().copied();
        let norm = norm.and_then(|norm| Some((addresses.next()?, norm.eps)));
        let factors: Vec<_> = parts
            .iter()
            .zip(&weights)
            .map(|(part, weight)| {
                let bias = part.bias.and_then(|_| addresses.next());
                weight.factor(bias.unwrap_or_default())
            })
            .collect();
        // SAFETY: the shapes were checked, and all memory outlives what is started here: freeing it, or
        // writing it again, waits in the same stream.
        unsafe {
            if rounded.codes != Address::default() {
                gpu.launch(&packed::round(x, stride, norm, &rounded))?;
            }
            for (format, numbers) in [(Format::Bf16, rounded.bf16), (Format::F16, rounded.f16)] {
                if numbers != Address::default() {
                    gpu.launch(&packed::round_16(format, (x, stride), norm, &rounded))?;
                }
            }
            for launch in packed::products(&rounded, &factors, addends, to) {
                gpu.launch(&launch)?;
            }
        }
        Ok(())
    })?;
    if let Some(activation) = finish.gate {
        // SAFETY: as above.
        unsafe { gpu.launch(&block::gate(to, gpu.address(&out), n, columns, activation))? };
    }
    Ok((gpu.storage(out), Shape::from((n, columns))))
}

/// Memory for activations `[n, k]` as these weights meet them.
fn room(gpu: &Gpu, weights: &[&CardWeight], (n, k): (usize, usize)) -> Result<Rounded> {
    let mut rounded = Rounded {
        n,
        k,
        ..Rounded::default()
    };
    let has = |format| weights.iter().any(|weight| weight.format() == format);
    if has(Format::Bf16) {
        rounded.bf16 = gpu.scratch(Scratch::Bf16, Rounded::bytes_16(n, k))?;
    }
    if has(Format::F16) {
        rounded.f16 = gpu.scratch(Scratch::F16, Rounded::bytes_16(n, k))?;
        rounded.f16_scales = gpu.scratch(Scratch::F16Scales, Rounded::padded(n) * 4)?;
    }
    if weights.iter().any(|weight| !packed::is_dense(weight.format())) {
        let [codes, scales, shares] = Rounded::bytes(n, k);
        rounded.codes = gpu.scratch(Scratch::Codes, codes)?;
        rounded.scales = gpu.scratch(Scratch::Scales, scales)?;
        rounded.shares = gpu.scratch(Scratch::Shares, shares)?;
    }
    Ok(rounded)
}

/// Rows of an embedding.
pub(crate) fn embed(weight: &CardWeight, ids: &[u32], scale: f32) -> Result<Tensor> {
    let (gpu, k) = (weight.gpu(), weight.cols());
    let (table, out) = (gpu.words(ids)?, gpu.empty::<f32>(ids.len() * k)?);
    let factor = weight.factor(Address::default());
    let launch = packed::embed((&factor, k), (table.address, ids.len()), scale, gpu.address(&out));
    // SAFETY: every id is a row; memory as in `product`.
    unsafe { gpu.launch(&launch)? };
    Ok(gpu.tensor(out, (ids.len(), k)))
}

/// `x` normalised by rows, onto `residual` where there is one.
pub(crate) fn rms_norm(
    op: &str,
    (storage, layout): Input<'_>,
    weight: Input<'_>,
    residual: Option<Input<'_>>,
    eps: f32,
) -> Result<(CudaStorage, Shape)> {
    let gpu = &*Gpu::of(&storage.device)?;
    let d = layout.dims().last().copied().unwrap_or(0);
    let len = layout.shape().elem_count();
    let out = gpu.empty::<f32>(len)?;
    let residual = match residual {
        Some((storage, layout)) => elements::<f32>(op, gpu, storage, layout)?,
        None => Address::default(),
    };
    let args = NormArgs {
        x: elements::<f32>(op, gpu, storage, layout)?,
        weight: elements::<f32>(op, gpu, weight.0, weight.1)?,
        residual,
        out: gpu.address(&out),
        d: super::args::count(d),
        eps,
    };
    // SAFETY: as in `product`.
    unsafe { gpu.launch(&block::rms_norm(len.checked_div(d).unwrap_or(0), args))? };
    Ok((gpu.storage(out), layout.shape().clone()))
}

/// Rotation of the heads of `x` `[n, heads * d]`.
pub(crate) fn rope(
    x: Input<'_>,
    options: &RopeOptions<'_>,
    positions: &[u32],
) -> Result<(CudaStorage, Shape)> {
    rotate(x, [options; 2], positions, None)
}

/// Keys and values of some tokens, and where they go; every slot exists.
#[derive(Clone, Copy)]
pub(crate) struct Written<'a> {
    pub(crate) cache: Cache<'a>,
    pub(crate) k: Input<'a>,
    pub(crate) v: Input<'a>,
    pub(crate) slots: &'a [u32],
}

/// What heads are multiplied by before and behind.
fn multipliers<'a>(options: &RopeOptions<'a>) -> [Option<&'a Tensor>; 2] {
    [options.norm.map(|norm| norm.weight), options.factors]
}

/// Rotation of the heads of queries `[n, heads * d]`, and of keys that are stored with the values, by options that differ in norms and
/// factors alone.
pub(crate) fn rotate(
    (storage, layout): Input<'_>,
    options: [&RopeOptions<'_>; 2],
    positions: &[u32],
    written: Option<Written<'_>>,
) -> Result<(CudaStorage, Shape)> {
    let (op, gpu) = ("rope", &*Gpu::of(&storage.device)?);
    let (x, stride) = rows(op, gpu, storage, layout)?;
    let (n, width) = layout.shape().dims2()?;
    let alike = options[0];
    let d = alike.inv_freq.elem_count() * 2;
    let optional = options.map(multipliers).concat();
    let tensors: Vec<_> = [alike.inv_freq]
        .into_iter()
        .chain(optional.into_iter().flatten())
        .collect();
    let (at, out) = (gpu.words(positions)?, gpu.empty::<f32>(n * width)?);
    with_elements::<f32, _>(op, gpu, &tensors, |addresses| {
        let mut addresses = addresses.iter().copied();
        let inv_freq = addresses.next().unwrap_or_default();
        let mut address_of =
            |tensor: Option<&Tensor>| tensor.and_then(|_| addresses.next()).unwrap_or_default();
        let [of_queries, of_keys] = options.map(|options| {
            let [weight, factors] = multipliers(options).map(&mut address_of);
            let eps = options.norm.map_or(0.0, |norm| norm.eps);
            RotatedArgs {
                weight,
                factors,
                eps,
                ..RotatedArgs::default()
            }
        });
        let args = RopeArgs {
            q: RotatedArgs {
                x,
                stride: stride as u64,
                heads: super::args::count(width / d),
                ..of_queries
            },
            k: of_keys,
            positions: at.address,
            inv_freq,
            out: gpu.address(&out),
            n: super::args::count(n),
            d: super::args::count(d),
            attention_factor: alike.attention_factor,
            interleaved: block::interleaved(alike.style),
            ..RopeArgs::default()
        };
        match written {
            Some(written) => launch_storing(op, gpu, written, args),
            // SAFETY: as in `product`.
            None => unsafe { gpu.launch(&block::rope(KvDtype::Bf16, args)) },
        }
    })?;
    Ok((gpu.storage(out), layout.shape().clone()))
}

/// A cache's tensors and shape.
#[derive(Clone, Copy)]
pub(crate) struct Cache<'a> {
    pub(crate) k: &'a Tensor,
    pub(crate) v: &'a Tensor,
    pub(crate) kv_heads: usize,
    pub(crate) d: usize,
    pub(crate) block_size: usize,
    pub(crate) dtype: KvDtype,
}

impl Cache<'_> {
    /// Does something with where keys and values are.
    fn with_addresses(
        self,
        op: &str,
        gpu: &Gpu,
        work: impl FnOnce([Address; 2]) -> Result<()>,
    ) -> Result<()> {
        let (tensors, work) = ([self.k, self.v], |at: &[Address]| work([at[0], at[1]]));
        match self.dtype {
            KvDtype::F32 => bail!("{op}: a card has no kernels for keys and values in f32"),
            KvDtype::Bf16 => with_elements::<half::bf16, _>(op, gpu, &tensors, work),
            KvDtype::Int8 => with_elements::<u8, _>(op, gpu, &tensors, work),
        }
    }
}

/// Stores keys and values as they are.
pub(crate) fn write_kv(written: Written<'_>) -> Result<()> {
    let gpu = &*Gpu::of(&written.k.0.device)?;
    let args = RopeArgs {
        n: super::args::count(written.slots.len()),
        d: super::args::count(written.cache.d),
        ..RopeArgs::default()
    };
    launch_storing("write_kv", gpu, written, args)
}

/// Launches the kernel with the keys and values that it stores.
fn launch_storing(op: &str, gpu: &Gpu, written: Written<'_>, args: RopeArgs) -> Result<()> {
    let Written { cache, k, v, slots } = written;
    let ((k, k_stride), (v, v_stride)) = (rows(op, gpu, k.0, k.1)?, rows(op, gpu, v.0, v.1)?);
    let at = gpu.words(slots)?;
    cache.with_addresses(op, gpu, |[keys, values]| {
        let args = RopeArgs {
            k: RotatedArgs {
                x: k,
                stride: k_stride as u64,
                heads: super::args::count(cache.kv_heads),
                ..args.k
            },
            v,
            v_stride: v_stride as u64,
            slots: at.address,
            keys,
            values,
            block_size: super::args::count(cache.block_size),
            ..args
        };
        // SAFETY: as in `product`; whatever reads the cache does so in the same stream, before or after.
        unsafe { gpu.launch(&block::rope(cache.dtype, args)) }
    })
}

/// Attention of `q` `[n, heads * d]`; rows and their blocks exist. Tokens that no row names come out as zeros.
pub(crate) fn paged_attention(
    (storage, layout): Input<'_>,
    cache: Cache<'_>,
    rows: &[AttentionRow],
    options: &AttentionOptions,
) -> Result<(CudaStorage, Shape)> {
    let op = "paged_attention";
    let gpu = &*Gpu::of(&storage.device)?;
    let (n, width) = layout.shape().dims2()?;
    let heads = Heads {
        heads: width / cache.d,
        kv_heads: cache.kv_heads,
        d: cache.d,
        block_size: cache.block_size,
    };
    let plan = gpu.plan(rows, &heads)?;
    let named: usize = rows.iter().map(|row| row.tokens.len()).sum();
    let out = if named == n {
        gpu.empty::<f32>(n * width)?
    } else {
        gpu.zeros(n * width)?
    };
    let parts = gpu.scratch(Scratch::Parts, plan.parts(&heads) * 4)?;
    cache.with_addresses(op, gpu, |[keys, values]| {
        let q = elements::<f32>(op, gpu, storage, layout)?;
        if !q.0.is_multiple_of(16) {
            bail!("{op}: the queries must start at a multiple of 16 bytes");
        }
        let tensors = Tensors {
            q,
            keys,
            values,
            out: gpu.address(&out),
            parts,
            dtype: cache.dtype,
        };
        let blocks = gpu.words(&plan.blocks)?;
        let run = |work: &Work, few: bool| {
            let (sequences, tiles) = (gpu.words(&work.sequences)?, gpu.words(&work.tiles)?);
            let arrays = Arrays {
                sequences: sequences.address,
                tiles: tiles.address,
                blocks: blocks.address,
            };
            for launch in attention::attention(work, few, arrays, &tensors, &heads, options) {
                // SAFETY: as in `product`.
                unsafe { gpu.launch(&launch)? };
            }
            Ok::<_, candle_core::Error>(())
        };
        run(&plan.few, true)?;
        run(&plan.many, false)
    })?;
    Ok((gpu.storage(out), layout.shape().clone()))
}

/// A token for each row of logits `[rows, vocab]`; `None` where the kernel has no room for what is asked. One copy there and
/// one back.
pub(crate) fn sample(
    (storage, layout): Input<'_>,
    rows: &[SamplingRow<'_>],
) -> Result<Option<Vec<SampledToken>>> {
    let gpu = &*Gpu::of(&storage.device)?;
    let (n, vocab) = layout.shape().dims2()?;
    if n != rows.len() {
        bail!(
            "sample: {n} rows of logits, and {} that say what to do",
            rows.len()
        );
    }
    let Some(inputs) = Inputs::new(rows, vocab) else {
        return Ok(None);
    };
    let (words, results) = (
        gpu.upload_words(&inputs.words)?,
        gpu.empty::<u32>(inputs.results())?,
    );
    let places = Places {
        logits: elements::<f32>("sample", gpu, storage, layout)?,
        inputs: gpu.address(&words),
        weights: gpu.scratch(Scratch::Weights, inputs.weights_bytes())?,
        results: gpu.address(&results),
    };
    // SAFETY: as in `product`; whatever reads the logits does so in the same stream, before.
    unsafe { gpu.launch(&sample::sample(&inputs, &places))? };
    let results = gpu.download_words(&results, inputs.results())?;
    Ok(Some(inputs.read(&results, rows)))
}
