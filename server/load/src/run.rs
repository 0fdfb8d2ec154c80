//! Runs one step of load: a closed loop, in which each of some clients asks again when it is answered, or an open loop, in which
//! requests are sent at their times whatever becomes of the others.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::body::Template;
use crate::client::{Client, Outgoing};
use crate::clock::Nanos;
use crate::dataset::Dataset;
use crate::failure::Failure;
use crate::limits::PACED_MAX;
use crate::progress::Counts;
use crate::record::{End, Record, Seen};
use crate::rng::{self, Use};

/// What all requests of a step share.
pub(crate) struct Step {
    /// Its place in the run.
    pub number: usize,
    pub seed: u64,
    pub client: Arc<Client>,
    /// When it began, on the client's clock; its records count from here.
    pub start: Nanos,
    pub template: Template,
    pub dataset: Arc<Dataset>,
    pub cancellation: Cancellation,
    pub counts: Arc<Counts>,
}

/// Requests that are dropped before they are done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cancellation {
    /// Their share of all.
    pub rate: f64,
    /// After they were sent.
    pub delay: Duration,
}

/// A request with what a record needs of it.
struct Job {
    index: usize,
    outgoing: Outgoing,
    input_wanted: u32,
}

impl Step {
    fn job(&self, index: usize) -> Job {
        let item = self.dataset.item(self.number, index);
        Job {
            index,
            input_wanted: item.input_tokens,
            outgoing: self.template.outgoing(item),
        }
    }

    fn now(&self) -> Nanos {
        self.client.clock().now().saturating_sub(self.start)
    }

    /// Sends one request, and waits until it is over.
    async fn send(&self, job: &Job, scheduled: Option<Nanos>) -> Record {
        let sent = self.now();
        let mut seen = Seen::default();
        self.counts.started();
        let end = {
            let sending = self.client.send(&job.outgoing, &mut seen);
            match self.cancelled_after(job.index) {
                None => ended(sending.await),
                Some(delay) => timeout(delay, sending).await.map_or(End::Cancelled, ended),
            }
        };
        seen.count_from(self.start);
        let record = Record {
            scheduled: scheduled.unwrap_or(sent),
            sent,
            ended: self.now(),
            input_wanted: job.input_wanted,
            seen,
            end,
        };
        self.counts.ended(&record);
        record
    }

    fn cancelled_after(&self, index: usize) -> Option<Duration> {
        let Cancellation { rate, delay } = self.cancellation;
        if rate <= 0.0 {
            return None;
        }
        let mut rng = rng::of(
            self.seed,
            Use::Cancellations,
            (self.number as u64) << 32 | index as u64,
        );
        (rng.random::<f64>() < rate).then_some(delay)
    }
}

fn ended(result: Result<(), Failure>) -> End {
    match result {
        Ok(()) => End::Completed,
        Err(failure) => End::Failed(failure),
    }
}

/// A closed loop of some clients; no request begins after `until`.
pub(crate) async fn closed(
    step: Arc<Step>,
    clients: usize,
    requests: usize,
    until: Nanos,
) -> anyhow::Result<Vec<Record>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..clients.min(requests) {
        let (step, next) = (Arc::clone(&step), Arc::clone(&next));
        tasks.spawn(async move {
            let mut records = Vec::new();
            while step.now() < until {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= requests {
                    break;
                }
                let job = step.job(index);
                records.push(step.send(&job, None).await);
            }
            records
        });
    }
    let mut records = Vec::new();
    while let Some(done) = tasks.join_next().await {
        records.append(&mut done.context("a client's task")?);
    }
    records.sort_by_key(|record| record.scheduled);
    Ok(records)
}

/// An open loop: one request at each of the times, however many are in flight.
///
/// A thread keeps the times, since the runtime's timers count whole milliseconds. It prepares each request before its time.
pub(crate) async fn open(
    step: Arc<Step>,
    times: Vec<Nanos>,
    in_flight_max: usize,
) -> anyhow::Result<Vec<Record>> {
    let (sender, mut due) = mpsc::channel::<(Nanos, Job)>(PACED_MAX);
    let pacer = {
        let step = Arc::clone(&step);
        thread::Builder::new()
            .name("pacer".to_owned())
            .spawn(move || pace(&step, &times, &sender))
            .context("starting the thread that keeps the times")?
    };
    let records = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    while let Some((scheduled, job)) = due.recv().await {
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= in_flight_max {
            let record = refused(&step, scheduled, job.input_wanted);
            records
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(record);
            continue;
        }
        let (step, records) = (Arc::clone(&step), Arc::clone(&records));
        tasks.spawn(async move {
            let record = step.send(&job, Some(scheduled)).await;
            records
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(record);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.context("a request's task")?;
    }
    pacer
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that keeps the times panicked"))?;
    let mut records = std::mem::take(&mut *records.lock().unwrap_or_else(PoisonError::into_inner));
    records.sort_by_key(|record: &Record| record.scheduled);
    Ok(records)
}

fn pace(step: &Step, times: &[Nanos], sender: &mpsc::Sender<(Nanos, Job)>) {
    for (index, time) in times.iter().enumerate() {
        let job = step.job(index);
        let wait = step.client.clock().until(step.start.saturating_add(*time));
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        // The queue is full only where the runtime is behind by thousands of requests; their latencies count it.
        if sender.blocking_send((*time, job)).is_err() {
            return;
        }
    }
}

fn refused(step: &Step, scheduled: Nanos, input_wanted: u32) -> Record {
    let now = step.now();
    step.counts.started();
    let record = Record {
        scheduled,
        sent: now,
        ended: now,
        input_wanted,
        seen: Seen::default(),
        end: End::Failed(Failure::InFlight),
    };
    step.counts.ended(&record);
    record
}
