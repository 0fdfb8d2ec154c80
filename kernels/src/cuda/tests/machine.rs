//! Where kernels run in tests, and how near their numbers must be.

use std::{
    alloc::{Layout, alloc, dealloc},
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ptr::NonNull,
};

use crate::cuda::{Address, Args, Launch};

/// Orders in which threads of the host take turns: forwards, backwards, and two at random.
const ORDERS: u32 = 4;
/// Shared memory of a block, of all cards since `sm_80`: what those of `sm_86`, 89 and 120 have, less what the driver keeps.
const SHARED_MAX: u32 = 99 << 10;

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

    /// Orders in which threads can be made to run.
    fn orders(&self) -> u32;
    fn choose(&self, order: u32);

    /// What `run` makes, which must be the same bits in every order.
    fn in_every_order<const N: usize>(&self, run: impl Fn() -> [Self::Buffer; N]) -> [Self::Buffer; N] {
        let bytes = |made: &[Self::Buffer; N]| made.each_ref().map(|buffer| self.download_bytes(buffer));
        self.choose(0);
        let first = run();
        let expected = bytes(&first);
        for order in 1..self.orders() {
            self.choose(order);
            assert!(
                bytes(&run()) == expected,
                "order {order} of threads makes a difference"
            );
        }
        self.choose(0);
        first
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
impl Plain for u16 {}
impl Plain for i8 {}
impl Plain for u8 {}

/// This processor, threads taking turns in an order that changes.
#[derive(Default)]
pub(super) struct Host {
    order: Cell<u32>,
    launches: RefCell<BTreeMap<String, u64>>,
}

impl Host {
    pub(super) fn in_order(order: u32) -> Self {
        let host = Self::default();
        host.choose(order);
        host
    }

    fn launches(&self, kernel: &str) -> u64 {
        self.launches.borrow().get(kernel).copied().unwrap_or(0)
    }
}

/// Bytes at a multiple of 16, as those of a device are, and no more of them than were asked for: what an address sanitizer
/// knows an end of.
pub(super) struct HostBuffer {
    start: NonNull<u8>,
    layout: Layout,
    len: usize,
}

impl HostBuffer {
    fn new(bytes: &[u8]) -> Self {
        let layout = Layout::from_size_align(bytes.len().max(1), 16).unwrap();
        // SAFETY: of at least one byte.
        let start = NonNull::new(unsafe { alloc(layout) }).unwrap();
        // SAFETY: as many bytes as that.
        unsafe { start.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        Self {
            start,
            layout,
            len: bytes.len(),
        }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: made in `new`.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Machine for Host {
    type Buffer = HostBuffer;

    fn upload_bytes(&self, bytes: &[u8]) -> Self::Buffer {
        HostBuffer::new(bytes)
    }

    fn download_bytes(&self, buffer: &Self::Buffer) -> Vec<u8> {
        // SAFETY: bytes that were written when the buffer was made.
        unsafe { std::slice::from_raw_parts(buffer.start.as_ptr(), buffer.len) }.to_vec()
    }

    fn address(&self, buffer: &Self::Buffer) -> Address {
        Address(buffer.start.as_ptr() as u64)
    }

    fn launch<A: Args>(&self, launch: &Launch<A>) {
        assert!(
            launch.shared <= SHARED_MAX,
            "{}: {} bytes of shared memory, more than every card has",
            launch.kernel,
            launch.shared
        );
        *self
            .launches
            .borrow_mut()
            .entry(launch.kernel.clone())
            .or_default() += 1;
        // SAFETY: the test gives buffers of the sizes that the launch's shapes ask for; nothing else sees them meanwhile.
        unsafe {
            rempart_simt::launch(
                &launch.kernel,
                launch.grid,
                launch.block,
                launch.shared,
                self.order.get(),
                &launch.args,
            );
        }
    }

    fn orders(&self) -> u32 {
        ORDERS
    }

    fn choose(&self, order: u32) {
        self.order.set(order);
    }
}

/// Cases `0 .. cases()` of a kernel on this processor, each in every order of threads.
pub(super) fn prove_on_host(kernel: &str, case: impl Fn(&Host, u64)) {
    let host = Host::default();
    for seed in 0..super::cases() {
        case(&host, seed);
        assert!(
            host.launches(kernel) >= u64::from(ORDERS) * (seed + 1),
            "case {seed} does not start {kernel} in every order"
        );
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
        self.0.stream().clone_dtoh(buffer).unwrap()
    }

    fn address(&self, buffer: &Self::Buffer) -> Address {
        self.0.address(buffer)
    }

    fn launch<A: Args>(&self, launch: &Launch<A>) {
        // SAFETY: as on the host.
        unsafe { self.0.launch(launch) }.unwrap();
    }

    fn orders(&self) -> u32 {
        1
    }

    fn choose(&self, _: u32) {}
}

/// The same cases on a card.
#[cfg(feature = "cuda")]
pub(super) fn prove_on_card(case: impl Fn(&Card, u64)) {
    let card = Card::first();
    for seed in 0..super::cases() {
        case(&card, seed);
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

/// The whole of the numbers is no further from what it should be than `tolerance` of it, by Euclid's norm.
pub(super) fn assert_near(actual: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut actual.iter().zip(expected).map(|(a, e)| f64::from(*a) - e));
    let all = norm(&mut expected.iter().copied());
    assert!(
        off <= tolerance * all,
        "{what}: off by {:e} of the whole",
        off / all
    );
}
