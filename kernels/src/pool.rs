//! The one pool of threads that the kernels share: a dispatch costs about a microsecond.
//!
//! A call of [`run`] opens a job, whose tasks are dealt in equal shares; threads that spin enter it, take the tasks of their
//! own share and then of the others', so a core that is busy elsewhere does fewer of them. Cores are far apart, and a
//! counter that all of them write moves from one to the other at every task: each share has its own. The caller works
//! too and, once no task is left, closes the job and waits for those inside only: a thread that sleeps through a short
//! job delays nobody. Idle threads spin briefly, then sleep.

use std::{
    any::Any,
    hint::spin_loop,
    num::NonZero,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    ptr,
    sync::{
        Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// Longer than the gap between two operations of a step, shorter than a scheduler's time slice.
const SPIN: Duration = Duration::from_micros(50);
/// Spins between two looks at the clock, or before a waiting caller gives its core away.
const SPINS: usize = 256;

/// The job's state in one word: its number, whether it is open, and how many threads are inside.
const OPEN: u64 = 1 << 31;
const EPOCH: u64 = 1 << 32;
const INSIDE: u64 = OPEN - 1;

static POOL: OnceLock<Pool> = OnceLock::new();

/// Sets the number of threads, the caller's included, and starts the others. Returns whether it took effect: only the
/// first call does, and only before the first [`run`], which otherwise starts [`default_threads`].
pub fn init(threads: usize) -> bool {
    let mut first = false;
    POOL.get_or_init(|| {
        first = true;
        Pool::start(threads)
    });
    first
}

/// One thread for each physical core that the process may use.
pub fn default_threads() -> usize {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    // Two threads of one core share its arithmetic units, and the second one's barrier costs more than it brings.
    let smt =
        std::fs::read_to_string("/sys/devices/system/cpu/smt/active").is_ok_and(|text| text.trim() == "1");
    if smt { threads.div_ceil(2) } else { threads }
}

/// Threads that work on a job, the caller included.
pub fn threads() -> usize {
    pool().workers + 1
}

/// Calls `task` once for each number below `tasks`, in any order, on all threads, and returns when all are done. A
/// panic in a task reaches the caller after the others have stopped; remaining tasks are then not started. Within a
/// task, and while another thread runs a job, the tasks run on the calling thread.
pub fn run(tasks: usize, task: impl Fn(usize) + Sync) {
    let pool = pool();
    let turn = if tasks > 1 && pool.workers > 0 {
        pool.turn()
    } else {
        None
    };
    match turn {
        Some(turn) => pool.run(turn, &Job::new(tasks, &task)),
        None => (0..tasks).for_each(task),
    }
}

fn pool() -> &'static Pool {
    POOL.get_or_init(|| Pool::start(default_threads()))
}

/// One call of [`run`]; lives on its caller's stack.
struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// How many tasks of a thread's share have been taken; in lines of its own, two of which processors fetch at once.
#[derive(Default)]
#[repr(align(128))]
struct Share {
    taken: AtomicUsize,
}

impl<'a> Job<'a> {
    fn new(tasks: usize, task: &'a (dyn Fn(usize) + Sync)) -> Self {
        Self {
            task,
            tasks,
            panic: Mutex::new(None),
        }
    }

    /// Works as thread number `own`: takes tasks until none is left.
    fn work(&self, shares: &[Share], own: usize) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for i in (own..shares.len()).chain(0..own) {
                let (tasks, taken) = (split(self.tasks, shares.len(), i), &shares[i].taken);
                while taken.load(Ordering::Relaxed) < tasks.len() {
                    let next = taken.fetch_add(1, Ordering::Relaxed);
                    if next < tasks.len() {
                        (self.task)(tasks.start + next);
                    }
                }
            }
        }));
        if let Err(payload) = outcome {
            for share in shares {
                share.taken.store(self.tasks, Ordering::Relaxed);
            }
            self.panic
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert(payload);
        }
    }
}

/// Part `part` of `parts` nearly equal parts of `0..len`.
pub(crate) fn split(len: usize, parts: usize, part: usize) -> Range<usize> {
    let (size, rest) = (len / parts, len % parts);
    let start = part * size + part.min(rest);
    start..start + size + usize::from(part < rest)
}

/// What is sorted, in an order that gives each thread its share of the first ones to begin with.
pub(crate) fn deal<T>(sorted: &[T]) -> Vec<&T> {
    let threads = threads();
    (0..threads)
        .flat_map(|i| sorted.iter().skip(i).step_by(threads))
        .collect()
}

struct Pool {
    workers: usize,
    shared: &'static Shared,
}

/// What the pool's threads look at; never freed, as they never end.
#[derive(Default)]
struct Shared {
    state: AtomicU64,
    job: AtomicPtr<Job<'static>>,
    /// One for each thread, the callers' first.
    shares: Box<[Share]>,
    caller: Mutex<()>,
    asleep: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

impl Pool {
    fn start(threads: usize) -> Self {
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            shares: (0..threads.max(1)).map(|_| Share::default()).collect(),
            ..Shared::default()
        }));
        // A machine that refuses a thread leaves us with fewer, down to the caller alone: their shares go to the others.
        let workers = (1..threads)
            .map_while(|i| {
                thread::Builder::new()
                    .name(format!("kernel-{i}"))
                    .spawn(move || shared.serve(i))
                    .ok()
            })
            .count();
        Self { workers, shared }
    }

    /// The right to run a job, unless one is running.
    fn turn(&self) -> Option<MutexGuard<'static, ()>> {
        match self.shared.caller.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn run(&self, turn: MutexGuard<'_, ()>, job: &Job<'_>) {
        let shared = self.shared;
        shared
            .job
            .store(ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        for share in &shared.shares {
            share.taken.store(0, Ordering::Relaxed);
        }
        // Nobody is inside, so the low half is zero. SeqCst pairs with `sleep`: either we see the sleeper or it
        // sees the open job.
        let epoch = shared.state.load(Ordering::Relaxed).wrapping_add(EPOCH);
        shared.state.store(epoch | OPEN, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            drop(shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
            shared.wake.notify_all();
        }
        job.work(&shared.shares, 0);
        shared.state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut spins = 0_usize;
        while shared.state.load(Ordering::Acquire) & INSIDE > 0 {
            spins += 1;
            if spins.is_multiple_of(SPINS) {
                thread::yield_now();
            } else {
                spin_loop();
            }
        }
        drop(turn);
        if let Some(payload) = job.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            resume_unwind(payload);
        }
    }
}

impl Shared {
    /// Thread number `own` for ever.
    fn serve(&self, own: usize) {
        let mut done = 0;
        loop {
            let state = self.next_open(done);
            if self
                .state
                .compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            done = state / EPOCH;
            // SAFETY: while a thread is inside, the caller waits in `run`, which holds the job.
            unsafe { &*self.job.load(Ordering::Relaxed) }.work(&self.shares, own);
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an open job other than number `done`.
    fn next_open(&self, done: u64) -> u64 {
        let is_new = |state: u64| state & OPEN > 0 && state / EPOCH != done;
        let start = Instant::now();
        loop {
            for _ in 0..SPINS {
                let state = self.state.load(Ordering::Relaxed);
                if is_new(state) {
                    return state;
                }
                spin_loop();
            }
            if start.elapsed() > SPIN {
                self.sleep(is_new);
            }
        }
    }

    fn sleep(&self, is_new: impl Fn(u64) -> bool) {
        let mut guard = self.sleep.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while !is_new(self.state.load(Ordering::SeqCst)) {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }
}
