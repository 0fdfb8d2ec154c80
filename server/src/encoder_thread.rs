//! The thread of an encoder, and the handle through which requests reach it.
//!
//! Requests wait in a queue of their own. A batch takes sequences from them in turn, so that a request with a few texts does
//! not wait for the end of one with thousands.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rempart_models::{EncoderBatch, LoadedEncoder, Task};
use rempart_text::Encoded;
use tokio::sync::oneshot;

use crate::http::error::ApiError;
use crate::metrics::EncoderMetrics;
use crate::turns::Turns;

/// While other models compute, a batch takes about so long, and has at least so many tokens.
const SHARED_BATCH_MAX_MS: u64 = 25;
const SHARED_TOKENS_MIN: usize = 32;
/// Failed sequences in a row after which an encoder is not healthy.
const FAILURES_MAX: usize = 3;
/// The longest that a client is told to wait when the queue is full.
pub const RETRY_AFTER_MAX_S: u64 = 600;
/// Tokens of the sequence that tells how fast an encoder is: it should cost no time that anybody notices.
const WARM_UP_TOKENS_MAX: usize = 128;

/// What computes batches.
pub trait Encode: Send {
    /// A vector, or the scores of all classes, for each sequence.
    ///
    /// # Errors
    /// Says what is wrong, for the log.
    fn encode(&mut self, batch: &EncoderBatch<'_>) -> Result<Vec<Vec<f32>>, String>;
}

impl Encode for LoadedEncoder {
    fn encode(&mut self, batch: &EncoderBatch<'_>) -> Result<Vec<Vec<f32>>, String> {
        let result = match self.task {
            Task::Embed { .. } => self.embed(batch),
            Task::Rank { .. } => self.score(batch),
        };
        result.map_err(|error| error.to_string())
    }
}

/// Limits of an encoder's queue and batches.
#[derive(Clone, Copy, Debug)]
pub struct EncoderLimits {
    /// Tokens of a batch. A longer sequence is computed alone.
    pub batch_tokens_max: usize,
    pub queue_requests_max: usize,
    pub queue_tokens_max: usize,
}

/// A cheap handle on the thread, which ends when the last one is gone, or at once when one of them closes it.
#[derive(Clone)]
pub struct EncoderHandle(Arc<Owner>);

/// Tells the thread that nobody is left.
struct Owner(Arc<Shared>);

struct Shared {
    limits: EncoderLimits,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Sequences that failed since one did not.
    failures: AtomicUsize,
    tokens_per_s: AtomicU64,
    metrics: EncoderMetrics,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// Tokens of sequences that are in no batch yet.
    tokens: usize,
    /// No handle is left.
    orphaned: bool,
    /// Whatever waits is given up.
    closed: bool,
}

struct Request {
    sequences: Vec<Encoded>,
    /// Sequences that were put into batches; the results of those before come in their order.
    taken: usize,
    results: Vec<Vec<f32>>,
    failed: bool,
    deadline: Instant,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>, ApiError>>,
}

/// Starts the thread. It is joined through the returned [`JoinHandle`].
pub fn spawn(
    encoder: impl Encode + 'static,
    limits: EncoderLimits,
    turns: Turns,
    metrics: EncoderMetrics,
) -> std::io::Result<(EncoderHandle, JoinHandle<()>)> {
    let shared = Arc::new(Shared {
        limits,
        queue: Mutex::default(),
        changed: Condvar::new(),
        failures: AtomicUsize::new(0),
        tokens_per_s: AtomicU64::new(0),
        metrics,
    });
    let owner = Owner(Arc::clone(&shared));
    let mut encoder = encoder;
    let run = move || {
        let mut pace = Pace::default();
        while let Some(batch) = shared.next_batch(pace.tokens_max(limits.batch_tokens_max)) {
            let turn = turns.wait();
            let began = Instant::now();
            let results = compute(&mut encoder, &batch);
            let (took, number) = (began.elapsed(), turn.number);
            drop(turn);
            pace.learn(batch.tokens.len(), took, number);
            shared.tokens_per_s.store(pace.tokens_per_s, Ordering::Relaxed);
            shared.metrics.batch(batch.tokens.len(), took);
            shared.deliver(&batch, results);
        }
    };
    let join = std::thread::Builder::new()
        .name("encoder".to_owned())
        .spawn(run)?;
    Ok((EncoderHandle(Arc::new(owner)), join))
}

impl EncoderHandle {
    /// Computes sequences, and waits for the results, in their order.
    ///
    /// # Errors
    /// 503 if the queue is full, 504 past the deadline, 500 if computing fails.
    pub async fn run(&self, sequences: Vec<Encoded>, deadline: Instant) -> Result<Vec<Vec<f32>>, ApiError> {
        let (reply, answer) = oneshot::channel();
        self.0.0.push(Request {
            results: Vec::with_capacity(sequences.len()),
            sequences,
            failed: false,
            taken: 0,
            deadline,
            reply,
        })?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) if self.0.0.lock().closed => Err(ApiError::model_unloaded()),
            Ok(Err(_)) if Instant::now() < deadline => Err(ApiError::internal()),
            // The thread may notice first.
            Ok(Err(_)) | Err(_) => Err(ApiError::deadline()),
        }
    }

    /// Computes a little before anybody asks: once to bring the weights into memory, and once to know how fast it is, which
    /// clients of a full queue are told.
    ///
    /// # Errors
    /// 504 past the deadline, 500 if computing fails.
    pub async fn warm_up(&self, tokens_max: usize, deadline: Instant) -> Result<(), ApiError> {
        for tokens in [1, WARM_UP_TOKENS_MAX.min(tokens_max)] {
            let sequence = Encoded {
                ids: vec![0; tokens],
                type_ids: vec![0; tokens],
            };
            self.run(vec![sequence], deadline).await?;
        }
        Ok(())
    }

    /// Ends the thread before its next batch, whatever still waits.
    pub fn close(&self) {
        self.0.0.lock().closed = true;
        self.0.0.changed.notify_all();
    }

    /// Whether it fails at everything.
    pub fn has_failed(&self) -> bool {
        self.0.0.failures.load(Ordering::Relaxed) >= FAILURES_MAX
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.lock().orphaned = true;
        self.0.changed.notify_all();
    }
}

/// Sequences that are computed together.
#[derive(Default)]
struct Batch {
    tokens: Vec<u32>,
    token_types: Vec<u32>,
    lengths: Vec<usize>,
    /// The waiting request of each sequence. Only the thread removes requests, so that numbers stay what they are.
    owners: Vec<usize>,
}

impl Batch {
    fn input(&self) -> EncoderBatch<'_> {
        EncoderBatch {
            tokens: &self.tokens,
            token_types: &self.token_types,
            lengths: &self.lengths,
        }
    }

    fn add(&mut self, sequence: &Encoded, owner: usize) {
        self.tokens.extend(&sequence.ids);
        self.token_types.extend(&sequence.type_ids);
        self.lengths.push(sequence.ids.len());
        self.owners.push(owner);
    }
}

/// How fast the encoder is, and whether others want the processor.
#[derive(Default)]
struct Pace {
    /// Of the latest batches, each of which counts a quarter.
    tokens_per_s: u64,
    /// Whether that was learnt from batches that are not tiny.
    settled: bool,
    last_turn: Option<u64>,
    shared: bool,
}

impl Pace {
    /// Tokens of the next batch: while other models compute, as many as take no longer than they can wait.
    fn tokens_max(&self, limit: usize) -> usize {
        if !self.shared {
            return limit;
        }
        let tokens = self.tokens_per_s * SHARED_BATCH_MAX_MS / 1000;
        let tokens = usize::try_from(tokens).unwrap_or(usize::MAX);
        tokens.clamp(SHARED_TOKENS_MIN.min(limit), limit)
    }

    fn learn(&mut self, tokens: usize, took: Duration, turn: u64) {
        // Somebody had a turn since our last.
        self.shared = self.last_turn.is_some_and(|last| turn - last > 1);
        self.last_turn = Some(turn);
        // A few tokens tell little of many, though more than nothing does.
        let few = tokens < SHARED_TOKENS_MIN;
        if few && self.settled {
            return;
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let rate = tokens as u64 * 1_000_000 / us;
        self.tokens_per_s = if self.settled {
            self.tokens_per_s / 4 * 3 + rate / 4
        } else {
            rate
        };
        self.settled = !few;
    }
}

/// A result for each sequence. Where a batch fails, each is tried alone: only those at fault fail.
fn compute(encoder: &mut impl Encode, batch: &Batch) -> Vec<Result<Vec<f32>, ()>> {
    let mut attempt = |input: &EncoderBatch<'_>| {
        let result = catch_unwind(AssertUnwindSafe(|| encoder.encode(input)));
        let results = result.unwrap_or_else(|_| Err("it panicked".to_owned()))?;
        let finite = results.iter().flatten().all(|x| x.is_finite());
        finite
            .then_some(results)
            .ok_or_else(|| "a result is not a number".to_owned())
    };
    let whole = batch.input();
    match attempt(&whole) {
        Ok(results) => results.into_iter().map(Ok).collect(),
        Err(error) => {
            tracing::error!(%error, sequences = batch.lengths.len(), "an encoder failed");
            let mut end = 0;
            let alone = |length: &usize| {
                let tokens = end..end + length;
                end = tokens.end;
                let input = EncoderBatch {
                    tokens: &whole.tokens[tokens.clone()],
                    token_types: &whole.token_types[tokens],
                    lengths: &[*length],
                };
                let mut results = attempt(&input).map_err(|_| ())?;
                results.pop().ok_or(())
            };
            batch.lengths.iter().map(alone).collect()
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, request: Request) -> Result<(), ApiError> {
        let tokens: usize = request.sequences.iter().map(|sequence| sequence.ids.len()).sum();
        let limit = self.limits.queue_tokens_max;
        if request.sequences.len() > 1 && tokens > limit {
            let message = format!(
                "the texts have {tokens} tokens together, but at most {limit} can wait at one time (--queue-tokens-max of \
                 this server): send fewer in one request"
            );
            return Err(ApiError::invalid("input", "request_too_large", message));
        }
        let mut queue = self.lock();
        if queue.closed {
            return Err(ApiError::model_unloaded());
        }
        let full = queue.waiting.len() >= self.limits.queue_requests_max
            || (queue.tokens > 0 && queue.tokens + tokens > limit);
        if full {
            self.metrics.rejected();
            return Err(ApiError::overloaded(
                self.retry_after_s((queue.tokens + tokens).saturating_sub(limit)),
            ));
        }
        self.metrics.request();
        queue.tokens += tokens;
        queue.waiting.push_back(request);
        self.metrics.queued(queue.tokens);
        drop(queue);
        self.changed.notify_all();
        Ok(())
    }

    /// Seconds in which so many tokens are computed, at the latest rate.
    fn retry_after_s(&self, tokens: usize) -> u64 {
        let rate = self.tokens_per_s.load(Ordering::Relaxed).max(1);
        (tokens as u64).div_ceil(rate).clamp(1, RETRY_AFTER_MAX_S)
    }

    /// Waits for work and takes a batch of it; `None` at the end.
    fn next_batch(&self, tokens_max: usize) -> Option<Batch> {
        let mut queue = self.lock();
        loop {
            if queue.closed {
                queue.waiting.clear();
                self.metrics.queued(0);
                return None;
            }
            queue.drop_abandoned(Instant::now());
            let batch = queue.take(tokens_max);
            self.metrics.queued(queue.tokens);
            if !batch.lengths.is_empty() {
                return Some(batch);
            }
            if queue.orphaned {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Hands results to those who wait. One that failed fails its request.
    fn deliver(&self, batch: &Batch, results: Vec<Result<Vec<f32>, ()>>) {
        let mut queue = self.lock();
        for (owner, result) in batch.owners.iter().zip(results) {
            let request = &mut queue.waiting[*owner];
            if let Ok(result) = result {
                self.failures.store(0, Ordering::Relaxed);
                request.results.push(result);
            } else {
                self.failures.fetch_add(1, Ordering::Relaxed);
                request.failed = true;
            }
        }
        queue.answer(|request| {
            if request.failed {
                return Some(Err(ApiError::internal()));
            }
            let complete = request.results.len() == request.sequences.len();
            complete.then(|| Ok(std::mem::take(&mut request.results)))
        });
    }
}

impl Queue {
    /// Forgets requests whose client has gone or whose time is up.
    fn drop_abandoned(&mut self, now: Instant) {
        self.waiting
            .retain(|request| !request.reply.is_closed() && request.deadline > now);
        self.count();
    }

    /// One sequence of each request after the other, until no further one fits.
    fn take(&mut self, tokens_max: usize) -> Batch {
        let mut batch = Batch::default();
        loop {
            let before = batch.lengths.len();
            for (owner, request) in self.waiting.iter_mut().enumerate() {
                let Some(sequence) = request.sequences.get(request.taken) else {
                    continue;
                };
                if batch.tokens.is_empty() || batch.tokens.len() + sequence.ids.len() <= tokens_max {
                    batch.add(sequence, owner);
                    request.taken += 1;
                }
            }
            if batch.lengths.len() == before {
                self.tokens -= batch.tokens.len();
                return batch;
            }
        }
    }

    /// Answers those requests for which there is an answer, in their order, and forgets them.
    fn answer(&mut self, mut answer: impl FnMut(&mut Request) -> Option<Result<Vec<Vec<f32>>, ApiError>>) {
        let waiting = std::mem::take(&mut self.waiting);
        for mut request in waiting {
            match answer(&mut request) {
                // A client that has gone hears nothing.
                Some(result) => drop(request.reply.send(result)),
                None => self.waiting.push_back(request),
            }
        }
        self.count();
    }

    fn count(&mut self) {
        let left = |request: &Request| -> usize {
            let left = &request.sequences[request.taken..];
            left.iter().map(|sequence| sequence.ids.len()).sum()
        };
        self.tokens = self.waiting.iter().map(left).sum();
    }
}

#[cfg(test)]
mod tests;
