//! What is kept of one request: times and counts, and of its text nothing.

use crate::chunk::{Brought, Usage};
use crate::clock::Nanos;
use crate::failure::Failure;

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Completed,
    /// We dropped it, as `--cancellation-rate` asks.
    Cancelled,
    Failed(Failure),
}

/// One request. Times are nanoseconds since its step began.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// When it was to be sent: latencies count from here.
    pub scheduled: Nanos,
    /// When it was ready to be sent, on a connection that may still have had to be opened.
    pub sent: Nanos,
    /// When it was over, as we know.
    pub ended: Nanos,
    /// Input tokens that were meant to be; the server's count is in `seen`.
    pub input_wanted: u32,
    pub seen: Seen,
    pub end: End,
}

/// What arrived for a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// When the first token reached this machine, or the whole answer where there is no stream.
    pub first: Option<Nanos>,
    /// When the last token did.
    pub last_token: Nanos,
    /// When the last event about a choice did: where an answer ends.
    pub last: Nanos,
    /// Microseconds between events with tokens.
    pub gaps_us: Vec<u32>,
    pub usage: Usage,
}

impl Seen {
    /// Takes an event that arrived then.
    pub(crate) fn event(&mut self, brought: Brought, at: Nanos) {
        if let Some(usage) = brought.usage {
            self.usage = usage;
        }
        if brought.choice {
            self.last = at;
        }
        if !brought.token {
            return;
        }
        if self.first.is_none() {
            self.first = Some(at);
        } else {
            let gap = (at.saturating_sub(self.last_token) + 500) / 1000;
            self.gaps_us.push(u32::try_from(gap).unwrap_or(u32::MAX));
        }
        self.last_token = at;
    }

    /// Takes an answer that came as one document.
    pub(crate) fn whole(&mut self, usage: Usage, at: Nanos) {
        self.first = Some(at);
        (self.last_token, self.last) = (at, at);
        self.usage = usage;
    }

    /// Makes times count from a later start.
    pub(crate) fn count_from(&mut self, start: Nanos) {
        self.first = self.first.map(|first| first.saturating_sub(start));
        self.last_token = self.last_token.saturating_sub(start);
        self.last = self.last.saturating_sub(start);
    }

    /// Events with tokens.
    pub(crate) fn events(&self) -> usize {
        self.gaps_us.len() + usize::from(self.first.is_some())
    }
}

impl Record {
    pub(crate) fn is_completed(&self) -> bool {
        self.end == End::Completed
    }

    /// As the server counted, or as was meant where it does not tell.
    pub(crate) fn input_tokens(&self) -> u32 {
        self.seen.usage.prompt_tokens.unwrap_or(self.input_wanted)
    }

    /// As the server counted, or one for each event where it does not tell.
    pub(crate) fn output_tokens(&self) -> u32 {
        let events = u32::try_from(self.seen.events()).unwrap_or(u32::MAX);
        self.seen.usage.completion_tokens.unwrap_or(events)
    }

    /// Seconds to the first token.
    pub(crate) fn ttft(&self) -> f64 {
        seconds(self.scheduled, self.seen.first.unwrap_or(self.scheduled))
    }

    /// Seconds to the end of the answer.
    pub(crate) fn e2el(&self) -> f64 {
        seconds(self.scheduled, self.seen.last)
    }

    /// Seconds per token after the first; `None` where there is but one.
    pub(crate) fn tpot(&self) -> Option<f64> {
        let tokens = self.output_tokens();
        (tokens > 1).then(|| (self.e2el() - self.ttft()) / f64::from(tokens - 1))
    }

    /// When each event with tokens came; gaps are rounded, and yet none comes after the last one.
    pub(crate) fn token_times(&self) -> impl Iterator<Item = Nanos> + '_ {
        let gaps = self.seen.gaps_us.iter().map(|gap| u64::from(*gap) * 1000);
        let mut at = self.seen.first;
        std::iter::once(0).chain(gaps).map_while(move |gap| {
            let time = at? + gap;
            at = Some(time);
            Some(time.min(self.seen.last_token))
        })
    }
}

/// Seconds between two times; 0 where they are the wrong way round.
pub(crate) fn seconds(from: Nanos, to: Nanos) -> f64 {
    to.saturating_sub(from) as f64 / 1e9
}
