//! CUDA kernels on the host: `kernels/cuda/shim`. A crate of its own, so that only tests build it, and empty but on x86-64: one
//! processor's tests say enough.

#![cfg(target_arch = "x86_64")]

use std::{ffi::CString, os::raw::c_char};

unsafe extern "C" {
    fn simt_launch(
        name: *const c_char,
        grid: *const u32,
        block: u32,
        shared: u32,
        order: u32,
        args: *const u8,
        args_bytes: usize,
    ) -> i32;
}

/// Runs a kernel whose addresses are the host's to its end: `grid` blocks along x, y and z of `block` threads, which take turns
/// in `order` (0 forwards, 1 backwards, others at random). Panics where there is no such kernel or it cannot be started so.
///
/// # Safety
/// `args` is what the kernel takes, and it reads and writes where that points.
pub unsafe fn launch<A: Copy>(kernel: &str, grid: [u32; 3], block: u32, shared: u32, order: u32, args: &A) {
    let name = CString::new(kernel).expect("a kernel's name has no zero. This is a bug.");
    // SAFETY: the caller's promise.
    let status = unsafe {
        simt_launch(
            name.as_ptr(),
            grid.as_ptr(),
            block,
            shared,
            order,
            std::ptr::from_ref(args).cast(),
            size_of::<A>(),
        )
    };
    assert!(status == 0, "{kernel}: status {status}");
}
