//! Memory that starts at a line.

use super::LINE;

/// Zeroed bytes, the first at a multiple of [`LINE`].
#[derive(Debug, Default)]
pub(super) struct Aligned {
    raw: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn zeroed(len: usize) -> Self {
        // From the allocator as untouched pages, which the packing threads then fault in side by side.
        let raw = vec![0; len + LINE - 1];
        let start = raw.as_ptr().align_offset(LINE);
        Self { raw, start, len }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.raw[self.start..][..self.len]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.raw[self.start..][..self.len]
    }
}
