//! Products with packed weights, and embeddings.

use super::common::{Rng, matrix};
use super::machine::{Machine, assert_close};
use super::on_every_machine;
use super::round::{rounded, values};
use crate::cuda::Address;
use crate::cuda::packed::{Factor, Shape, embed, products, products_in, shape};
use crate::cuda::panels::arrange;
use crate::{Activations, Format, Matrix, Packed};

on_every_machine!(mixed, wide, rows_alone);

/// A module of tests of the kernels that are compiled for every packed format, named as those are before the format's name.
macro_rules! formats {
    ($($prefix:ident: $case:expr;)*) => {
        $(mod $prefix {
            use super::*;
            formats!(@each $prefix, $case, Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K);
        })*

        /// The names of all of them.
        pub(super) fn kernels() -> Vec<String> {
            [$($prefix::KERNELS),*].concat().into_iter().map(str::to_owned).collect()
        }
    };
    (@each $prefix:ident, $case:expr, $($format:ident)*) => {
        pub(super) const KERNELS: &[&str] = &[$(concat!(stringify!($prefix), "_", stringify!($format))),*];

        mod host {
            use super::*;
            $(#[test]
            fn $format() {
                let kernel = concat!(stringify!($prefix), "_", stringify!($format));
                super::super::super::machine::prove_on_host(kernel, |machine, seed| {
                    $case(machine, seed, Format::$format);
                });
            })*
        }

        #[cfg(feature = "cuda")]
        mod card {
            use super::*;
            $(#[test]
            fn $format() {
                super::super::super::machine::prove_on_card(|machine, seed| {
                    $case(machine, seed, Format::$format);
                });
            })*
        }
    };
}

formats! {
    product_few_1_1: |machine, seed, format| product(machine, seed, format, Shape::Few { tiles: 1, panels: 1 });
    product_few_2_2: |machine, seed, format| product(machine, seed, format, Shape::Few { tiles: 2, panels: 2 });
    product_few_4_2: |machine, seed, format| product(machine, seed, format, Shape::Few { tiles: 4, panels: 2 });
    product_many_4: |machine, seed, format| product(machine, seed, format, Shape::Many { tiles: 4 });
    product_many_8: |machine, seed, format| product(machine, seed, format, Shape::Many { tiles: 8 });
    embed: embedding;
}

fn format(rng: &mut Rng) -> Format {
    let packed: Vec<_> = Format::ALL
        .into_iter()
        .filter(|format| format.block_len() > 1)
        .collect();
    packed[rng.below(packed.len())]
}

/// A random matrix of some format, in panels, with at most `rows_max` rows of at most `k_max` weights.
fn random(rng: &mut Rng, format: Format, (rows_max, k_max): (usize, usize)) -> (Matrix, Packed) {
    let rows = 1 + rng.below(rows_max);
    let blocks = 1 + rng.below(k_max / format.block_len());
    let matrix = matrix(rng, format, rows, blocks * format.block_len(), 0);
    let packed = Packed::new(&matrix, Activations::Int8).unwrap();
    (matrix, packed)
}

/// The panels of a matrix in a machine's memory.
fn factor<M: Machine>(
    machine: &M,
    packed: &Packed,
    (panels, panel_bytes): &(M::Buffer, usize),
    bias: Option<&M::Buffer>,
) -> Factor {
    Factor {
        format: packed.format(),
        rows: packed.rows(),
        panels: machine.address(panels),
        panel_bytes: *panel_bytes,
        bias: bias.map_or(Address::default(), |bias| machine.address(bias)),
    }
}

fn upload<M: Machine>(machine: &M, packed: &Packed) -> (M::Buffer, usize) {
    let (panels, panel_bytes) = arrange(packed);
    (machine.upload(&panels), panel_bytes)
}

/// Rows of activations for a shape: fewer than a block takes, or whole blocks, or some more.
pub(super) fn rows_for(rng: &mut Rng, shape: Shape) -> usize {
    let block = match shape {
        Shape::Few { tiles, .. } => 8 * tiles,
        Shape::Many { tiles } => 16 * tiles,
    };
    match rng.below(8) {
        0 => block,
        1 => block + 1,
        2 => 1 + rng.below(2 * block),
        _ => 1 + rng.below(block),
    }
}

/// Matrices that meet the same activations, their biases, and what the products are added to.
struct Operands {
    parts: Vec<(Matrix, Packed)>,
    biases: Vec<Vec<f32>>,
    addends: Option<Vec<f32>>,
    k: usize,
    width: usize,
}

impl Operands {
    fn random(rng: &mut Rng, first: (Matrix, Packed), others: &[Format], n: usize) -> Self {
        let (k, mut parts) = (first.0.cols(), vec![first]);
        for &other in others.iter().filter(|other| k.is_multiple_of(other.block_len())) {
            let rows = 1 + rng.below(40);
            let matrix = matrix(rng, other, rows, k, 0);
            let packed = Packed::new(&matrix, Activations::Int8).unwrap();
            parts.push((matrix, packed));
        }
        let width = parts.iter().map(|(matrix, _)| matrix.rows()).sum();
        let has_biases = rng.below(3) == 0;
        let mut bias = |matrix: &Matrix| {
            if has_biases {
                rng.floats(matrix.rows())
            } else {
                Vec::new()
            }
        };
        let biases = parts.iter().map(|(matrix, _)| bias(matrix)).collect();
        Self {
            parts,
            biases,
            addends: (rng.below(2) == 0).then(|| rng.floats(n * width)),
            k,
            width,
        }
    }

    /// Sums in f64 for the rows of `x` `[n, k]`.
    fn expected(&self, x: &[f64]) -> Vec<f64> {
        let mut all: Vec<f64> = match &self.addends {
            Some(addends) => addends.iter().copied().map(f64::from).collect(),
            None => vec![0.0; x.len() / self.k * self.width],
        };
        let mut column = 0;
        for ((matrix, _), bias) in self.parts.iter().zip(&self.biases) {
            for (r, w) in matrix.dequantize().chunks(self.k).enumerate() {
                for (x, out) in x.chunks(self.k).zip(all.chunks_mut(self.width)) {
                    let sum: f64 = x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
                    out[column] += sum + f64::from(bias.get(r).copied().unwrap_or(0.0));
                }
                column += 1;
            }
        }
        all
    }
}

/// Products for `n` rows, in the shapes that `choose` gives, against sums in f64.
fn multiply<M: Machine>(
    machine: &M,
    rng: &mut Rng,
    n: usize,
    operands: &Operands,
    choose: impl Fn(usize, usize) -> Shape,
) {
    let (k, width) = (operands.k, operands.width);
    let x = rounded(machine, &rng.floats(n * k), (n, k, k), None);
    let panels: Vec<_> = operands
        .parts
        .iter()
        .map(|(_, packed)| upload(machine, packed))
        .collect();
    let biases: Vec<_> = operands
        .biases
        .iter()
        .map(|bias| (!bias.is_empty()).then(|| machine.upload(bias)))
        .collect();
    let parts = operands.parts.iter().zip(&panels).zip(&biases);
    let factors: Vec<_> = parts
        .map(|(((_, packed), panels), bias)| factor(machine, packed, panels, bias.as_ref()))
        .collect();
    let addends = operands.addends.as_ref().map(|addends| machine.upload(addends));
    let onto = addends
        .as_ref()
        .map_or(Address::default(), |addends| machine.address(addends));
    let [out] = machine.in_every_order(|| {
        let out = machine.poisoned(n * width * 4);
        for launch in products_in(&choose, &x.shape, &factors, (onto, machine.address(&out))) {
            machine.launch(&launch);
        }
        [out]
    });
    let expected = operands.expected(&values(machine, &x));
    let actual: Vec<f32> = machine.download(&out);
    assert_close(&actual, &expected, 1e-6, &format!("{n} rows of {k}"));
}

/// Products with up to four matrices of one format in one shape.
fn product<M: Machine>(machine: &M, seed: u64, of: Format, shape: Shape) {
    let rng = &mut Rng(seed);
    // A block of many has 128 rows of weights, and takes long for threads that take turns.
    let sizes = match shape {
        Shape::Few { .. } => (40, 640),
        Shape::Many { .. } if seed.is_multiple_of(16) => (150, 320),
        Shape::Many { .. } => (40, if seed.is_multiple_of(4) { 640 } else { 320 }),
    };
    let (n, first) = (rows_for(rng, shape), random(rng, of, sizes));
    let others = vec![of; rng.below(4)];
    let operands = Operands::random(rng, first, &others, n);
    multiply(machine, rng, n, &operands, |_, _| shape);
}

/// Products with matrices of several formats, in the shapes that are taken in earnest.
fn mixed<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let n = [1, 2, 7, 8, 9, 17, 31, 32, 33, 70, 140][rng.below(11)];
    let of = format(rng);
    let (first, others) = (random(rng, of, (40, 640)), [format(rng), of, format(rng)]);
    let count = rng.below(4);
    let operands = Operands::random(rng, first, &others[..count], n);
    multiply(machine, rng, n, &operands, shape);
}

/// A kernel that has been started for a narrow matrix takes a wide one, for which it needs more shared memory.
fn wide<M: Machine>(machine: &M, seed: u64) {
    // Three are enough: these are large for threads that take turns.
    if seed > 2 {
        return;
    }
    let rng = &mut Rng(seed);
    for k in [1024, 8192] {
        let matrix = matrix(rng, Format::Q8_0, 33, k, 0);
        let packed = Packed::new(&matrix, Activations::Int8).unwrap();
        let operand = rounded(machine, &rng.floats(20 * k), (20, k, k), None);
        let panels = upload(machine, &packed);
        let out = machine.poisoned(20 * 33 * 4);
        let factors = [factor(machine, &packed, &panels, None)];
        for launch in products(
            &operand.shape,
            &factors,
            Address::default(),
            machine.address(&out),
        ) {
            machine.launch(&launch);
        }
        let (x, w) = (values(machine, &operand), matrix.dequantize());
        let row = |x: &[f64], w: &[f32]| x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
        let expected: Vec<f64> = x
            .chunks(k)
            .flat_map(|x| w.chunks(k).map(move |w| row(x, w)))
            .collect();
        assert_close(
            &machine.download::<f32>(&out),
            &expected,
            2e-6,
            &format!("{k} wide"),
        );
    }
}

/// A row's results are the same bits alone and among others, whichever kernel computes it.
fn rows_alone<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let of = format(rng);
    let (_, packed) = random(rng, of, (40, 640));
    let (k, rows, n) = (packed.cols(), packed.rows(), [9, 17, 33, 130][rng.below(4)]);
    let x = rng.floats(n * k);
    let panels = upload(machine, &packed);
    let run = |x: &[f32]| {
        let n = x.len() / k;
        let operand = rounded(machine, x, (n, k, k), None);
        let out = machine.poisoned(n * rows * 4);
        let factors = [factor(machine, &packed, &panels, None)];
        for launch in products(
            &operand.shape,
            &factors,
            Address::default(),
            machine.address(&out),
        ) {
            machine.launch(&launch);
        }
        machine.download::<u32>(&out)
    };
    let all = run(&x);
    for i in [0, rng.below(n), n - 1] {
        assert_eq!(
            all[i * rows..][..rows],
            run(&x[i * k..][..k]),
            "{of:?}, row {i} of {n}"
        );
    }
}

/// Rows are the bits that the file's format defines.
fn embedding<M: Machine>(machine: &M, seed: u64, of: Format) {
    let rng = &mut Rng(seed);
    let (_, packed) = random(rng, of, (40, 640));
    let k = packed.cols();
    let ids: Vec<u32> = (0..=rng.below(9))
        .map(|_| rng.below(packed.rows()) as u32)
        .collect();
    let (panels, table) = (upload(machine, &packed), machine.upload(&ids));
    let weight = factor(machine, &packed, &panels, None);
    let [out] = machine.in_every_order(|| {
        let out = machine.poisoned(ids.len() * k * 4);
        let ids = (machine.address(&table), ids.len());
        machine.launch(&embed((&weight, k), ids, 1.5, machine.address(&out)));
        [out]
    });
    let actual: Vec<f32> = machine.download(&out);
    let mut row = vec![0.0; k];
    for (id, actual) in ids.iter().zip(actual.chunks(k)) {
        packed.row(*id as usize, &mut row);
        for (a, e) in actual.iter().zip(&row) {
            assert_eq!(a.to_bits(), (e * 1.5).to_bits());
        }
    }
}
