//! Ranks that are threads of one process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use candle_core::{Device, Tensor};
use rempart_kernels::op;

use super::{Collective, Error, Shard};
use crate::Result;

/// One rank of a group of threads. Dropping it ends the group.
#[derive(Debug)]
pub struct InProcess {
    group: Arc<Group>,
    shard: Shard,
    /// Exchanges so far.
    exchanges: AtomicUsize,
}

#[derive(Debug)]
struct Group {
    of: usize,
    timeout: Duration,
    meeting: Mutex<Meeting>,
    /// All have arrived, or somebody never will.
    changed: Condvar,
    /// What each rank brings, for every other exchange: a rank that is ahead writes one while others still read the other,
    /// and cannot be two ahead.
    brought: [Box<[RwLock<Vec<f32>>]>; 2],
}

#[derive(Debug, Default)]
struct Meeting {
    /// Meetings that all have reached.
    number: u64,
    arrived: usize,
    /// Why there are no more of them.
    stopped: Option<Error>,
}

impl InProcess {
    /// The ranks of a group of `of`, each for a thread of its own. A rank that waits longer than `timeout` for another
    /// ends the group.
    ///
    /// # Errors
    /// There are none, or more than [`super::RANKS_MAX`].
    pub fn group(of: usize, timeout: Duration) -> Result<Vec<Self>, Error> {
        let shards = Shard::all(of)?;
        let brought = || (0..of).map(|_| RwLock::default()).collect();
        let group = Arc::new(Group {
            of,
            timeout,
            meeting: Mutex::default(),
            changed: Condvar::new(),
            brought: [brought(), brought()],
        });
        let rank = |shard| Self {
            group: Arc::clone(&group),
            shard,
            exchanges: AtomicUsize::new(0),
        };
        Ok(shards.into_iter().map(rank).collect())
    }

    /// Brings `own` and waits for the others. What all have brought can be read until the next exchange but one.
    fn exchange(&self, own: &[f32]) -> Result<Vec<RwLockReadGuard<'_, Vec<f32>>>, Error> {
        let turn = self.exchanges.fetch_add(1, Ordering::Relaxed) % 2;
        let brought = &self.group.brought[turn];
        let mut place = brought[self.shard.rank()]
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        place.clear();
        place.extend_from_slice(own);
        drop(place);
        self.group.meet(self.shard)?;
        Ok(brought.iter().map(read).collect())
    }

    /// Ends the group because ranks have brought what does not fit together.
    fn refuse(&self, what: &str) -> Error {
        let reason = format!("rank {} was brought {what} of another shape", self.shard.rank());
        self.group.stop(Error::Stopped(reason))
    }
}

impl Collective for InProcess {
    fn shard(&self) -> Shard {
        self.shard
    }

    fn all_reduce(&self, x: &Tensor) -> Result<()> {
        let sum = |own: &mut [f32]| {
            let parts = self.exchange(own)?;
            if parts.iter().any(|part| part.len() != own.len()) {
                return Err(self.refuse("summands"));
            }
            own.fill(0.0);
            for part in parts {
                for (sum, x) in own.iter_mut().zip(part.iter()) {
                    *sum += x;
                }
            }
            Ok(())
        };
        Ok(op::edit(x, sum)??)
    }

    fn all_gather(&self, x: Tensor, columns: usize) -> Result<Tensor> {
        let (n, _) = x.dims2()?;
        let gathered = op::edit(&x, |own| -> Result<_, Error> {
            let parts = self.exchange(own)?;
            let widths: Vec<usize> = Shard::all(self.shard.of())?
                .iter()
                .map(|shard| shard.part(columns).len())
                .collect();
            if parts
                .iter()
                .zip(&widths)
                .any(|(part, width)| part.len() != n * width)
            {
                return Err(self.refuse("columns"));
            }
            let mut all = Vec::with_capacity(n * columns);
            for row in 0..n {
                for (part, width) in parts.iter().zip(&widths) {
                    all.extend_from_slice(&part[row * width..][..*width]);
                }
            }
            Ok(all)
        })??;
        Ok(Tensor::from_vec(gathered, (n, columns), &Device::Cpu)?)
    }

    fn stop(&self, reason: &str) {
        let reason = format!("rank {} failed: {reason}", self.shard.rank());
        self.group.stop(Error::Stopped(reason));
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        let reason = format!("rank {} is gone", self.shard.rank());
        self.group.stop(Error::Stopped(reason));
    }
}

impl Group {
    /// Waits until all ranks are here.
    fn meet(&self, shard: Shard) -> Result<(), Error> {
        let mut meeting = self.lock();
        if let Some(error) = &meeting.stopped {
            return Err(error.clone());
        }
        meeting.arrived += 1;
        if meeting.arrived == self.of {
            meeting.arrived = 0;
            meeting.number += 1;
            self.changed.notify_all();
            return Ok(());
        }
        let number = meeting.number;
        let waits = |meeting: &mut Meeting| meeting.number == number && meeting.stopped.is_none();
        let waited = self.changed.wait_timeout_while(meeting, self.timeout, waits);
        let (meeting, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if meeting.number != number {
            return Ok(());
        }
        let stopped = meeting.stopped.clone();
        drop(meeting);
        Err(stopped.unwrap_or_else(|| {
            let waited = self.timeout.as_secs_f32();
            let reason = format!("rank {} has waited {waited} s for another", shard.rank());
            self.stop(Error::Stopped(reason))
        }))
    }

    /// Ends the group, and tells why it has ended: the first reason stays.
    fn stop(&self, error: Error) -> Error {
        let reason = self.lock().stopped.get_or_insert(error).clone();
        self.changed.notify_all();
        reason
    }

    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(place: &RwLock<Vec<f32>>) -> RwLockReadGuard<'_, Vec<f32>> {
    place.read().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    /// Runs `work` as each of `of` ranks, and returns what they make in order of rank.
    fn ranks<T: Send>(of: usize, timeout: Duration, work: impl Fn(InProcess) -> T + Sync) -> Vec<T> {
        let ranks = InProcess::group(of, timeout).unwrap();
        thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|rank| scope.spawn(move || work(rank)))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn tensor(values: &[f32], rows: usize) -> Tensor {
        Tensor::from_slice(values, (rows, values.len() / rows), &Device::Cpu).unwrap()
    }

    #[test]
    fn sums_are_in_the_order_of_ranks_whoever_comes_first() {
        // Of these, added in another order, nothing or one is left.
        let values = [1.0e8_f32, 1.0, -1.0e8, 1.0];
        for late in 0..4 {
            let sums = ranks(4, LONG, |rank| {
                let own = rank.shard().rank();
                for round in 0..50 {
                    if own == late && round % 10 == 0 {
                        thread::sleep(Duration::from_millis(1));
                    }
                    let x = tensor(&[values[own], round as f32], 1);
                    rank.all_reduce(&x).unwrap();
                    assert_eq!(x.to_vec2::<f32>().unwrap(), [[1.0, 4.0 * round as f32]]);
                }
                // Nobody may leave before all have met.
                rank.all_reduce(&tensor(&[0.0], 1)).unwrap();
                rank
            });
            assert_eq!(sums.len(), 4);
        }
    }

    #[test]
    fn columns_come_in_the_order_of_ranks() {
        let gathered = ranks(3, LONG, |rank| {
            let part = rank.shard().part(5);
            let row = |row: usize| part.clone().map(move |column| (10 * row + column) as f32);
            let own: Vec<f32> = row(0).chain(row(1)).collect();
            let all = rank.all_gather(tensor(&own, 2), 5).unwrap();
            (all.to_vec2::<f32>().unwrap(), rank)
        });
        for (all, _) in gathered {
            assert_eq!(all, [[0.0, 1.0, 2.0, 3.0, 4.0], [10.0, 11.0, 12.0, 13.0, 14.0]]);
        }
    }

    #[test]
    fn a_rank_that_leaves_or_fails_wakes_the_others_for_good() {
        for fails in [true, false] {
            let began = Instant::now();
            let errors = ranks(3, LONG, |rank| {
                if rank.shard().rank() == 1 {
                    if fails {
                        rank.stop("no memory");
                    }
                    return None;
                }
                let x = tensor(&[1.0], 1);
                let first = rank.all_reduce(&x).unwrap_err().to_string();
                assert_eq!(first, rank.all_reduce(&x).unwrap_err().to_string());
                Some((first, rank))
            });
            let expected = if fails {
                "rank 1 failed: no memory"
            } else {
                "rank 1 is gone"
            };
            for (error, _) in errors.into_iter().flatten() {
                assert!(error.contains(expected), "{error}");
            }
            assert!(began.elapsed() < LONG / 2);
        }
    }

    #[test]
    fn a_rank_that_hangs_is_waited_for_no_longer_than_agreed() {
        let (tell, told) = mpsc::channel();
        let told = Mutex::new(told);
        let hanging = ranks(2, Duration::from_millis(50), |rank| {
            if rank.shard().rank() == 1 {
                // It comes once the other has given up. If that never happens they meet, and the test fails.
                let _ = told.lock().unwrap().recv_timeout(LONG);
            }
            let began = Instant::now();
            let error = rank.all_reduce(&tensor(&[1.0], 1)).unwrap_err();
            assert!(began.elapsed() < LONG / 6);
            let _ = tell.send(());
            (error.to_string(), rank)
        });
        for (error, _) in hanging {
            assert!(error.contains("rank 0 has waited 0.05 s"), "{error}");
        }
    }

    #[test]
    fn shapes_that_differ_are_refused_on_every_rank() {
        let errors = ranks(2, LONG, |rank| {
            let x = tensor(&[1.0, 2.0][..=rank.shard().rank()], 1);
            (rank.all_reduce(&x).unwrap_err().to_string(), rank)
        });
        for (error, _) in errors {
            assert!(error.contains("another shape"), "{error}");
        }
    }
}
