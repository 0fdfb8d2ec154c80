//! Memory for packed weights.

use std::alloc::{Layout, handle_alloc_error};

use memmap2::MmapMut;

/// Zeroed bytes that start at a page, and so at a line.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// None where there are no bytes.
    pages: Option<MmapMut>,
}

impl Memory {
    /// Pages that the threads which write them fault in side by side. Where the system has no such memory this ends the
    /// process, as an allocation would.
    pub(crate) fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self::default();
        }
        let refused = |_| handle_alloc_error(Layout::array::<u8>(len).unwrap_or(Layout::new::<u8>()));
        let pages = MmapMut::map_anon(len).unwrap_or_else(refused);
        // Large pages where the system grants them: five hundred faults for a gigabyte instead of a quarter of a million, and
        // streams that cross fewer borders. A system without them says no, which costs speed alone.
        #[cfg(target_os = "linux")]
        let _ = pages.advise(memmap2::Advice::HugePage);
        Self { pages: Some(pages) }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.pages.as_deref().unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_deref_mut().unwrap_or_default()
    }

    /// All whole words.
    pub(crate) fn words(&self) -> &[u32] {
        // SAFETY: any four bytes are a word; they start at a page, so none is left out in front.
        unsafe { self.bytes().align_to().1 }
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { self.bytes_mut().align_to_mut().1 }
    }
}
