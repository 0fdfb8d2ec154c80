//! Packed weights: nothing is lost in packing, products are as exact as their activations, and every table of kernels
//! gives the same bits.

#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod common;

use candle_core::{Device, Tensor};
use common::{Rng, bits, matrix, values};
use proptest::prelude::*;
use rempart_kernels::{Activations, Format, Matrix, Packed, Weight, cpu, embed, linear};

const ACTIVATIONS: [Activations; 2] = [Activations::Int8, Activations::Int16];
const GROUP: usize = 32;

fn packable() -> Vec<Format> {
    Format::ALL
        .into_iter()
        .filter(|format| format.block_len() > 1)
        .collect()
}

fn formats() -> impl Strategy<Value = Format> {
    prop::sample::select(packable())
}

fn packed(matrix: &Matrix, activations: Activations) -> Weight {
    Weight::Packed(Packed::new(matrix, activations).unwrap())
}

/// The product in `f64`, and how far rounded activations may take each element from it: half a step for every weight,
/// and the rounding of `f32` sums.
fn exact(x: &[f32], weight: &Matrix, activations: Activations) -> Vec<(f64, f64)> {
    let (k, w) = (weight.cols(), weight.dequantize());
    let steps = match activations {
        Activations::Int8 => 127.0,
        Activations::Int16 => 127.0 * 256.0,
    };
    let element = |x: &[f32], r: usize| {
        let groups = x.chunks(GROUP).zip(w[r * k..][..k].chunks(GROUP));
        groups.fold((0.0, 0.0), |(sum, off), (x, w)| {
            let step = x
                .iter()
                .fold(0.0_f64, |largest, &x| largest.max(f64::from(x).abs()))
                / steps;
            let size: f64 = w.iter().map(|&w| f64::from(w).abs()).sum();
            let largest = x
                .iter()
                .fold(0.0_f64, |largest, &x| largest.max(f64::from(x).abs()));
            let product: f64 = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            // A group's own scale and minimum may be far larger than its weights.
            let rounding = 64.0 * f64::from(f32::EPSILON) * (k as f64) * (largest * size + largest);
            (sum + product, off + 0.51 * step * size + rounding)
        })
    };
    x.chunks(k.max(1))
        .flat_map(|x| (0..weight.rows()).map(|r| element(x, r)).collect::<Vec<_>>())
        .collect()
}

/// What this processor runs, and what it can emulate.
fn tables() -> Vec<&'static cpu::Kernels> {
    [cpu::all(), cpu::emulated()].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// A row of a packed matrix has the bits that the file's format defines.
    #[test]
    fn packing_loses_nothing(format in formats(), (rows, blocks) in (1_usize..50, 1_usize..5), seed: u64, offset in 0_usize..5) {
        let matrix = matrix(&mut Rng(seed), format, rows, blocks * format.block_len(), offset);
        let weight = packed(&matrix, Activations::Int8);
        let mut row = vec![0.0; matrix.cols()];
        for (i, expected) in matrix.dequantize().chunks(matrix.cols()).enumerate() {
            weight.row(i, &mut row);
            assert_eq!(row, expected, "{format:?} row {i} of {rows}");
        }
        let ids: Vec<u32> = (0..rows as u32).rev().collect();
        let embedded = values(&embed(&weight, &ids, 2.0).unwrap());
        let expected: Vec<f32> = matrix.select_rows(&ids).dequantize().iter().map(|x| x * 2.0).collect();
        assert_eq!(embedded, expected);
    }

    #[test]
    fn products_are_as_exact_as_their_activations(
        format in formats(),
        (n, rows, blocks) in (0_usize..20, 0_usize..40, 0_usize..4),
        (seed, wide, biased) in (any::<u64>(), any::<bool>(), any::<bool>()),
    ) {
        let mut rng = Rng(seed);
        let k = blocks * format.block_len();
        let matrix = matrix(&mut rng, format, rows, k, 0);
        let x = rng.tensor(&[n, k]);
        let bias = biased.then(|| rng.tensor(&[rows]));
        let activations = ACTIVATIONS[usize::from(wide)];
        let weight = packed(&matrix, activations);
        let offset = bias.as_ref().map_or(vec![0.0; rows], values);
        let expected = if k == 0 { vec![(0.0, 0.0); n * rows] } else { exact(&values(&x), &matrix, activations) };
        let mut first: Option<Vec<u32>> = None;
        for table in tables() {
            let out = cpu::with_table(table, || linear(&x, &weight, bias.as_ref()).unwrap());
            assert_eq!(out.dims(), [n, rows]);
            for (i, (&ours, &(sum, off))) in values(&out).iter().zip(&expected).enumerate() {
                let sum = sum + f64::from(offset[i % rows]);
                let off = off + sum.abs() * 1e-6;
                assert!((f64::from(ours) - sum).abs() <= off, "{} {format:?} {i}: {ours}, exactly {sum}, {off}", table.name);
            }
            let first = first.get_or_insert_with(|| bits(&out));
            assert_eq!(*first, bits(&out), "{} {format:?} {activations:?}", table.name);
        }
    }

    /// The bar that batching stands on: a row's result is the same bits alone and at any place of any batch.
    #[test]
    fn products_do_not_depend_on_the_batch(
        format in formats(),
        (n, rows, blocks) in (1_usize..30, 1_usize..70, 1_usize..3),
        (seed, wide) in (any::<u64>(), any::<bool>()),
    ) {
        let mut rng = Rng(seed);
        let k = blocks * format.block_len();
        let weight = packed(&matrix(&mut rng, format, rows, k, 0), ACTIVATIONS[usize::from(wide)]);
        let x = rng.tensor(&[n, k]);
        for table in tables() {
            cpu::with_table(table, || {
                let together = bits(&linear(&x, &weight, None).unwrap());
                for i in 0..n {
                    let alone = bits(&linear(&x.narrow(0, i, 1).unwrap(), &weight, None).unwrap());
                    assert_eq!(alone, together[i * rows..][..rows], "{} {format:?} row {i} of {n}", table.name);
                }
            });
        }
    }
}

/// Wide enough for several threads and tasks, which the random shapes above are not.
#[test]
fn large_products_do_not_depend_on_the_batch() {
    for format in packable() {
        let mut rng = Rng(7);
        let weight = packed(&matrix(&mut rng, format, 1030, 768, 0), Activations::Int8);
        let x = rng.tensor(&[67, 768]);
        let product = |table, x: &Tensor| bits(&cpu::with_table(table, || linear(x, &weight, None).unwrap()));
        let together = product(cpu::best(), &x);
        for table in tables() {
            for (start, len) in [
                (0, 1),
                (3, 2),
                (5, 3),
                (11, 4),
                (15, 7),
                (22, 32),
                (66, 1),
                (0, 67),
            ] {
                let part = product(table, &x.narrow(0, start, len).unwrap());
                assert_eq!(
                    part,
                    together[start * 1030..][..len * 1030],
                    "{} {format:?} {start}+{len}",
                    table.name
                );
            }
        }
    }
}

/// Rows of no weights give zeros, however many there are: kernels that work a group ahead have none to begin with.
#[test]
fn products_over_nothing_are_zero() {
    for n in [1, 5, 8, 9, 17] {
        let weight = packed(&matrix(&mut Rng(1), Format::Q4K, 20, 0, 0), Activations::Int8);
        let x = Tensor::zeros((n, 0), candle_core::DType::F32, &Device::Cpu).unwrap();
        for table in tables() {
            let out = values(&cpu::with_table(table, || linear(&x, &weight, None).unwrap()));
            assert_eq!(out, vec![0.0; n * 20], "{} of {n} rows", table.name);
        }
    }
}

/// Codes and activations at the ends of their ranges, where narrow sums would overflow.
#[test]
fn extreme_codes_and_activations_are_exact() {
    for format in packable() {
        for fill in [0x00, 0x7f, 0x80, 0xff] {
            let cols = 256;
            let mut bytes = vec![fill; 16 * format.row_bytes(cols)];
            // Scales that are ordinary numbers: wherever the format has an f16, it reads 0.5 or so.
            for block in bytes.chunks_mut(format.block_bytes()) {
                let len = block.len();
                let halves: &[usize] = match format {
                    Format::Q2K => &[80, 82],
                    Format::Q3K => &[108],
                    Format::Q6K => &[208],
                    Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
                    _ => &[0],
                };
                for &at in halves.iter().filter(|&&at| at + 1 < len) {
                    block[at..at + 2].copy_from_slice(&[0x00, 0x38]);
                }
            }
            let matrix = Matrix::new(format, 16, cols, bytes.into()).unwrap();
            for sign in [1.0_f32, -1.0] {
                let x = Tensor::full(3.0 * sign, (9, cols), &Device::Cpu).unwrap();
                for activations in ACTIVATIONS {
                    let weight = packed(&matrix, activations);
                    let expected = exact(&values(&x), &matrix, activations);
                    for table in tables() {
                        let out = cpu::with_table(table, || linear(&x, &weight, None).unwrap());
                        for (ours, (sum, _)) in values(&out).iter().zip(&expected) {
                            let off = (f64::from(*ours) - sum).abs();
                            assert!(
                                off <= sum.abs() * 1e-5 + 1e-2,
                                "{} {format:?} {fill:x}: {ours}, exactly {sum}",
                                table.name
                            );
                        }
                    }
                }
            }
        }
    }
}

/// In a row of its own, in few rows and in blocks of them, the last of which has room for rows that it does not have: what
/// an earlier product left there is in no result.
#[test]
fn not_a_number_is_not_hidden_and_stays_in_its_row() {
    let k = 256;
    for (format, n) in packable()
        .into_iter()
        .flat_map(|format| [(format, 2), (format, 9)])
    {
        let mut rng = Rng(3);
        let weight = packed(&matrix(&mut rng, format, 20, k, 0), Activations::Int8);
        let spoilt = Tensor::full(f32::NAN, (16, k), &Device::Cpu).unwrap();
        let mut x = rng.floats(n * k);
        x[k + 44] = f32::NAN;
        let x = Tensor::from_vec(x, (n, k), &Device::Cpu).unwrap();
        for table in tables() {
            let out = cpu::with_table(table, || {
                linear(&spoilt, &weight, None).unwrap();
                values(&linear(&x, &weight, None).unwrap())
            });
            for (row, out) in out.chunks(20).enumerate() {
                let right = out
                    .iter()
                    .all(|x| if row == 1 { x.is_nan() } else { x.is_finite() });
                assert!(right, "{} {format:?} row {row} of {n}", table.name);
            }
        }
    }
}

#[test]
fn floating_point_weights_are_not_packed() {
    for format in [Format::F32, Format::F16, Format::Bf16] {
        let matrix = matrix(&mut Rng(1), format, 3, 5, 0);
        assert!(Packed::new(&matrix, Activations::Int8).is_none());
        assert!(matches!(Weight::new(matrix, Activations::Int8), Weight::Dense(_)));
    }
}

#[test]
fn bytes_are_those_planned() {
    for format in packable() {
        let matrix = matrix(&mut Rng(1), format, 37, 512, 0);
        let packed = Packed::new(&matrix, Activations::Int8).unwrap();
        assert_eq!(packed.bytes(), Packed::bytes_of(format, 37, 512), "{format:?}");
    }
}
