//! What a machine can do at most: bytes that all threads read from memory, and products that they make in registers. Other
//! load lowers a roof and what stands under it at different moments: measure both in one process, on an idle machine.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use crate::{cpu::Peak, pool};

/// Words of the memory that is read.
const MEMORY_WORDS: usize = 128 << 20;
/// How often a thread repeats the few instructions of a peak.
const TURNS: usize = 1 << 21;
/// Parts of a task for each thread, so that a late one does not decide.
const PARTS: usize = 8;

/// What bounds every kernel.
pub struct Roof {
    /// Read from memory, per second.
    pub bytes: f64,
    /// Multiplied and added, per second.
    pub products: f64,
    /// The instruction that makes most of them.
    pub instruction: &'static str,
}

impl Roof {
    /// Measures both, in a second or two.
    pub fn measure() -> Self {
        let (peak, memory) = (Peak::best(), Memory::take());
        let products = pool::threads() * TURNS * peak.products;
        let seconds = fastest(5, || pool::run(pool::threads(), |_| peak.run(TURNS)));
        Self {
            bytes: memory.bytes() as f64 / fastest(5, || memory.read()),
            products: products as f64 / seconds,
            instruction: peak.name,
        }
    }
}

/// The shortest of some runs, in seconds: what the work takes where nothing disturbs it.
pub fn fastest(runs: usize, mut work: impl FnMut()) -> f64 {
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    (0..runs)
        .map(|_| time(&mut work))
        .min()
        .unwrap_or_default()
        .max(Duration::from_nanos(1))
        .as_secs_f64()
}

/// The median of some runs, in seconds.
pub fn median(runs: usize, mut work: impl FnMut()) -> f64 {
    in_turns(runs, &mut work, || ()).0
}

/// The medians of as many runs of two works in turns, in seconds: what compares them where the machine's speed changes
/// within seconds.
pub fn in_turns(runs: usize, mut first: impl FnMut(), mut second: impl FnMut()) -> (f64, f64) {
    let (first, second): (Vec<_>, Vec<_>) = (0..runs)
        .map(|_| (fastest(1, &mut first), fastest(1, &mut second)))
        .unzip();
    let median = |mut seconds: Vec<f64>| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    (median(first), median(second))
}

/// A gigabyte, which no cache holds.
pub struct Memory(Vec<u64>);

impl Memory {
    /// Takes it.
    pub fn take() -> Self {
        Self((0..MEMORY_WORDS as u64).collect())
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        size_of_val(self.0.as_slice())
    }

    /// Reads it on all threads.
    pub fn read(&self) {
        let parts = pool::threads() * PARTS;
        let part = self.0.len().div_ceil(parts);
        pool::run(parts, |i| {
            let end = self.0.len();
            let part = &self.0[(i * part).min(end)..((i + 1) * part).min(end)];
            black_box(part.iter().fold(0, |sum: u64, x| sum ^ x));
        });
    }
}
