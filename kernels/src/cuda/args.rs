//! What a kernel is started with.

/// A place in a device's memory; 0 where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Address(pub(crate) u64);

/// The arguments of a kernel.
///
/// # Safety
/// Plain numbers, laid out as the kernel's structure of the same name.
pub(crate) unsafe trait Args: Copy + 'static {}

/// A kernel, its arguments and how many threads run it.
#[derive(Debug, Clone)]
pub(crate) struct Launch<A> {
    pub(crate) kernel: String,
    /// Blocks along x, y and z.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: u32,
    /// Bytes of shared memory of a block.
    pub(crate) shared: u32,
    pub(crate) args: A,
}

/// A number of elements as kernels count them. Tensors that exceed it do not fit a card.
pub(crate) fn count(len: usize) -> u32 {
    u32::try_from(len).expect("checked against the memory of a card. This is a bug.")
}
