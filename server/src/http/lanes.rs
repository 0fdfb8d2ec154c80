//! Threads that serve connections, each its own, where tokio's scheduler has its threads take over each other's work. A step of the
//! engine wakes hundreds of streams in one moment. Here each of them has its turn at the same place in every step, so that it does
//! not wait long for one token and shortly for the next; and a turn costs less.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// With one, a request that takes long to pass on would hold up all others.
const LANES_MIN: usize = 2;
/// One passes on some ten thousand tokens a second; beyond these, cores are the engine's.
const LANES_MAX: usize = 8;

/// Connections are dealt to them in turns. Their threads end with this value, and what they still serve with them.
pub struct Lanes {
    handles: Vec<Handle>,
    dealt: AtomicUsize,
    /// A thread ends when its sender is gone.
    ends: Vec<oneshot::Sender<Infallible>>,
}

impl Lanes {
    /// Starts a thread for each core, within limits.
    ///
    /// # Errors
    /// The system has no more threads, or no files.
    pub fn start(cores: usize) -> io::Result<Self> {
        let count = cores.clamp(LANES_MIN, LANES_MAX);
        // A kernel that doesn't tell (one of more cores than a set holds, say) places them as it likes.
        let allowed = sched_getaffinity(None).unwrap_or_default();
        let mut own = own_cores(&allowed, count).into_iter();
        let mut lanes = Self {
            handles: Vec::new(),
            dealt: AtomicUsize::new(0),
            ends: Vec::new(),
        };
        for number in 0..count {
            let mut builder = Builder::new_current_thread();
            builder.enable_all();
            if let Some(core) = own.next() {
                // Held only while it sleeps, so that it wakes there: what it then starts, a model's threads for one, may run anywhere.
                builder.on_thread_park(move || keep_to(&core));
                builder.on_thread_unpark(move || keep_to(&allowed));
            }
            let runtime = builder.build()?;
            lanes.handles.push(runtime.handle().clone());
            let (end, ended) = oneshot::channel();
            lanes.ends.push(end);
            thread::Builder::new()
                .name(format!("http-{number}"))
                .spawn(move || {
                    let _: Result<Infallible, _> = runtime.block_on(ended);
                    // Blocking work in flight is not waited for.
                    runtime.shutdown_background();
                })?;
        }
        Ok(lanes)
    }

    /// The lane whose turn it is.
    pub(super) fn next(&self) -> &Handle {
        let number = self.dealt.fetch_add(1, Ordering::Relaxed);
        &self.handles[number % self.handles.len()]
    }
}

/// A core for each lane, where there are as many: woken in one moment, two of them else share one for some milliseconds while
/// another rests. Where there are more, Linux finds room.
fn own_cores(allowed: &CpuSet, lanes: usize) -> Vec<CpuSet> {
    if allowed.count() as usize != lanes {
        return Vec::new();
    }
    let cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    let only = |core| {
        let mut set = CpuSet::new();
        set.set(core);
        set
    };
    cores.map(only).collect()
}

/// Has the caller's thread run on these cores alone. Where that is refused, it runs where it did.
fn keep_to(cores: &CpuSet) {
    let _ = sched_setaffinity(None, cores);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[tokio::test]
    async fn connections_are_dealt_in_turns_and_threads_end_with_their_lanes() {
        let lanes = Lanes::start(1).unwrap();
        let mut served = Vec::new();
        for _ in 0..4 {
            let here = async { thread::current().name().map(str::to_owned) };
            served.push(lanes.next().spawn(here).await.unwrap().unwrap());
        }
        assert_eq!(served, ["http-0", "http-1", "http-0", "http-1"]);
        let never = lanes.next().spawn(std::future::pending::<()>());
        drop(lanes);
        assert!(never.await.unwrap_err().is_cancelled());
        let many = Lanes::start(1000).unwrap();
        let threads = (0..LANES_MAX * 2).map(|_| many.next().id().to_string());
        assert_eq!(threads.collect::<BTreeSet<_>>().len(), LANES_MAX);
    }

    fn set(cores: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        for core in cores {
            set.set(*core);
        }
        set
    }

    #[test]
    fn lanes_have_cores_of_their_own_where_there_are_as_many() {
        assert!(own_cores(&set(&[1, 4, 700]), 3) == [set(&[1]), set(&[4]), set(&[700])]);
        assert!(own_cores(&set(&[1, 4, 700]), 2).is_empty());
        assert!(own_cores(&set(&[1]), 2).is_empty());
    }

    #[tokio::test]
    async fn a_lane_is_held_to_its_core_only_while_it_sleeps() {
        let allowed = sched_getaffinity(None).unwrap();
        let cores = allowed.count() as usize;
        let lanes = Lanes::start(cores).unwrap();
        let id = lanes.next().spawn(async { rustix::thread::gettid() });
        let id = id.await.unwrap();
        let held = if (LANES_MIN..=LANES_MAX).contains(&cores) {
            1
        } else {
            allowed.count()
        };
        // Nothing tells when it has gone to sleep.
        while sched_getaffinity(Some(id)).unwrap().count() != held {
            tokio::task::yield_now().await;
        }
        let awake = lanes.handles[0].spawn(async { sched_getaffinity(None).unwrap() });
        assert!(awake.await.unwrap() == allowed);
        let blocking = lanes.handles[0].spawn_blocking(|| sched_getaffinity(None).unwrap());
        assert!(blocking.await.unwrap() == allowed);
    }
}
