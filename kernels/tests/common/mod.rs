//! Random numbers, matrices and an exact reference for the kernels' tests.

#![allow(
    dead_code,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "each test file uses a part, and fails by panicking"
)]

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor},
};
use half::{bf16, f16};
use rempart_kernels::{Format, Matrix};

/// A small generator (`SplitMix64`): the same numbers on every machine.
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Roughly normal numbers.
    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        let mut unit = || (self.next() >> 40) as f32 / (1 << 24) as f32;
        (0..len)
            .map(|_| unit() + unit() + unit() + unit() - 2.0)
            .collect()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 56) as u8).collect()
    }

    pub(crate) fn tensor(&mut self, shape: &[usize]) -> Tensor {
        Tensor::from_vec(self.floats(shape.iter().product()), shape, &Device::Cpu).unwrap()
    }
}

pub(crate) fn ggml(format: Format) -> GgmlDType {
    match format {
        Format::F32 => GgmlDType::F32,
        Format::F16 => GgmlDType::F16,
        Format::Bf16 => GgmlDType::BF16,
        Format::Q4_0 => GgmlDType::Q4_0,
        Format::Q4_1 => GgmlDType::Q4_1,
        Format::Q5_0 => GgmlDType::Q5_0,
        Format::Q5_1 => GgmlDType::Q5_1,
        Format::Q8_0 => GgmlDType::Q8_0,
        Format::Q2K => GgmlDType::Q2K,
        Format::Q3K => GgmlDType::Q3K,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q5K => GgmlDType::Q5K,
        Format::Q6K => GgmlDType::Q6K,
    }
}

/// Random weights in `format`, quantised by Candle, whose bytes start `offset` bytes into an allocation.
pub(crate) fn matrix(rng: &mut Rng, format: Format, rows: usize, cols: usize, offset: usize) -> Matrix {
    let values = rng.floats(rows * cols);
    let bytes: Vec<u8> = match format {
        Format::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Format::F16 => values
            .iter()
            .flat_map(|&x| f16::from_f32(x).to_le_bytes())
            .collect(),
        Format::Bf16 => values
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect(),
        _ if values.is_empty() => Vec::new(),
        _ => {
            let tensor = Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap();
            QTensor::quantize(&tensor, ggml(format))
                .unwrap()
                .data()
                .unwrap()
                .to_vec()
        }
    };
    let mut shifted = vec![0; offset];
    shifted.extend(bytes);
    Matrix::new(format, rows, cols, bytes::Bytes::from(shifted).slice(offset..)).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(tensor: &Tensor) -> Vec<u32> {
    values(tensor).into_iter().map(f32::to_bits).collect()
}

/// Panics unless `actual` is within `tolerance` of `expected`, element by element.
pub(crate) fn assert_close(actual: &[f32], expected: &[f64], tolerance: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(actual) - expected).abs();
        assert!(
            error <= tolerance(i),
            "{what}: element {i} is {actual}, expected {expected}, off by {error:e}"
        );
    }
}
