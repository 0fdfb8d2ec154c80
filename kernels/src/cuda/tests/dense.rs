//! Products with weights of 16 bits, and embeddings.

use super::common::{Rng, matrix};
use super::machine::{Machine, assert_close};
use super::packed::rows_for;
use super::round::{rounded, rounded_16, values, values_16};
use super::{kernels, on_every_machine};
use crate::cuda::Address;
use crate::cuda::packed::{Factor, Rounded, Shape, embed, products, products_in};
use crate::cuda::panels::{arrange, arrange_16};
use crate::{Activations, Format, Matrix, Packed};

kernels! {
    product_few_1_1_Bf16: |machine, seed| product(machine, seed, Format::Bf16, Shape::Few { tiles: 1, panels: 1 });
    product_few_2_2_Bf16: |machine, seed| product(machine, seed, Format::Bf16, Shape::Few { tiles: 2, panels: 2 });
    product_few_4_2_Bf16: |machine, seed| product(machine, seed, Format::Bf16, Shape::Few { tiles: 4, panels: 2 });
    product_many_4_Bf16: |machine, seed| product(machine, seed, Format::Bf16, Shape::Many { tiles: 4 });
    product_many_8_Bf16: |machine, seed| product(machine, seed, Format::Bf16, Shape::Many { tiles: 8 });
    embed_Bf16: |machine, seed| embedding(machine, seed, Format::Bf16);
    product_few_1_1_F16: |machine, seed| product(machine, seed, Format::F16, Shape::Few { tiles: 1, panels: 1 });
    product_few_2_2_F16: |machine, seed| product(machine, seed, Format::F16, Shape::Few { tiles: 2, panels: 2 });
    product_few_4_2_F16: |machine, seed| product(machine, seed, Format::F16, Shape::Few { tiles: 4, panels: 2 });
    product_many_4_F16: |machine, seed| product(machine, seed, Format::F16, Shape::Many { tiles: 4 });
    product_many_8_F16: |machine, seed| product(machine, seed, Format::F16, Shape::Many { tiles: 8 });
    embed_F16: |machine, seed| embedding(machine, seed, Format::F16);
}
on_every_machine!(beside_whole_numbers, rows_alone, wide);

const SHAPES: [Shape; 5] = [
    Shape::Few { tiles: 1, panels: 1 },
    Shape::Few { tiles: 2, panels: 2 },
    Shape::Few { tiles: 4, panels: 2 },
    Shape::Many { tiles: 4 },
    Shape::Many { tiles: 8 },
];

fn factor<M: Machine>(machine: &M, matrix: &Matrix, panels: &(M::Buffer, usize), bias: Address) -> Factor {
    Factor {
        format: matrix.format(),
        rows: matrix.rows(),
        panels: machine.address(&panels.0),
        panel_bytes: panels.1,
        bias,
    }
}

fn upload<M: Machine>(machine: &M, matrix: &Matrix) -> (M::Buffer, usize) {
    let (panels, panel_bytes) = arrange_16(matrix);
    (machine.upload(&panels), panel_bytes)
}

/// `x` `[n, k]` times a matrix, in f64.
fn times(x: &[f64], matrix: &Matrix) -> Vec<Vec<f64>> {
    let (k, w) = (matrix.cols(), matrix.dequantize());
    let row = |x: &[f64]| {
        let product = |w: &[f32]| x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
        w.chunks(k).map(product).collect()
    };
    x.chunks(k).map(row).collect()
}

/// Rows, in some cases each as large as one of these: some are beyond what f16 can hold.
fn activations(rng: &mut Rng, (n, k): (usize, usize), sizes: &[f32]) -> Vec<f32> {
    let (mut x, of_one_size) = (rng.floats(n * k), rng.below(2) == 0);
    for row in x.chunks_mut(k).filter(|_| !of_one_size) {
        let size = sizes[rng.below(sizes.len())];
        for x in row {
            *x *= size;
        }
    }
    x
}

/// Products with up to four matrices, onto biases and addends or not.
fn product<M: Machine>(machine: &M, seed: u64, of: Format, shape: Shape) {
    let rng = &mut Rng(seed);
    // Rows of any length: what is behind a row's end counts for nothing.
    let (n, k) = (
        rows_for(rng, shape),
        1 + rng.below(if seed.is_multiple_of(4) { 640 } else { 320 }),
    );
    let many = matches!(shape, Shape::Many { .. }) && seed.is_multiple_of(16);
    let matrices: Vec<Matrix> = (0..=rng.below(4))
        .map(|_| {
            let rows = 1 + rng.below(if many { 150 } else { 40 });
            matrix(rng, of, rows, k, 0)
        })
        .collect();
    let width: usize = matrices.iter().map(Matrix::rows).sum();
    let biases = (rng.below(3) == 0).then(|| rng.floats(width));
    let addends = (rng.below(2) == 0).then(|| rng.floats(n * width));
    let x = activations(rng, (n, k), &[1.0, 1e6, 1e-6]);
    let operand = rounded_16(machine, of, &x, (n, k, k), None);
    let panels: Vec<_> = matrices.iter().map(|matrix| upload(machine, matrix)).collect();
    let mut column = 0;
    let bias_buffers: Vec<_> = matrices
        .iter()
        .map(|matrix| {
            let own = column..column + matrix.rows();
            column = own.end;
            biases.as_ref().map(|biases| machine.upload(&biases[own]))
        })
        .collect();
    let nowhere = Address::default();
    let factors: Vec<_> = matrices
        .iter()
        .zip(&panels)
        .zip(&bias_buffers)
        .map(|((matrix, panels), bias)| {
            let bias = bias.as_ref().map_or(nowhere, |bias| machine.address(bias));
            factor(machine, matrix, panels, bias)
        })
        .collect();
    let onto_buffer = addends.as_ref().map(|addends| machine.upload(addends));
    let onto = onto_buffer
        .as_ref()
        .map_or(nowhere, |buffer| machine.address(buffer));
    let [out] = machine.in_every_order(|| {
        let out = machine.poisoned(n * width * 4);
        for launch in products_in(
            |_, _| shape,
            &operand.shape,
            &factors,
            (onto, machine.address(&out)),
        ) {
            machine.launch(&launch);
        }
        [out]
    });
    let x = values_16(machine, &operand);
    let parts: Vec<_> = matrices.iter().map(|matrix| times(&x, matrix)).collect();
    let mut expected: Vec<f64> = (0..n)
        .flat_map(|row| parts.iter().flat_map(move |part| part[row].iter().copied()))
        .collect();
    for (i, sum) in expected.iter_mut().enumerate() {
        *sum += biases.as_ref().map_or(0.0, |biases| f64::from(biases[i % width]));
        *sum += addends.as_ref().map_or(0.0, |addends| f64::from(addends[i]));
    }
    let what = format!("{n} rows of {k}");
    assert_close(&machine.download::<f32>(&out), &expected, 2e-6, &what);
}

/// Matrices in bf16, in f16 and in whole numbers side by side: each meets the activations as it takes them.
fn beside_whole_numbers<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let (n, k) = (1 + rng.below(40), 32 * (1 + rng.below(10)));
    let floats = rng.floats(n * k);
    let whole = rounded(machine, &floats, (n, k, k), None);
    let [bf16, f16] =
        [Format::Bf16, Format::F16].map(|format| rounded_16(machine, format, &floats, (n, k, k), None));
    let all = Rounded {
        bf16: bf16.shape.bf16,
        f16: f16.shape.f16,
        f16_scales: f16.shape.f16_scales,
        ..whole.shape
    };
    let formats = [Format::F16, Format::Q8_0, Format::Bf16, Format::F16];
    let matrices = formats.map(|format| {
        let rows = 1 + rng.below(40);
        matrix(rng, format, rows, k, 0)
    });
    let panels = matrices
        .each_ref()
        .map(|matrix| match Packed::new(matrix, Activations::Int8) {
            Some(packed) => {
                let (panels, panel_bytes) = arrange(&packed);
                (machine.upload(&panels), panel_bytes)
            }
            None => upload(machine, matrix),
        });
    let nowhere = Address::default();
    let factors: Vec<_> = matrices
        .iter()
        .zip(&panels)
        .map(|(matrix, panels)| factor(machine, matrix, panels, nowhere))
        .collect();
    let width: usize = matrices.iter().map(Matrix::rows).sum();
    let out = machine.poisoned(n * width * 4);
    for launch in products(&all, &factors, nowhere, machine.address(&out)) {
        machine.launch(&launch);
    }
    let parts = matrices.each_ref().map(|matrix| match matrix.format() {
        Format::F16 => times(&values_16(machine, &f16), matrix),
        Format::Bf16 => times(&values_16(machine, &bf16), matrix),
        _ => times(&values(machine, &whole), matrix),
    });
    let expected: Vec<f64> = (0..n)
        .flat_map(|row| parts.iter().flat_map(move |part| part[row].iter().copied()))
        .collect();
    let what = format!("{n} rows of {k}");
    assert_close(&machine.download::<f32>(&out), &expected, 2e-6, &what);
}

/// The results, by kernels of a shape.
fn computed<M: Machine>(
    machine: &M,
    shape: Shape,
    (weight, panels): (&Matrix, &(M::Buffer, usize)),
    operand: &Rounded,
) -> Vec<f32> {
    let out = machine.poisoned(operand.n * weight.rows() * 4);
    let factors = [factor(machine, weight, panels, Address::default())];
    let onto = (Address::default(), machine.address(&out));
    for launch in products_in(|_, _| shape, operand, &factors, onto) {
        machine.launch(&launch);
    }
    machine.download(&out)
}

/// Which number it is, all that are none being one.
fn bits(x: &[f32]) -> Vec<u32> {
    let bits = |x: &f32| if x.is_nan() { f32::NAN } else { *x }.to_bits();
    x.iter().map(bits).collect()
}

/// A row's results are the same bits alone and among others, whichever kernel computes it, and however large it is.
fn rows_alone<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let (k, rows) = (1 + rng.below(1_400), 1 + rng.below(40));
    let n = [9, 17, 33, 130][rng.below(4)];
    let of = [Format::Bf16, Format::F16][rng.below(2)];
    let weight = matrix(rng, of, rows, k, 0);
    let x = activations(rng, (n, k), &[1.0, 1e6, 1e-36, 3e38]);
    let panels = upload(machine, &weight);
    let run = |x: &[f32], shape| {
        let operand = rounded_16(machine, of, x, (x.len() / k, k, k), None);
        bits(&computed(machine, shape, (&weight, &panels), &operand.shape))
    };
    let i = rng.below(n);
    let alone = run(&x[i * k..][..k], SHAPES[0]);
    for shape in SHAPES {
        let all = run(&x, shape);
        assert_eq!(
            all[i * rows..][..rows],
            alone,
            "row {i} of {n}, {rows} x {k}, {shape:?}"
        );
    }
}

/// Rows as wide as models have them, of many strands, some of many stages.
fn wide<M: Machine>(machine: &M, seed: u64) {
    // Two are enough: these are large for threads that take turns.
    let Some(of) = [Format::Bf16, Format::F16].get(seed as usize).copied() else {
        return;
    };
    let rng = &mut Rng(seed);
    for k in [1_032, 4_104, 8_200] {
        let weight = matrix(rng, of, 33, k, 0);
        let operand = rounded_16(machine, of, &rng.floats(20 * k), (20, k, k), None);
        let panels = upload(machine, &weight);
        let run = |shape| computed(machine, shape, (&weight, &panels), &operand.shape);
        let few = run(SHAPES[2]);
        let expected = times(&values_16(machine, &operand), &weight).concat();
        assert_close(&few, &expected, 5e-6, &format!("{k} wide"));
        assert_eq!(bits(&few), bits(&run(SHAPES[3])), "{k} wide");
    }
}

/// Rows are the numbers of the file.
fn embedding<M: Machine>(machine: &M, seed: u64, of: Format) {
    let rng = &mut Rng(seed);
    let (rows, k) = (1 + rng.below(40), 1 + rng.below(640));
    let weight = matrix(rng, of, rows, k, 0);
    let ids: Vec<u32> = (0..=rng.below(9)).map(|_| rng.below(rows) as u32).collect();
    let (panels, table) = (upload(machine, &weight), machine.upload(&ids));
    let factor = factor(machine, &weight, &panels, Address::default());
    let [out] = machine.in_every_order(|| {
        let out = machine.poisoned(ids.len() * k * 4);
        let ids = (machine.address(&table), ids.len());
        machine.launch(&embed((&factor, k), ids, 1.5, machine.address(&out)));
        [out]
    });
    let (actual, numbers) = (machine.download::<f32>(&out), weight.dequantize());
    for (id, actual) in ids.iter().zip(actual.chunks(k)) {
        let expected = numbers[*id as usize * k..][..k].iter().map(|w| w * 1.5);
        assert!(actual.iter().copied().eq(expected), "row {id} of {rows} x {k}");
    }
}
