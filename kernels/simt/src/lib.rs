//! CUDA kernels on the host: `kernels/cuda/shim`. A crate of its own, so that only tests build it, and empty but on x86-64: one
//! processor's tests say enough.
//!
//! Where `REMPART_SIMT_LIBRARY` names a shared object, the kernels are that one's: compiled with a sanitizer, or with a fault
//! that a test must find. No test is built anew for it.

#![cfg(target_arch = "x86_64")]

use std::{
    ffi::{CStr, CString, c_char, c_void},
    sync::OnceLock,
};

const LIBRARY: &str = "REMPART_SIMT_LIBRARY";

type LaunchEntry = unsafe extern "C" fn(
    name: *const c_char,
    grid: *const u32,
    block: u32,
    shared: u32,
    order: u32,
    args: *const u8,
    args_bytes: usize,
) -> i32;
type KernelEntry = unsafe extern "C" fn(number: usize, threads_max: *mut u32) -> *const c_char;

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
    fn simt_kernel(number: usize, threads_max: *mut u32) -> *const c_char;
}

/// What the compiled kernels offer: `simt.cpp`.
struct Entries {
    launch: LaunchEntry,
    kernel: KernelEntry,
}

fn entries() -> &'static Entries {
    static ENTRIES: OnceLock<Entries> = OnceLock::new();
    #[expect(
        clippy::disallowed_methods,
        reason = "tests are told in the environment which kernels to test"
    )]
    let library = std::env::var(LIBRARY);
    ENTRIES.get_or_init(|| match library {
        Ok(library) => load(&library),
        Err(_) => Entries {
            launch: simt_launch,
            kernel: simt_kernel,
        },
    })
}

/// The entries of a shared object, which stays loaded.
fn load(library: &str) -> Entries {
    let path = CString::new(library).expect("a path has no zero");
    // SAFETY: the object's initialisers register its kernels and do nothing else.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(
        !handle.is_null(),
        "{LIBRARY}: {library} cannot be loaded: {}",
        reason()
    );
    let symbol = |name: &CStr| -> *mut c_void {
        // SAFETY: the handle is of an object that stays loaded.
        let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
        assert!(
            !found.is_null(),
            "{LIBRARY}: {library} has no {}",
            name.to_string_lossy()
        );
        found
    };
    let (launch, kernel) = (symbol(c"simt_launch"), symbol(c"simt_kernel"));
    // SAFETY: the functions of `simt.cpp` have these types.
    unsafe {
        Entries {
            launch: std::mem::transmute::<*mut c_void, LaunchEntry>(launch),
            kernel: std::mem::transmute::<*mut c_void, KernelEntry>(kernel),
        }
    }
}

fn reason() -> String {
    // SAFETY: a text that the loader keeps until its next call, or null.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

/// A kernel that was compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    pub name: String,
    /// Most threads of a block.
    pub threads_max: u32,
}

/// Every kernel, by name.
pub fn kernels() -> Vec<Kernel> {
    let one = |number| {
        let mut threads_max = 0;
        // SAFETY: a place for a number; the name is a constant.
        let name = unsafe { (entries().kernel)(number, &raw mut threads_max) };
        (!name.is_null()).then(|| {
            // SAFETY: it is a constant that ends with a zero.
            let name = unsafe { CStr::from_ptr(name) };
            Kernel {
                name: name.to_string_lossy().into_owned(),
                threads_max,
            }
        })
    };
    (0..).map_while(one).collect()
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
        (entries().launch)(
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
