//! Ranks that are processes of one machine, each joined to the first by a socket.
//!
//! The first rank gives the steps: it sends each step's input to the others, adds up what they send and sends them the
//! sums. A process that is gone closes its socket, so that nobody waits for it; one that hangs is waited for no longer than
//! agreed. What is sent is requests' content, and is never logged.

mod frame;

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use candle_core::{Device, Tensor};
use rempart_kernels::op;

pub use self::frame::StepInput;
use self::frame::{Kind, Unexpected};
use super::{Collective, Error, Shard};
use crate::{ForwardInput, Result};

/// One rank's end of the sockets. Dropping it ends the group.
#[derive(Debug)]
pub struct Processes {
    shard: Shard,
    links: Mutex<Links>,
}

#[derive(Debug)]
struct Links {
    /// Of the first rank: one to each of the others, in order; of another: the one to the first.
    streams: Vec<UnixStream>,
    timeout: Duration,
    /// A frame on its way.
    buffer: Vec<u8>,
    /// Why nothing is exchanged any more.
    stopped: Option<Error>,
}

impl Processes {
    /// The first rank, with a socket to each of the others, in order. It waits for no answer longer than `timeout`.
    ///
    /// # Errors
    /// There are too many, or the sockets refuse the timeout.
    pub fn first(others: Vec<UnixStream>, timeout: Duration) -> Result<Self> {
        Self::new(Shard::new(0, others.len() + 1)?, others, timeout)
    }

    /// Another rank, with its socket to the first.
    ///
    /// # Errors
    /// The socket refuses the timeout.
    pub fn other(shard: Shard, first: UnixStream, timeout: Duration) -> Result<Self> {
        Self::new(shard, vec![first], timeout)
    }

    fn new(shard: Shard, streams: Vec<UnixStream>, timeout: Duration) -> Result<Self> {
        let links = Links {
            streams,
            timeout,
            buffer: Vec::new(),
            stopped: None,
        };
        links
            .limit(Some(timeout))
            .map_err(|error| Error::Stopped(error.to_string()))?;
        let links = Mutex::new(links);
        Ok(Self { shard, links })
    }

    /// Tells the first rank that this one has loaded its part.
    ///
    /// # Errors
    /// The first rank is gone.
    pub fn tell_ready(&self) -> Result<()> {
        self.exchange(|links| {
            frame::write_into(&mut links.buffer, Kind::Ready, |_| {});
            links.send_all()
        })
    }

    /// Waits until all others have loaded their parts, however long that takes.
    ///
    /// # Errors
    /// One of them has failed, and says why.
    pub fn wait_ready(&self) -> Result<()> {
        self.exchange(|links| {
            links.limit(None).map_err(|error| (0, error.into()))?;
            for (at, stream) in links.streams.iter_mut().enumerate() {
                frame::read_ready(stream, &mut links.buffer).map_err(|error| (at, error))?;
            }
            links
                .limit(Some(links.timeout))
                .map_err(|error| (0, error.into()))
        })
    }

    /// Gives a step to the other ranks, which then compute it as this one does.
    ///
    /// # Errors
    /// One of them is gone, or does not take it in time.
    pub fn give(&self, input: &ForwardInput<'_>) -> Result<()> {
        self.exchange(|links| {
            StepInput::encode(input, &mut links.buffer);
            links.send_all()
        })
    }

    /// Waits for the next step of the first rank; `None` once that is gone.
    ///
    /// # Errors
    /// What came is no step.
    pub fn take(&self) -> Result<Option<StepInput>> {
        self.exchange(|links| {
            links.limit(None).map_err(|error| (0, error.into()))?;
            let [first] = links.streams.as_mut_slice() else {
                return Err((0, Unexpected::Own("the first rank takes no steps: it gives them")));
            };
            let step = match frame::read_step(first, &mut links.buffer) {
                Ok(step) => step,
                Err(Unexpected::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(None);
                }
                Err(error) => return Err((0, error)),
            };
            links
                .limit(Some(links.timeout))
                .map_err(|error| (0, error.into()))?;
            Ok(Some(step))
        })
    }

    /// Ends the group in peace: the others have no further step to wait for.
    pub fn close(&self) {
        self.lock().stop("the model is unloaded", false);
    }

    /// Whether nothing can be exchanged any more.
    pub fn is_stopped(&self) -> bool {
        self.lock().stopped.is_some()
    }

    /// Does what needs the sockets; the first failure ends the group.
    fn exchange<T>(&self, work: impl FnOnce(&mut Links) -> Result<T, (usize, Unexpected)>) -> Result<T> {
        let mut links = self.lock();
        if let Some(error) = &links.stopped {
            return Err(error.clone().into());
        }
        work(&mut links).map_err(|(at, error)| {
            // The first rank's sockets are those of ranks 1, 2, …
            let rank = if self.shard.leads() { at + 1 } else { 0 };
            let reason = match links.told(at, error) {
                Unexpected::Own(what) => what.to_owned(),
                Unexpected::Stopped(reason) => format!("rank {rank} failed: {reason}"),
                Unexpected::Other(what) => format!("rank {rank} sent {what}"),
                Unexpected::Io(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                        let waited = links.timeout.as_secs_f32();
                        format!("rank {rank} has not answered for {waited} s")
                    }
                    io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::ConnectionReset => {
                        format!("rank {rank} is gone")
                    }
                    _ => format!("the socket to rank {rank}: {error}"),
                },
            };
            links.stop(&reason, true).into()
        })
    }

    fn lock(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collective for Processes {
    fn shard(&self) -> Shard {
        self.shard
    }

    fn all_reduce(&self, x: &Tensor) -> Result<()> {
        let leads = self.shard.leads();
        let sum = |own: &mut [f32]| {
            self.exchange(|links| {
                if leads {
                    links.add_up(own)
                } else {
                    links.ask(own)?;
                    let Links { streams, buffer, .. } = links;
                    frame::read_numbers(&mut streams[0], buffer, own.len()).map_err(|error| (0, error))?;
                    own.iter_mut()
                        .zip(frame::numbers(buffer))
                        .for_each(|(x, sum)| *x = sum);
                    Ok(())
                }
            })
        };
        op::edit(x, sum)?
    }

    fn all_gather(&self, x: Tensor, columns: usize) -> Result<Tensor> {
        let (n, _) = x.dims2()?;
        let widths: Vec<usize> = Shard::all(self.shard.of())?
            .iter()
            .map(|shard| shard.part(columns).len())
            .collect();
        let leads = self.shard.leads();
        let gathered = op::edit(&x, |own| {
            self.exchange(|links| {
                if leads {
                    return links.put_together(own, n, &widths);
                }
                links.ask(own)?;
                let Links { streams, buffer, .. } = links;
                frame::read_numbers(&mut streams[0], buffer, n * columns).map_err(|error| (0, error))?;
                Ok(frame::numbers(buffer).collect())
            })
        })??;
        Ok(Tensor::from_vec(gathered, (n, columns), &Device::Cpu)?)
    }

    fn stop(&self, reason: &str) {
        self.lock().stop(reason, true);
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.close();
    }
}

impl Links {
    /// How long a read or a write of any of the sockets may wait.
    fn limit(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.streams.iter().try_for_each(|stream| {
            stream.set_read_timeout(timeout)?;
            stream.set_write_timeout(Some(self.timeout))
        })
    }

    /// What ended the exchange: who closed their socket, so that it can't be written to, may have said why before.
    fn told(&mut self, at: usize, error: Unexpected) -> Unexpected {
        if let Unexpected::Io(closed) = &error
            && matches!(
                closed.kind(),
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
            )
            && let Some(stream) = self.streams.get_mut(at)
            && let Err(reason @ Unexpected::Stopped(_)) = frame::read_stop(stream, &mut self.buffer)
        {
            return reason;
        }
        error
    }

    /// Sends what is in the buffer to all others.
    fn send_all(&mut self) -> Result<(), (usize, Unexpected)> {
        for (at, stream) in self.streams.iter_mut().enumerate() {
            frame::send(stream, &self.buffer).map_err(|error| (at, error.into()))?;
        }
        Ok(())
    }

    /// Sends numbers to the first rank.
    fn ask(&mut self, own: &[f32]) -> Result<(), (usize, Unexpected)> {
        frame::write_numbers(&mut self.buffer, own);
        self.send_all()
    }

    /// Adds to `own` what the others send, in their order, and sends them the sum.
    fn add_up(&mut self, own: &mut [f32]) -> Result<(), (usize, Unexpected)> {
        for (at, stream) in self.streams.iter_mut().enumerate() {
            frame::read_numbers(stream, &mut self.buffer, own.len()).map_err(|error| (at, error))?;
            own.iter_mut()
                .zip(frame::numbers(&self.buffer))
                .for_each(|(sum, x)| *sum += x);
        }
        frame::write_numbers(&mut self.buffer, own);
        self.send_all()
    }

    /// Puts the columns of `own` `[n, widths[0]]` and those that the others send side by side, and sends them all.
    fn put_together(
        &mut self,
        own: &[f32],
        n: usize,
        widths: &[usize],
    ) -> Result<Vec<f32>, (usize, Unexpected)> {
        let columns: usize = widths.iter().sum();
        let mut all = vec![0.0; n * columns];
        if own.len() != n * widths[0] {
            return Err((
                0,
                Unexpected::Own("the first rank's columns are not as wide as its part"),
            ));
        }
        for (row, own) in all.chunks_exact_mut(columns).zip(own.chunks_exact(widths[0])) {
            row[..widths[0]].copy_from_slice(own);
        }
        let mut start = widths[0];
        for (at, (stream, width)) in self.streams.iter_mut().zip(&widths[1..]).enumerate() {
            frame::read_numbers(stream, &mut self.buffer, n * width).map_err(|error| (at, error))?;
            let mut numbers = frame::numbers(&self.buffer);
            for row in all.chunks_exact_mut(columns) {
                row[start..start + width]
                    .iter_mut()
                    .zip(&mut numbers)
                    .for_each(|(to, from)| *to = from);
            }
            start += width;
        }
        frame::write_numbers(&mut self.buffer, &all);
        self.send_all()?;
        Ok(all)
    }

    /// Ends the group and closes the sockets, which wakes the others; `tell` them why if it is this rank that failed. The
    /// first reason stays.
    fn stop(&mut self, reason: &str, tell: bool) -> Error {
        if let Some(error) = &self.stopped {
            return error.clone();
        }
        frame::write_stop(&mut self.buffer, reason);
        for stream in &mut self.streams {
            if tell && stream.set_nonblocking(true).is_ok() {
                // Who is gone, or takes nothing, needs no reason.
                let _ = frame::send(stream, &self.buffer);
            }
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.stopped.insert(Error::Stopped(reason.to_owned())).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::AttentionRow;

    const LONG: Duration = Duration::from_mins(1);

    /// The ranks of a group of `of`, joined by sockets.
    fn group(of: usize, timeout: Duration) -> Vec<Processes> {
        let pairs: Vec<_> = (1..of).map(|_| UnixStream::pair().unwrap()).collect();
        let (first, others): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let others = others.into_iter().enumerate().map(|(at, stream)| {
            let shard = Shard::new(at + 1, of).unwrap();
            Processes::other(shard, stream, timeout).unwrap()
        });
        let first = Processes::first(first, timeout).unwrap();
        [first].into_iter().chain(others).collect()
    }

    /// Runs `work` as each rank, and returns what they make in order of rank.
    fn ranks<T: Send>(ranks: Vec<Processes>, work: impl Fn(Processes) -> T + Sync) -> Vec<T> {
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
    fn sums_and_columns_are_in_the_order_of_ranks() {
        // Added in another order, one is left or nothing.
        let values = [1.0e8_f32, 1.0, -1.0e8, 1.0];
        let ended = ranks(group(4, LONG), |rank| {
            let own = rank.shard().rank();
            for round in 0..20 {
                let x = tensor(&[values[own], round as f32], 2);
                rank.all_reduce(&x).unwrap();
                assert_eq!(x.to_vec2::<f32>().unwrap(), [[1.0], [4.0 * round as f32]]);
            }
            // More than a socket holds.
            let many = tensor(&vec![1.0; 1 << 19], 1);
            rank.all_reduce(&many).unwrap();
            assert_eq!(many.to_vec2::<f32>().unwrap(), [vec![4.0; 1 << 19]]);
            let part = rank.shard().part(6);
            let row = |row: usize| part.clone().map(move |column| (10 * row + column) as f32);
            let own: Vec<f32> = row(0).chain(row(1)).collect();
            let all = rank.all_gather(tensor(&own, 2), 6).unwrap();
            let expected = [
                [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
                [10.0, 11.0, 12.0, 13.0, 14.0, 15.0],
            ];
            assert_eq!(all.to_vec2::<f32>().unwrap(), expected);
            rank
        });
        assert_eq!(ended.len(), 4);
    }

    #[test]
    fn steps_are_given_once_all_are_ready_until_the_first_is_gone() {
        let rows = [AttentionRow {
            tokens: 0..2,
            context_len: 2,
            block_table: vec![7],
        }];
        let input = ForwardInput {
            tokens: &[3, 4],
            positions: &[0, 1],
            slots: &[112, 113],
            rows: &rows,
            logits: &[1],
        };
        let steps = ranks(group(3, LONG), |rank| {
            if rank.shard().leads() {
                rank.wait_ready().unwrap();
                for _ in 0..3 {
                    rank.give(&input).unwrap();
                }
                return 3;
            }
            rank.tell_ready().unwrap();
            let mut steps = 0;
            while let Some(step) = rank.take().unwrap() {
                assert_eq!(step.forward_input().tokens, input.tokens);
                assert_eq!(step.forward_input().rows, rows);
                steps += 1;
            }
            steps
        });
        assert_eq!(steps, [3, 3, 3]);
    }

    #[test]
    fn a_rank_that_leaves_or_fails_ends_the_others() {
        for fails in [true, false] {
            let began = Instant::now();
            let errors = ranks(group(3, LONG), |rank| {
                if rank.shard().rank() == 2 {
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
                "rank 2 failed: no memory"
            } else {
                "rank 2 is gone"
            };
            // The second learns it of the first.
            for (error, _) in errors.into_iter().flatten() {
                assert!(error.contains(expected), "{error}");
            }
            assert!(began.elapsed() < LONG / 2);
        }
    }

    #[test]
    fn a_rank_that_hangs_is_waited_for_no_longer_than_agreed() {
        let mut group = group(3, Duration::from_millis(50));
        // It is there, and does nothing.
        let _hanging = group.pop();
        let errors = ranks(group, |rank| {
            let error = rank.all_reduce(&tensor(&[1.0], 1)).unwrap_err();
            (error.to_string(), rank)
        });
        assert!(
            errors[0].0.contains("rank 2 has not answered for 0.05 s"),
            "{}",
            errors[0].0
        );
    }

    #[test]
    fn numbers_of_another_shape_are_refused() {
        let errors = ranks(group(2, LONG), |rank| {
            let x = tensor(&[1.0, 2.0][..=rank.shard().rank()], 1);
            (rank.all_reduce(&x).unwrap_err().to_string(), rank)
        });
        assert!(
            errors[0].0.contains("rank 1 sent a frame that is too long"),
            "{}",
            errors[0].0
        );
        assert!(errors[1].0.contains("rank 0 failed"), "{}", errors[1].0);
    }
}
