//! What glibc keeps of freed memory, and gives back.

// Elsewhere tests may run in an emulator, whose memory would be measured.
#![cfg(all(target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
#![allow(
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::sync::{Mutex, PoisonError};

use rempart_kernels::{keep_freed_memory, trim_heap};

const MIB: usize = 1 << 20;
const PART: usize = 4096;

/// Both tests look at the memory of the whole process: one at a time, where they share it.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes of the process that are in memory.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn what_one_operation_frees_is_there_for_the_next() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    keep_freed_memory();
    let before = resident();
    let results: Vec<Vec<u8>> = (1..=3).map(|value| vec![value; 4 * MIB]).collect();
    assert!(results.iter().all(|result| result[MIB] == result[0]));
    drop(results);
    let kept = resident().saturating_sub(before);
    assert!(kept > 8 * MIB, "{kept} bytes of 12 MiB were kept");
}

#[test]
fn what_lies_between_parts_in_use_is_given_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut parts: Vec<Vec<u8>> = (0..64 * MIB / PART).map(|_| vec![1; PART]).collect();
    let mut index = 0;
    parts.retain(|_| {
        index += 1;
        index % 512 == 0
    });
    let full = resident();
    trim_heap();
    let given_back = full.saturating_sub(resident());
    assert!(
        given_back > 48 * MIB,
        "{given_back} bytes of 64 MiB were given back"
    );
    assert!(parts.iter().all(|part| part.iter().all(|&byte| byte == 1)));
}
