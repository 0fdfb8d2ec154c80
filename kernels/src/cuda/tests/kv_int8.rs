//! Where the codes of `kv_int8.cuh` lie, said anew.

/// Dimensions of a part, and its bytes: scales of 16 positions, then codes.
pub(super) const PART: usize = 64;
pub(super) const SCALES_BYTES: usize = 16 * 4;
pub(super) const PART_BYTES: usize = SCALES_BYTES + 16 * PART;

#[derive(Debug, Clone, Copy)]
pub(super) enum Side {
    Keys,
    Values,
}

/// The place of a dimension of a position among the codes of its part. Values come as the lanes of a warp read them: of 32
/// dimensions lane l has l / 4, and every eighth from there on, of four positions from 4 (l % 4) on.
pub(super) fn code_place(side: Side, position: usize, dim: usize) -> usize {
    match side {
        Side::Keys => position * PART + dim,
        Side::Values => {
            let (half, octet, row) = (dim / 32, dim / 8 % 4, dim % 8);
            let lane = row * 4 + position / 4;
            ((half * 32 + lane) * 4 + octet) * 4 + position % 4
        }
    }
}
