//! Ranks that have a card each, joined by NCCL. It compiles; it has run on no machine yet.

use candle_core::{Device, Tensor};
use rempart_kernels::{CARD_GROUP_BYTES, CardGroup};

use super::{Collective, Error, Shard};
use crate::Result;

/// One rank with a card of its own.
#[derive(Debug)]
pub struct Nccl {
    shard: Shard,
    group: CardGroup,
}

impl Nccl {
    /// Joins the group of a `name`, which the first rank gets from [`CardGroup::name`] and tells the others; returns once all
    /// have joined.
    ///
    /// # Errors
    /// The device is no card, or the library's.
    pub fn join(device: &Device, shard: Shard, name: [u8; CARD_GROUP_BYTES]) -> Result<Self> {
        let group = CardGroup::join(device, shard.rank(), shard.of(), name)?;
        Ok(Self { shard, group })
    }

    /// What was refused ends the group: no rank may go on where others do not.
    fn ended<T>(&self, result: candle_core::Result<T>) -> Result<T> {
        result.map_err(|error| {
            self.group.end();
            Error::Stopped(error.to_string()).into()
        })
    }
}

impl Collective for Nccl {
    fn shard(&self) -> Shard {
        self.shard
    }

    fn all_reduce(&self, x: &Tensor) -> Result<()> {
        self.ended(self.group.all_reduce(x))
    }

    fn all_gather(&self, x: Tensor, columns: usize) -> Result<Tensor> {
        let widths: Vec<usize> = Shard::all(self.shard.of())?
            .iter()
            .map(|shard| shard.part(columns).len())
            .collect();
        // The library gathers equal parts; the first rank's is the widest.
        let padded = x.pad_with_zeros(1, 0, widths[0] - widths[self.shard.rank()])?;
        let all = self.ended(self.group.all_gather(&padded))?;
        let parts = widths
            .iter()
            .enumerate()
            .map(|(rank, width)| all.get(rank)?.narrow(1, 0, *width))
            .collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts, 1)?)
    }

    fn stop(&self, _reason: &str) {
        self.group.end();
    }
}
