//! A sequence's hidden states to one vector (Sentence-BERT, arXiv:1908.10084).

use candle_core::{Device, Tensor};
use rempart_kernels::op::{self, Around};

use crate::{Result, layers::DenseLinear};

/// Which of a sequence's hidden states make its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first.
    Cls,
    /// Their mean.
    Mean,
    /// The largest of each element.
    Max,
    /// The last.
    Last,
}

/// The vectors of `hidden` `[tokens, width]`'s sequences.
pub(super) fn pool(pooling: Pooling, hidden: &Tensor, lengths: &[usize]) -> Result<Vec<Vec<f32>>> {
    let width = hidden.dims2()?.1.max(1);
    // Read where they are.
    let vectors = op::edit(hidden, |hidden| {
        let mut rows = hidden.chunks_exact(width);
        let vector = |&len: &usize| one(pooling, rows.by_ref().take(len), len, width);
        lengths.iter().map(vector).collect()
    })?;
    Ok(vectors)
}

fn one<'a>(pooling: Pooling, rows: impl Iterator<Item = &'a [f32]>, len: usize, width: usize) -> Vec<f32> {
    let start = if pooling == Pooling::Max {
        f32::NEG_INFINITY
    } else {
        0.0
    };
    let mut vector = vec![start; width];
    for (i, row) in rows.enumerate() {
        match pooling {
            Pooling::Cls if i == 0 => vector.copy_from_slice(row),
            Pooling::Last if i + 1 == len => vector.copy_from_slice(row),
            Pooling::Cls | Pooling::Last => {}
            Pooling::Mean => vector.iter_mut().zip(row).for_each(|(sum, x)| *sum += x),
            Pooling::Max => vector.iter_mut().zip(row).for_each(|(max, x)| *max = max.max(*x)),
        }
    }
    if pooling == Pooling::Mean {
        for sum in &mut vector {
            *sum /= len as f32;
        }
    }
    vector
}

/// Divides a vector by its length, unless it has none.
pub(super) fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    // As torch's `normalize`.
    let length = length.max(1e-12);
    for x in vector {
        *x /= length;
    }
}

/// A layer behind pooling.
pub(super) struct Projection {
    pub(super) layer: DenseLinear,
    pub(super) tanh: bool,
}

impl Projection {
    pub(super) fn forward(&self, vectors: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let y = self.layer.forward(&stacked(vectors)?, &Around::default())?;
        if self.tanh {
            op::edit(&y, |y| y.iter_mut().for_each(|y| *y = y.tanh()))?;
        }
        Ok(y.to_vec2()?)
    }
}

/// Vectors of one length as rows.
pub(super) fn stacked(vectors: &[Vec<f32>]) -> Result<Tensor> {
    let shape = (vectors.len(), vectors.first().map_or(0, Vec::len));
    Ok(Tensor::from_vec(vectors.concat(), shape, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pooling_takes_its_rows() {
        let hidden = Tensor::new(&[[1.0_f32, 4.0], [3.0, 2.0], [5.0, -6.0]], &Device::Cpu).unwrap();
        let pooled = |pooling| pool(pooling, &hidden, &[2, 1]).unwrap();
        assert_eq!(pooled(Pooling::Cls), [[1.0, 4.0], [5.0, -6.0]]);
        assert_eq!(pooled(Pooling::Mean), [[2.0, 3.0], [5.0, -6.0]]);
        assert_eq!(pooled(Pooling::Max), [[3.0, 4.0], [5.0, -6.0]]);
        assert_eq!(pooled(Pooling::Last), [[3.0, 2.0], [5.0, -6.0]]);
    }

    #[test]
    fn nothing_stays_nothing() {
        let mut vectors = [[3.0, 4.0], [0.0, 0.0]];
        for vector in &mut vectors {
            normalize(vector);
        }
        assert_eq!(vectors, [[0.6, 0.8], [0.0, 0.0]]);
    }
}
