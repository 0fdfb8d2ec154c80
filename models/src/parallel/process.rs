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
    /// How long what is read now is waited for.
    patience: Duration,
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
        let mut links = Links {
            streams,
            timeout,
            patience: timeout,
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

    /// Waits until all others have loaded their parts, for each no longer than `load_timeout`.
    ///
    /// # Errors
    /// One of them has failed, and says why, or has not loaded in time.
    pub fn wait_ready(&self, load_timeout: Duration) -> Result<()> {
        self.exchange(|links| {
            links
                .limit(Some(load_timeout))
                .map_err(|error| (0, error.into()))?;
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
                        let waited = links.patience.as_secs_f32();
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
    /// How long a read of any of the sockets may wait; a write as long as agreed.
    fn limit(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.patience = timeout.unwrap_or(self.timeout);
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
mod tests;
