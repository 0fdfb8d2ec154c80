//! Rounding, products and embeddings.

use super::common::{Rng, matrix};
use super::machine::{Machine, assert_close};
use super::on_every_machine;
use crate::cuda::Address;
use crate::cuda::packed::{Factor, Rounded, embed, products, round};
use crate::cuda::panels::arrange;
use crate::{Activations, Format, Matrix, Packed};

on_every_machine!(rounding, product, wide, rows_alone, embedding);

const GROUP: usize = 32;

fn format(rng: &mut Rng) -> Format {
    let packed: Vec<_> = Format::ALL
        .into_iter()
        .filter(|format| format.block_len() > 1)
        .collect();
    packed[rng.below(packed.len())]
}

/// A random matrix of a random format, in panels, with at most 40 rows of at most 640 weights.
fn random(rng: &mut Rng, format: Format) -> (Matrix, Packed) {
    let rows = 1 + rng.below(40);
    let blocks = 1 + rng.below(640 / format.block_len());
    let matrix = matrix(rng, format, rows, blocks * format.block_len(), 0);
    let packed = Packed::new(&matrix, Activations::Int8).unwrap();
    (matrix, packed)
}

/// Rounded activations in a machine's memory.
struct Operand<B> {
    codes: B,
    scales: B,
    shares: B,
    shape: Rounded,
}

fn rounded<M: Machine>(
    machine: &M,
    x: &[f32],
    (n, k, stride): (usize, usize, usize),
    norm: Option<(&[f32], f32)>,
) -> Operand<M::Buffer> {
    let bytes = Rounded::bytes(n, k);
    let [codes, scales, shares] = bytes.map(|bytes| machine.poisoned(bytes));
    let shape = Rounded {
        n,
        k,
        codes: machine.address(&codes),
        scales: machine.address(&scales),
        shares: machine.address(&shares),
    };
    let input = machine.upload(x);
    let weight = norm.map(|(weight, eps)| (machine.upload(weight), eps));
    let norm = weight
        .as_ref()
        .map(|(weight, eps)| (machine.address(weight), *eps));
    machine.launch(&round(machine.address(&input), stride, norm, &shape));
    Operand {
        codes,
        scales,
        shares,
        shape,
    }
}

/// Every number is the nearest whole one of its scale, and sums are those of the numbers.
fn rounding<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let (n, k) = (1 + rng.below(12), GROUP * (1 + rng.below(20)));
    let stride = k + 4 * rng.below(3);
    let mut x = rng.floats(n * stride);
    if rng.below(8) == 0 {
        x[..GROUP].fill(0.0);
    }
    let norm = (rng.below(2) == 0).then(|| (rng.floats(k), 1e-5_f32));
    let operand = rounded(
        machine,
        &x,
        (n, k, stride),
        norm.as_ref().map(|(weight, eps)| (&**weight, *eps)),
    );
    let codes: Vec<i8> = machine.download(&operand.codes);
    let scales: Vec<f32> = machine.download(&operand.scales);
    let shares: Vec<f32> = machine.download(&operand.shares);
    let padded = Rounded::padded(n);
    for row in 0..n {
        let x = &x[row * stride..][..k];
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / k as f64;
        let value = |i: usize| match &norm {
            Some((weight, eps)) => f64::from(x[i]) / (mean + f64::from(*eps)).sqrt() * f64::from(weight[i]),
            None => f64::from(x[i]),
        };
        for group in 0..k / GROUP {
            let scale = f64::from(scales[group * padded + row]);
            let largest = (0..GROUP).fold(0.0, |largest: f64, i| largest.max(value(group * GROUP + i).abs()));
            assert!(
                (scale * 127.0 - largest).abs() <= 1e-5 * largest,
                "scale {scale} of {largest}"
            );
            let mut expected = [0, 0];
            for i in 0..GROUP {
                let place = i / 4 % 4 * 8 + i / 16 * 4 + i % 4;
                let code = codes[row * k + group * GROUP + place];
                let off = (f64::from(code) * scale - value(group * GROUP + i)).abs();
                assert!(off <= 0.5001 * scale + 1e-5 * largest, "{code} of {scale}");
                expected[i / 16] += i32::from(code);
            }
            let sums = [expected[0] + expected[1], expected[0], expected[1]];
            for (i, sum) in sums.into_iter().enumerate() {
                let share = scales[group * padded + row] * sum as f32;
                assert_eq!(shares[(group * 3 + i) * padded + row].to_bits(), share.to_bits());
            }
        }
    }
}

/// What `codes` and `scales` stand for, `[n, k]`.
fn values<M: Machine>(machine: &M, operand: &Operand<M::Buffer>) -> Vec<f64> {
    let codes: Vec<i8> = machine.download(&operand.codes);
    let scales: Vec<f32> = machine.download(&operand.scales);
    let Rounded { n, k, .. } = operand.shape;
    let value = |at: usize| {
        let (row, group, i) = (at / k, at % k / GROUP, at % GROUP);
        let place = i / 4 % 4 * 8 + i / 16 * 4 + i % 4;
        let code = codes[row * k + group * GROUP + place];
        f64::from(code) * f64::from(scales[group * Rounded::padded(n) + row])
    };
    (0..n * k).map(value).collect()
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

/// Products of several matrices with rounded activations, with biases or onto addends.
fn product<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    // Every format comes in turn, mixed with others at times.
    let first = Format::ALL[3 + seed as usize % (Format::ALL.len() - 3)];
    let (matrix0, packed0) = random(rng, first);
    let k = matrix0.cols();
    let mut parts = vec![(matrix0, packed0)];
    for _ in 0..rng.below(3) {
        let other = if rng.below(2) == 0 { first } else { format(rng) };
        if k.is_multiple_of(other.block_len()) {
            let rows = 1 + rng.below(40);
            let matrix = matrix(rng, other, rows, k, 0);
            let packed = Packed::new(&matrix, Activations::Int8).unwrap();
            parts.push((matrix, packed));
        }
    }
    let n = [1, 2, 7, 8, 9, 17, 31, 32, 33, 70, 140][rng.below(11)];
    let operand = rounded(machine, &rng.floats(n * k), (n, k, k), None);
    let width: usize = parts.iter().map(|(matrix, _)| matrix.rows()).sum();
    let panels: Vec<_> = parts.iter().map(|(_, packed)| upload(machine, packed)).collect();
    let biases: Vec<Vec<f32>> = parts
        .iter()
        .map(|(matrix, _)| {
            if seed.is_multiple_of(3) {
                rng.floats(matrix.rows())
            } else {
                Vec::new()
            }
        })
        .collect();
    let uploaded: Vec<_> = biases
        .iter()
        .map(|bias| (!bias.is_empty()).then(|| machine.upload(bias)))
        .collect();
    let factors: Vec<_> = (0..parts.len())
        .map(|i| factor(machine, &parts[i].1, &panels[i], uploaded[i].as_ref()))
        .collect();
    let addends = (seed % 3 == 1).then(|| rng.floats(n * width));
    let onto = addends.as_ref().map(|addends| machine.upload(addends));
    let onto_at = onto
        .as_ref()
        .map_or(Address::default(), |onto| machine.address(onto));
    let out = machine.poisoned(n * width * 4);
    for launch in products(&operand.shape, &factors, onto_at, machine.address(&out)) {
        machine.launch(&launch);
    }
    let x = values(machine, &operand);
    let mut expected = Vec::new();
    for (row, x) in x.chunks(k).enumerate() {
        for ((matrix, _), bias) in parts.iter().zip(&biases) {
            for (r, w) in matrix.dequantize().chunks(k).enumerate() {
                let sum: f64 = x.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
                let addend = addends
                    .as_ref()
                    .map_or(0.0, |all| all[row * width + expected.len() % width]);
                let bias = bias.get(r).copied().unwrap_or(0.0);
                expected.push(sum + f64::from(bias) + f64::from(addend));
            }
        }
    }
    let actual: Vec<f32> = machine.download(&out);
    assert_close(&actual, &expected, 2e-6, &format!("{first:?}, {n} rows of {k}"));
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
    let (_, packed) = random(rng, of);
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
fn embedding<M: Machine>(machine: &M, seed: u64) {
    let rng = &mut Rng(seed);
    let of = format(rng);
    let (_, packed) = random(rng, of);
    let k = packed.cols();
    let ids: Vec<u32> = (0..=rng.below(9))
        .map(|_| rng.below(packed.rows()) as u32)
        .collect();
    let (panels, table) = (upload(machine, &packed), machine.upload(&ids));
    let out = machine.poisoned(ids.len() * k * 4);
    let weight = factor(machine, &packed, &panels, None);
    machine.launch(&embed(
        (&weight, k),
        (machine.address(&table), ids.len()),
        1.5,
        machine.address(&out),
    ));
    let actual: Vec<f32> = machine.download(&out);
    let mut row = vec![0.0; k];
    for (id, actual) in ids.iter().zip(actual.chunks(k)) {
        packed.row(*id as usize, &mut row);
        for (a, e) in actual.iter().zip(&row) {
            assert_eq!(a.to_bits(), (e * 1.5).to_bits(), "{of:?}");
        }
    }
}
