//! The pool under panics, nesting and several callers.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use rempart_kernels::pool;

fn count(tasks: usize) -> Vec<usize> {
    let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    pool::run(tasks, |i| {
        counts[i].fetch_add(1, Ordering::Relaxed);
    });
    counts.into_iter().map(AtomicUsize::into_inner).collect()
}

#[test]
fn every_task_runs_once() {
    for tasks in [0, 1, 2, 3, 7, 64, 1000] {
        assert_eq!(count(tasks), vec![1; tasks]);
    }
}

#[test]
fn many_small_jobs() {
    for round in 0..5000 {
        assert_eq!(count(round % 9), vec![1; round % 9]);
    }
}

#[test]
fn sleeping_threads_wake() {
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(2));
        assert_eq!(count(50), vec![1; 50]);
    }
}

#[test]
fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
    for bad in [0, 13, 63] {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool::run(64, |i| assert!(i != bad, "task {i}"));
        }));
        let message = outcome.expect_err("the panic is lost");
        assert_eq!(message.downcast_ref::<String>(), Some(&format!("task {bad}")));
        assert_eq!(count(64), vec![1; 64]);
    }
}

#[test]
fn tasks_may_run_jobs() {
    let total = AtomicUsize::new(0);
    pool::run(8, |_| {
        pool::run(8, |_| {
            pool::run(3, |_| {
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
    });
    assert_eq!(total.into_inner(), 192);
}

#[test]
fn several_callers() {
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for tasks in 0..200 {
                    assert_eq!(count(tasks), vec![1; tasks]);
                }
            });
        }
    });
}

#[test]
fn the_number_of_threads_is_set_once() {
    pool::run(2, |_| {});
    let before = pool::threads();
    assert!(!pool::init(before + 1));
    assert_eq!(pool::threads(), before);
}
