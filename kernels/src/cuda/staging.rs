//! Page-locked memory of the host, through which a step's numbers go to a card and come back: from other memory the driver copies
//! them first, and whoever asks waits for that.

use std::sync::Arc;

use candle_core::{
    Error, Result,
    cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice, result},
};

use super::device::{Gpu, lock};

/// Buffers that take turns: as many as a step has arrays, as the copy from one may wait for kernels of the step.
const BUFFERS: usize = 16;
/// The largest, in words; what is longer takes so long to copy that who asks may wait for the driver.
const WORDS_MAX: usize = 1 << 20;

/// The buffers of a card.
#[derive(Debug, Default)]
pub(super) struct Staging {
    buffers: [Option<Buffer>; BUFFERS],
    next: usize,
}

#[derive(Debug)]
struct Buffer {
    memory: PinnedHostSlice<u32>,
    /// Recorded behind the last copy from or to `memory`.
    copied: CudaEvent,
}

impl Buffer {
    /// None where the host has no such memory.
    fn new(stream: &CudaStream, len: usize) -> Result<Option<Self>> {
        let context = stream.context();
        // SAFETY: a word is written before it is read. Not write-combined: results are read there.
        let memory = unsafe { context.alloc_pinned_with_flags(len.next_power_of_two(), 0) };
        let Ok(memory) = memory else {
            return Ok(None);
        };
        let copied = context.new_event(None).map_err(Error::wrap)?;
        Ok(Some(Self { memory, copied }))
    }

    /// Waits for the last copy.
    fn wait(&self) -> Result<()> {
        self.copied.synchronize().map_err(Error::wrap)
    }

    /// The first `len` words, which no copy must be using.
    fn words(&mut self, len: usize) -> Result<&mut [u32]> {
        let words = self.memory.as_mut_slice().map_err(Error::wrap)?;
        Ok(&mut words[..len])
    }

    /// Notes a copy that was started. One that can't be noted is waited for.
    fn note(&self, stream: &CudaStream) -> Result<()> {
        let noted = self.copied.record(stream);
        if noted.is_err() {
            stream.synchronize().map_err(Error::wrap)?;
        }
        noted.map_err(Error::wrap)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The memory's own event knows nothing of these copies. A first call may tell an older error instead of waiting.
        if self.wait().is_err() {
            let _ = self.wait();
        }
    }
}

impl Staging {
    /// The next buffer, of at least `len` words, once no copy uses it; `None` where the host has none of that size to give.
    fn take(&mut self, stream: &Arc<CudaStream>, len: usize) -> Result<Option<&mut Buffer>> {
        if len > WORDS_MAX {
            return Ok(None);
        }
        self.next = (self.next + 1) % BUFFERS;
        let slot = &mut self.buffers[self.next];
        if slot.as_ref().is_none_or(|buffer| buffer.memory.len() < len) {
            // The old one's copy is waited for as it is dropped.
            *slot = Buffer::new(stream, len)?;
        }
        if let Some(buffer) = slot {
            buffer.wait()?;
        }
        Ok(slot.as_mut())
    }
}

impl Gpu {
    /// Copies words to the card, `parts` one behind the other; waits only where all buffers are still being copied, or where there
    /// is none.
    ///
    /// # Errors
    /// The driver's.
    pub(super) fn stage(&self, parts: &[&[u32]], to: &CudaSlice<u32>) -> Result<()> {
        let len = parts.iter().map(|part| part.len()).sum();
        assert!(to.len() >= len, "no more is copied than has room. This is a bug.");
        let (stream, mut staging) = (self.stream(), lock(&self.staging));
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        let to = to.device_ptr(stream).0;
        let Some(buffer) = staging.take(stream, len)? else {
            let words = parts.concat();
            // SAFETY: there is room for the words, which the driver has copied when the call returns.
            return unsafe { result::memcpy_htod_async(to, &words, stream.cu_stream()) }.map_err(Error::wrap);
        };
        let words = buffer.words(len)?;
        let mut at = 0;
        for part in parts {
            words[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        // SAFETY: there is room for the words, which stay what they are until the event behind the copy.
        unsafe { result::memcpy_htod_async(to, words, stream.cu_stream()) }.map_err(Error::wrap)?;
        buffer.note(stream)
    }

    /// Words in memory of the card that is theirs.
    ///
    /// # Errors
    /// The driver's.
    pub(super) fn upload_words(&self, words: &[u32]) -> Result<CudaSlice<u32>> {
        let memory = self.empty::<u32>(words.len())?;
        if !words.is_empty() {
            self.stage(&[words], &memory)?;
        }
        Ok(memory)
    }

    /// The first `len` words of what all that was started before has left there: for this the host waits.
    ///
    /// # Errors
    /// The driver's.
    pub(super) fn download_words(&self, memory: &CudaSlice<u32>, len: usize) -> Result<Vec<u32>> {
        assert!(
            memory.len() >= len,
            "no more is read than there is. This is a bug."
        );
        let (stream, mut staging) = (self.stream(), lock(&self.staging));
        stream.context().bind_to_thread().map_err(Error::wrap)?;
        let Some(buffer) = staging.take(stream, len)? else {
            let mut words = stream.clone_dtoh(memory).map_err(Error::wrap)?;
            words.truncate(len);
            return Ok(words);
        };
        let words = buffer.words(len)?;
        // SAFETY: there is room for the words, which nobody looks at before the event behind the copy.
        unsafe { result::memcpy_dtoh_async(words, memory.device_ptr(stream).0, stream.cu_stream()) }
            .map_err(Error::wrap)?;
        buffer.note(stream)?;
        buffer.wait()?;
        Ok(buffer.words(len)?.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::cuda::open;

    /// Twice as many copies as there are buffers, of growing size, and back.
    #[test]
    fn words_come_back_as_they_went() {
        let Device::Cuda(device) = open(0).unwrap() else {
            panic!("no card was opened")
        };
        let gpu = Gpu::of(&device).unwrap();
        let sent: Vec<Vec<u32>> = (0..2 * BUFFERS as u32)
            .map(|of| (of..of * of * of + of).collect())
            .collect();
        let memories: Vec<_> = sent
            .iter()
            .map(|words| gpu.upload_words(words).unwrap())
            .collect();
        for (words, memory) in sent.iter().zip(&memories) {
            assert_eq!(gpu.download_words(memory, words.len()).unwrap(), *words);
        }
        let long = vec![7; WORDS_MAX + 1];
        let memory = gpu.upload_words(&long).unwrap();
        assert_eq!(gpu.download_words(&memory, long.len()).unwrap(), long);
        let both = gpu.upload_words(&[0; 5]).unwrap();
        gpu.stage(&[&[1, 2], &[], &[3]], &both).unwrap();
        assert_eq!(gpu.download_words(&both, 4).unwrap(), [1, 2, 3, 0]);
    }
}
