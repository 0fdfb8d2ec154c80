//! Where kernels run in tests, and how near their numbers must be.

use crate::cuda::{Address, Args, Launch};

/// Memory and a way to run kernels on it.
pub(super) trait Machine {
    type Buffer;
    fn upload_bytes(&self, bytes: &[u8]) -> Self::Buffer;
    fn download_bytes(&self, buffer: &Self::Buffer) -> Vec<u8>;
    fn address(&self, buffer: &Self::Buffer) -> Address;
    fn launch<A: Args>(&self, launch: &Launch<A>);

    fn upload<T: Plain>(&self, numbers: &[T]) -> Self::Buffer {
        // SAFETY: plain numbers are bytes.
        let bytes = unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) };
        self.upload_bytes(bytes)
    }

    fn download<T: Plain>(&self, buffer: &Self::Buffer) -> Vec<T> {
        let bytes = self.download_bytes(buffer);
        let numbers = bytes.chunks_exact(size_of::<T>());
        // SAFETY: any bytes are a plain number.
        numbers
            .map(|bytes| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
            .collect()
    }

    /// Memory that no kernel has written: numbers that are none.
    fn poisoned(&self, bytes: usize) -> Self::Buffer {
        self.upload_bytes(&vec![0xff; bytes])
    }
}

/// Numbers of which any bytes are one.
pub(super) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for u32 {}
impl Plain for i32 {}
impl Plain for u16 {}
impl Plain for i8 {}
impl Plain for u8 {}

/// This processor, threads taking turns in one of four orders.
pub(super) struct Host {
    pub(super) order: u32,
}

impl Machine for Host {
    /// In units of 16 bytes, as a device's memory is aligned.
    type Buffer = (Box<[u128]>, usize);

    fn upload_bytes(&self, bytes: &[u8]) -> Self::Buffer {
        let words = bytes.chunks(16).map(|chunk| {
            let mut word = [0xff; 16];
            word[..chunk.len()].copy_from_slice(chunk);
            u128::from_ne_bytes(word)
        });
        (words.collect(), bytes.len())
    }

    fn download_bytes(&self, (words, len): &Self::Buffer) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(*len);
        bytes
    }

    fn address(&self, (words, _): &Self::Buffer) -> Address {
        Address(words.as_ptr() as u64)
    }

    fn launch<A: Args>(&self, launch: &Launch<A>) {
        // SAFETY: the test gives buffers of the sizes that the launch's shapes ask for; nothing else sees them meanwhile.
        unsafe {
            rempart_simt::launch(
                &launch.kernel,
                launch.grid,
                launch.block,
                launch.shared,
                self.order,
                &launch.args,
            );
        }
    }
}

/// The first card of this machine.
#[cfg(feature = "cuda")]
pub(super) struct Card(std::sync::Arc<crate::cuda::device::Gpu>);

#[cfg(feature = "cuda")]
impl Card {
    pub(super) fn first() -> Self {
        let device = candle_core::CudaDevice::new_with_stream(0).unwrap();
        Self(crate::cuda::device::Gpu::of(&device).unwrap())
    }
}

#[cfg(feature = "cuda")]
impl Machine for Card {
    type Buffer = candle_core::cuda_backend::cudarc::driver::CudaSlice<u8>;

    fn upload_bytes(&self, bytes: &[u8]) -> Self::Buffer {
        self.0.upload(bytes).unwrap()
    }

    fn download_bytes(&self, buffer: &Self::Buffer) -> Vec<u8> {
        self.0.download(buffer).unwrap()
    }

    fn address(&self, buffer: &Self::Buffer) -> Address {
        self.0.address(buffer)
    }

    fn launch<A: Args>(&self, launch: &Launch<A>) {
        // SAFETY: as on the host.
        unsafe { self.0.launch(launch) }.unwrap();
    }
}

/// No number is further from what it should be than `tolerance` of the largest of them.
pub(super) fn assert_close(actual: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    let largest = expected
        .iter()
        .fold(1e-30, |largest: f64, x| largest.max(x.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let off = (f64::from(*a) - e).abs();
        assert!(off <= tolerance * largest, "{what}: element {i} is {a}, not {e}");
    }
}
