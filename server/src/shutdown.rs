//! How the process ends: a first signal drains, a second one, or the end of the drain's time, closes what is left.

use std::future::Future;

use tokio::sync::watch;

/// How far the end has come. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Running,
    /// No new requests; the running ones finish.
    Draining,
    /// The running ones are told and end now.
    Closing,
}

/// A cheap handle on the process's phase.
#[derive(Debug, Clone)]
pub struct Shutdown {
    phase: watch::Sender<Phase>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
        }
    }
}

impl Shutdown {
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Moves on to `phase`, unless that is passed already.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let forward = phase > *now;
            *now = phase.max(*now);
            forward
        });
    }

    /// Waits until `phase` is reached. The future owns what it needs.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + Send + use<> {
        let mut receiver = self.phase.subscribe();
        let keep = self.phase.clone();
        async move {
            let _ = receiver.wait_for(|now| *now >= phase).await;
            drop(keep);
        }
    }

    /// Advances one phase with every SIGTERM or SIGINT, for as long as the process lives.
    pub async fn follow_signals(self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let next = if self.phase() == Phase::Running {
                Phase::Draining
            } else {
                Phase::Closing
            };
            tracing::info!(phase = ?next, "signal received");
            self.advance(next);
        }
    }
}
