//! The pool of threads that the kernels share.

/// Sets the number of threads.
pub fn init(_threads: usize) {}

/// Calls `task` once for each number below `tasks`.
pub fn run(tasks: usize, task: impl Fn(usize) + Sync) {
    for i in 0..tasks {
        task(i);
    }
}
