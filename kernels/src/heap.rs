//! What the allocator keeps of memory that was freed.

/// Allocations of so much are pages of their own. Most results of small models' operations are less: each would get new pages,
/// which the kernel fills with zeros. Layers of large caches of keys and values are more.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE_BYTES: libc::c_int = 16 << 20;
/// So much may lie free at the end of the heap: what one operation frees there, the next one asks for.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 64 << 20;

/// Has glibc keep what one operation frees for the next, by fixed limits. Its own move with what was freed before, and a step may
/// touch new pages with each operation. Called before there are threads.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the calls change numbers of the allocator, under its locks.
    unsafe {
        // What is large is pages of its own, for good: otherwise glibc takes it from the heap once something as large was freed,
        // and writes the zeros of a cache that nobody uses yet.
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Has all threads allocate from one heap. glibc otherwise makes one for each of up to eight threads a core, and of all but
/// the first it keeps what is free at the end: models that come and go leave some of themselves in each. Called before there
/// are threads.
pub fn use_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call changes a number of the allocator, under its locks.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives freed memory back: a card's to the card, and to the system where the allocator is glibc's, which by itself keeps what
/// lies between parts that are still in use; after a model was unloaded that is most of it.
pub fn trim_heap() {
    // What cannot be given back is missing in the next plan, which says so.
    #[cfg(feature = "cuda")]
    let _ = crate::cuda::trim();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: the call works on the allocator's own state alone, and takes its locks.
    unsafe {
        libc::malloc_trim(0);
    }
}
