//! What is on the screen: the newest figures, those of some time ago for the charts, and what the keys have chosen.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::interval::Interval;
use super::sample::Sample;
use super::table::{self, Column, MODEL_COLUMNS, Order, PROJECT_COLUMNS, Row};
use super::usage::Usage;

/// Points of a chart that are kept: more than terminals are wide.
const HISTORY_MAX: usize = 600;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tab {
    #[default]
    Models,
    Projects,
}

/// One point of the charts; `None` where the server did not answer.
pub(crate) type Point = Option<(u64, u64)>;

/// What came from the server.
#[derive(Debug)]
pub(crate) enum News {
    Page(Result<Sample, String>),
    Usage(Result<Usage, String>),
    /// A signal ended the program.
    End,
}

pub(crate) struct View {
    /// Host and port, as they were typed.
    pub server: String,
    pub color: bool,
    pub tab: Tab,
    pub paused: bool,
    pub help: bool,
    /// Rows of the table that are above what is shown.
    pub skipped: usize,
    /// Of models and of projects.
    orders: [Order; 2],
    last: Option<Sample>,
    pub interval: Option<Interval>,
    /// Output tokens a second and requests that wait, the newest last.
    pub history: VecDeque<Point>,
    /// Why the server does not answer, and since when.
    pub gone: Option<(String, Instant)>,
    pub usage: Option<Result<Usage, String>>,
}

impl View {
    pub(crate) fn new(server: String, color: bool) -> Self {
        let falling = |column| Order {
            column,
            ascending: false,
        };
        Self {
            server,
            color,
            tab: Tab::Models,
            paused: false,
            help: false,
            skipped: 0,
            orders: [falling(5), falling(5)],
            last: None,
            interval: None,
            history: VecDeque::new(),
            gone: None,
            usage: None,
        }
    }

    pub(crate) fn take(&mut self, news: News, now: Instant) {
        match news {
            News::Page(Ok(sample)) => self.page(sample),
            News::Page(Err(reason)) => {
                let since = self.gone.take().map_or(now, |(_, since)| since);
                self.gone = Some((reason, since));
                self.point(None);
            }
            News::Usage(usage) => {
                if !self.paused {
                    self.usage = Some(usage);
                }
            }
            News::End => {}
        }
    }

    fn page(&mut self, sample: Sample) {
        // Between a page and one from before the server was gone lies time in which nobody knows what happened.
        let was_gone = self.gone.take().is_some();
        let last = self.last.take();
        if let Some(last) = last.filter(|_| !was_gone && !self.paused) {
            let interval = Interval::between(&last, &sample);
            self.point(Some((
                whole(interval.total.generated_tokens),
                whole(interval.total.waiting),
            )));
            self.interval = Some(interval);
        }
        self.last = Some(sample);
    }

    fn point(&mut self, point: Point) {
        if self.paused {
            return;
        }
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(point);
    }

    pub(crate) fn columns(&self) -> &'static [Column] {
        match self.tab {
            Tab::Models => MODEL_COLUMNS,
            Tab::Projects => PROJECT_COLUMNS,
        }
    }

    pub(crate) fn order(&self) -> Order {
        self.orders[usize::from(self.tab == Tab::Projects)]
    }

    fn order_mut(&mut self) -> &mut Order {
        &mut self.orders[usize::from(self.tab == Tab::Projects)]
    }

    /// Sorts by the column to the right or to the left; behind the last one comes the first.
    pub(crate) fn sort_by_next(&mut self, to_the_right: bool) {
        let columns = self.columns().len();
        let order = self.order_mut();
        let places = if to_the_right { 1 } else { columns - 1 };
        let next = (order.column + places) % columns;
        *order = Order {
            column: next,
            ascending: next == 0,
        };
    }

    pub(crate) fn reverse(&mut self) {
        let order = self.order_mut();
        order.ascending = !order.ascending;
    }

    pub(crate) fn choose(&mut self, tab: Tab) {
        self.tab = tab;
        self.skipped = 0;
    }

    /// The table's rows in their order.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) fn rows(&self) -> Result<Vec<Row>, String> {
        let mut rows = match self.tab {
            Tab::Models => self.interval.as_ref().map(table::models).unwrap_or_default(),
            Tab::Projects => match &self.usage {
                None => return Err("asking the server …".to_owned()),
                Some(Ok(usage)) => table::projects(usage),
                Some(Err(reason)) => return Err(format!("what projects use is not told: {reason}")),
            },
        };
        table::sort(&mut rows, self.order());
        Ok(rows)
    }

    /// The lines above the charts: the server, its load, its latencies.
    pub(crate) fn head(&self, now: Instant) -> [String; 3] {
        let Some(interval) = &self.interval else {
            return [self.first_line(now), String::new(), String::new()];
        };
        let (server, total) = (&interval.server, &interval.total);
        let mut load = format!(
            "{:.0} running, {:.0} waiting; {} req/s, {} tokens/s in, {} out",
            total.running,
            total.waiting,
            table::rate(total.requests),
            table::rate(total.prompt_tokens),
            table::rate(total.generated_tokens),
        );
        if let (Some(in_flight), Some(connections)) = (server.in_flight, server.connections) {
            let _ = write!(load, "; {in_flight:.0} in flight on {connections:.0} connections");
        }
        let latency = |share: f64, of: &super::histogram::Histogram| {
            of.quantile(share).map_or("-".to_owned(), table::latency)
        };
        let mut times = format!(
            "TTFT p50 {} p95 {}; ITL p50 {} p95 {}; KV {}",
            latency(0.5, &total.ttft),
            latency(0.95, &total.ttft),
            latency(0.5, &total.itl),
            latency(0.95, &total.itl),
            total.kv.map_or("-".to_owned(), table::percent),
        );
        if let Some(bytes) = server.resident_bytes {
            let _ = write!(
                times,
                "; {:.1} cores, {:.0} MiB",
                interval.cores,
                bytes / 1_048_576.0
            );
        }
        let _ = write!(
            times,
            "; refused {} (503), {} (429) a second",
            table::rate(interval.rejected),
            table::rate(interval.limited)
        );
        [self.first_line(now), load, times]
    }

    fn first_line(&self, now: Instant) -> String {
        let mut line = format!("rempart top  {}", self.server);
        let server = self.interval.as_ref().map(|interval| &interval.server);
        if let Some(version) = server.and_then(|server| server.version.as_ref()) {
            let _ = write!(line, "  version {version}");
        }
        let state = match (&self.gone, server.and_then(|server| server.ready)) {
            (Some((reason, since)), _) => {
                let seconds = now.saturating_duration_since(*since).as_secs();
                format!("GONE for {seconds} s, asking again: {reason}")
            }
            (None, Some(true)) => "ready".to_owned(),
            (None, Some(false)) => "NOT READY: /readyz says why".to_owned(),
            (None, None) if self.interval.is_some() => "answers".to_owned(),
            (None, None) if self.last.is_some() => "reading …".to_owned(),
            (None, None) => "asking …".to_owned(),
        };
        line.push_str("  ");
        line.push_str(&state);
        if self.paused {
            line.push_str("  PAUSED");
        }
        line
    }

    /// What the table shows, in words.
    pub(crate) fn caption(&self) -> String {
        let order = self.order();
        let direction = if order.ascending { "rising" } else { "falling" };
        let of = match (self.tab, &self.interval, &self.usage) {
            (Tab::Models, Some(interval), _) => format!("over {:.1} s", interval.seconds),
            (Tab::Projects, _, Some(Ok(usage))) => {
                let minutes = Duration::from_secs_f64(usage.seconds.max(0.0)).as_secs() / 60;
                format!("requests that ended in the last {minutes} min")
            }
            _ => String::new(),
        };
        format!("{of}, by {}, {direction}", self.columns()[order.column].heading)
            .trim_start_matches(", ")
            .to_owned()
    }
}

#[expect(clippy::cast_sign_loss, reason = "nothing here is below 0")]
fn whole(value: f64) -> u64 {
    value.round().max(0.0) as u64
}
