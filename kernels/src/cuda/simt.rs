//! Kernels on the host: `cuda/shim`.

use std::{ffi::CString, os::raw::c_char};

use super::args::{Args, Launch};

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

/// Runs a kernel whose addresses are the host's; `order`: see `simt.cpp`.
///
/// # Safety
/// The kernel reads and writes where its arguments point.
pub(crate) unsafe fn launch<A: Args>(launch: &Launch<A>, order: u32) {
    let name = CString::new(launch.kernel.as_str()).expect("a kernel's name has no zero. This is a bug.");
    // SAFETY: `Args` are laid out as the kernel's; the rest is the caller's promise.
    let status = unsafe {
        simt_launch(
            name.as_ptr(),
            launch.grid.as_ptr(),
            launch.block,
            launch.shared,
            order,
            (&raw const launch.args).cast(),
            size_of::<A>(),
        )
    };
    assert!(status == 0, "{}: status {status}", launch.kernel);
}
