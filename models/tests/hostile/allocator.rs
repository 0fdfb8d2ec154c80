//! Counts what the current thread allocates and how long it computes.

#![expect(
    unsafe_code,
    reason = "an allocator and a clock of the system have no safe interface"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

thread_local! {
    static USED: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn grow(bytes: usize) {
    // A thread that is ending has no counters left; it is not one that is measured.
    let _ = USED.try_with(|used| {
        used.set(used.get().saturating_add(bytes));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(used.get())));
    });
}

fn shrink(bytes: usize) {
    let _ = USED.try_with(|used| used.set(used.get().saturating_sub(bytes)));
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old block may live until the new one is filled.
        grow(size);
        shrink(layout.size());
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Starts a measurement: what this thread holds now.
pub(crate) fn start() -> usize {
    let used = USED.get();
    PEAK.set(used);
    used
}

/// The most that this thread held since `start`, beyond what it held then.
pub(crate) fn peak_since(start: usize) -> usize {
    PEAK.get().saturating_sub(start)
}

/// Processor time of this thread, which other work on the machine does not lengthen.
pub(crate) fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a live timespec that nothing else uses.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "every Linux and macOS has this clock");
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

#[test]
fn what_is_allocated_is_counted() {
    let before = start();
    drop(std::hint::black_box(vec![1_u8; 1 << 20]));
    assert!(peak_since(before) >= 1 << 20);
}
