//! Several servers, a database, and what happens to the messages between them.

mod busy;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::bucket::MINUTE_MS;
use super::*;

/// 31 January 2028, 23:59:30 UTC: a day and a month end soon.
const NOW_MS: i64 = 1_832_975_970_000;
const MINUTE: i64 = 100;
const DAY: i64 = 900;
const PARALLEL: i64 = 3;
const LIMITS: &[(Metric, i64)] = &[
    (Metric::TokensPerMinute, MINUTE),
    (Metric::TokensPerDay, DAY),
    (Metric::Parallel, PARALLEL),
];

fn limited(of: &[(Metric, i64)]) -> Vec<(Subject, Limits)> {
    let mut limits = Limits::default();
    for (metric, value) in of {
        limits.set(*metric, Some(*value));
    }
    vec![(Subject::Key("k".to_owned()), limits)]
}

fn counter(metric: Metric, at_ms: i64) -> Counter {
    Counter::at(&Subject::Key("k".to_owned()), metric, at_ms)
}

/// What the database has.
#[derive(Default)]
struct Shared {
    counts: BTreeMap<Counter, (i64, i64)>,
    /// By counter and server: what it has, and until when.
    leases: BTreeMap<(Counter, usize), (i64, i64)>,
}

impl Shared {
    fn lend(&mut self, server: usize, asks: &[Ask], now_ms: i64) -> Vec<Grant> {
        let lend = |ask: &Ask| {
            let mut pool = Pool::new(ask.counter.metric, ask.limit, 0, now_ms);
            if let Some((value, at_ms)) = self.counts.get(&ask.counter) {
                (pool.value, pool.at_ms) = (*value, *at_ms);
            }
            for ((counter, whose), (held, until_ms)) in &self.leases {
                if *counter == ask.counter {
                    pool.add(*whose == server, *held, *until_ms, now_ms);
                }
            }
            self.leases
                .retain(|(counter, _), (_, until)| *counter != ask.counter || *until > now_ms);
            let grant = pool.lend(ask, now_ms);
            self.counts.insert(ask.counter.clone(), (pool.value, pool.at_ms));
            let lease = (pool.own, now_ms + LEASE_MS);
            self.leases.insert((ask.counter.clone(), server), lease);
            grant
        };
        asks.iter().map(lend).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Running {
    reserved: Reserved,
    /// The database has given its lease to others: the server was gone for too long.
    lapsed: bool,
}

/// An ask on its way, and its answer once there is one.
struct Sent {
    asks: Vec<Ask>,
    /// By the server's own clock.
    local_ms: i64,
    answer: Option<(Vec<Grant>, i64)>,
}

struct Server {
    /// A server that was started anew is another one.
    id: usize,
    lessee: Lessee,
    /// How far its own clock is off, and a time of the database's with what that clock showed when it was asked.
    off_ms: i64,
    seen: (i64, i64),
    sent: Option<Sent>,
    running: Vec<Running>,
    /// Settled, and their rows not written.
    unwritten: Vec<(Running, i64)>,
}

impl Server {
    fn new(id: usize, off_ms: i64, now_ms: i64) -> Self {
        Self {
            id,
            lessee: Lessee::default(),
            off_ms,
            seen: (now_ms, now_ms + off_ms),
            sent: None,
            running: Vec::new(),
            unwritten: Vec::new(),
        }
    }

    fn shared_ms(&self, now_ms: i64) -> i64 {
        self.seen.0 + now_ms + self.off_ms - self.seen.1
    }

    fn send(&mut self, now_ms: i64, tick: bool) {
        let shared_ms = self.shared_ms(now_ms);
        if self.sent.is_none() {
            self.sent = Some(Sent {
                asks: self.lessee.ask(shared_ms, tick),
                local_ms: now_ms + self.off_ms,
                answer: None,
            });
        }
    }

    fn reach(&mut self, shared: &mut Shared, now_ms: i64) {
        if let Some(sent) = self.sent.as_mut().filter(|sent| sent.answer.is_none()) {
            sent.answer = Some((shared.lend(self.id, &sent.asks, now_ms), now_ms));
        }
    }

    fn hear(&mut self) {
        if let Some(Sent {
            asks,
            local_ms,
            answer: Some((grants, at_ms)),
        }) = self.sent.take_if(|sent| sent.answer.is_some())
        {
            self.seen = (at_ms, local_ms);
            self.lessee.granted(&asks, &grants, at_ms);
        }
    }

    fn lose(&mut self) {
        if let Some(sent) = self.sent.take() {
            self.lessee.failed(&sent.asks);
        }
    }

    fn exchange(&mut self, shared: &mut Shared, now_ms: i64, tick: bool) {
        self.send(now_ms, tick);
        self.reach(shared, now_ms);
        self.hear();
    }

    fn try_begin(&mut self, limited: &Limited, now_ms: i64, tokens: i64) -> Result<Reserved, Short> {
        let reserved = Reserved {
            at_ms: self.shared_ms(now_ms),
            expected: tokens,
            most: tokens,
        };
        self.lessee.begin(limited, reserved.at_ms)?;
        if let Err(short) = self.lessee.reserve(limited, reserved) {
            self.lessee.end(limited);
            return Err(short);
        }
        self.running.push(Running {
            reserved,
            lapsed: false,
        });
        Ok(reserved)
    }

    fn settle(&mut self, limited: &Limited, percent: i64) -> Option<i64> {
        let running = self.running.pop()?;
        let used = running.reserved.most * percent / 100;
        self.lessee.settle(limited, running.reserved, used);
        self.lessee.end(limited);
        self.unwritten.push((running, used));
        Some(running.reserved.most - used)
    }

    /// Its rows are in the database; whether it hears of that is another matter.
    fn write(&mut self, shared: &mut Shared, limited: &Limited, hears: bool, lapsed: &mut i64) {
        for (running, used) in self.unwritten.drain(..) {
            let at_ms = running.reserved.at_ms;
            if let Some((value, _)) = shared.counts.get_mut(&counter(Metric::TokensPerDay, at_ms)) {
                *value += used;
            }
            if hears {
                self.lessee.written(limited, at_ms, used);
            }
            *lapsed += if running.lapsed { used } else { 0 };
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Begin(i64),
    /// So many that end at once, and ask whenever something lacks.
    Burst(i64, usize),
    Settle(i64),
    Write,
    Send(bool),
    Reach,
    Hear,
    Lose,
    /// All at once.
    Exchange(bool),
    /// It is gone; whether its last rows are written.
    Crash(bool),
}

fn steps() -> impl Strategy<Value = Vec<(i64, usize, Step)>> {
    let step = prop_oneof![
        6 => (1_i64..120).prop_map(Step::Begin),
        4 => (1_i64..30, 1_usize..40).prop_map(|(tokens, requests)| Step::Burst(tokens, requests)),
        3 => (0_i64..=100).prop_map(Step::Settle),
        2 => Just(Step::Write),
        2 => any::<bool>().prop_map(Step::Send),
        2 => Just(Step::Reach),
        2 => Just(Step::Hear),
        1 => Just(Step::Lose),
        6 => any::<bool>().prop_map(Step::Exchange),
        1 => any::<bool>().prop_map(Step::Crash),
    ];
    let pause = prop_oneof![6 => 0_i64..300, 2 => 300_i64..3_000, 1 => 3_000_i64..20_000];
    prop::collection::vec((pause, 0_usize..3, step), 1..120)
}

/// All of it, and what was taken of the minute's tokens.
struct World {
    shared: Shared,
    servers: Vec<Server>,
    limited: Vec<(Subject, Limits)>,
    taken: Vec<(i64, i64)>,
    /// Used by requests whose lease had lapsed.
    lapsed: i64,
    now_ms: i64,
}

impl World {
    fn new(offs: &[i64]) -> Self {
        let server = |(id, off_ms): (usize, &i64)| Server::new(id, *off_ms, NOW_MS);
        Self {
            shared: Shared::default(),
            servers: offs.iter().enumerate().map(server).collect(),
            limited: limited(LIMITS),
            taken: Vec::new(),
            lapsed: 0,
            now_ms: NOW_MS,
        }
    }

    fn go(&mut self, at: usize, step: Step, next_id: usize) {
        let (server, shared, now_ms) = (&mut self.servers[at], &mut self.shared, self.now_ms);
        match step {
            Step::Begin(tokens) => {
                if let Ok(reserved) = server.try_begin(&self.limited, now_ms, tokens) {
                    self.taken.push((now_ms, reserved.expected));
                }
            }
            Step::Burst(tokens, requests) => self.burst(at, tokens, requests),
            Step::Settle(percent) => {
                if let Some(back) = server.settle(&self.limited, percent) {
                    self.taken.push((now_ms, -back));
                }
            }
            Step::Write => server.write(shared, &self.limited, true, &mut self.lapsed),
            Step::Send(tick) => server.send(now_ms, tick),
            Step::Reach => server.reach(shared, now_ms),
            Step::Hear => server.hear(),
            Step::Lose => server.lose(),
            Step::Exchange(tick) => server.exchange(shared, now_ms, tick),
            Step::Crash(written) => {
                if written {
                    server.write(shared, &self.limited, false, &mut self.lapsed);
                }
                self.servers[at] = Server::new(next_id, server.off_ms, now_ms);
            }
        }
    }

    fn burst(&mut self, at: usize, tokens: i64, requests: usize) {
        let (server, shared, now_ms) = (&mut self.servers[at], &mut self.shared, self.now_ms);
        for _ in 0..requests {
            let begun = match server.try_begin(&self.limited, now_ms, tokens) {
                Err(Short::Asked) => {
                    server.exchange(shared, now_ms, false);
                    server.try_begin(&self.limited, now_ms, tokens)
                }
                begun => begun,
            };
            if begun.is_ok() {
                self.taken.push((now_ms, tokens));
                server.settle(&self.limited, 100);
                server.write(shared, &self.limited, true, &mut self.lapsed);
            }
        }
    }

    /// Requests of a server that the database has not heard of for so long that its lease has ended.
    fn note_lapsed(&mut self) {
        for server in &mut self.servers {
            let ended = |counter: Counter| {
                let lease = self.shared.leases.get(&(counter, server.id));
                lease.is_none_or(|(_, until)| *until <= self.now_ms)
            };
            let has = |wanted| self.limited[0].1.get(wanted).is_some();
            let unwritten = server.unwritten.iter_mut().map(|(running, _)| running);
            for running in server.running.iter_mut().chain(unwritten) {
                let day = counter(Metric::TokensPerDay, running.reserved.at_ms);
                running.lapsed |= has(Metric::Parallel) && ended(counter(Metric::Parallel, 0));
                running.lapsed |= has(Metric::TokensPerDay) && ended(day);
            }
        }
    }

    fn check(&self, limits: &[(Metric, i64)], whole: bool) {
        let has = |wanted| limits.iter().any(|(metric, _)| *metric == wanted);
        let running = || self.servers.iter().flat_map(|server| &server.running);
        let parallel = running().filter(|running| !running.lapsed).count();
        assert!(!has(Metric::Parallel) || i64::try_from(parallel).unwrap() <= PARALLEL);
        let unwritten = self.servers.iter().flat_map(|server| &server.unwritten);
        let held = unwritten.map(|(running, used)| (*running, *used));
        let held = running()
            .map(|running| (*running, running.reserved.most))
            .chain(held);
        let mut days: BTreeMap<Counter, i64> = BTreeMap::new();
        for (running, tokens) in held.filter(|(running, _)| !running.lapsed) {
            *days
                .entry(counter(Metric::TokensPerDay, running.reserved.at_ms))
                .or_default() += tokens;
        }
        for (counter, held) in days {
            let written = self.shared.counts.get(&counter).map_or(0, |(value, _)| *value);
            let within = !has(Metric::TokensPerDay) || written + held <= DAY + self.lapsed;
            assert!(within, "{written} and {held} of a day");
        }
        // From the first on, or, where nothing that was reserved comes back, over any time.
        let begins = if !has(Metric::TokensPerMinute) {
            0
        } else if whole {
            self.taken.len()
        } else {
            1
        };
        let last = self.taken.last().filter(|(_, tokens)| *tokens > 0);
        for (at, (from, _)) in self.taken.iter().enumerate().take(begins) {
            let Some((to, _)) = last else { return };
            let sum: i64 = self.taken[at..].iter().map(|(_, tokens)| tokens).sum();
            let begin = if whole { *from } else { NOW_MS };
            assert!(
                sum * MINUTE_MS <= MINUTE * (MINUTE_MS + to - begin),
                "{sum} in {}",
                to - begin
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12_000))]

    /// However servers come and go, whatever their clocks show, and whatever is lost on the way to the database or from there.
    #[test]
    fn servers_together_pass_no_limit(
        offs in prop::collection::vec(-90_000_000_i64..90_000_000, 3),
        steps in steps(),
        whole in any::<bool>(),
        limits in prop::sample::subsequence(LIMITS, 1..=3),
    ) {
        let mut world = World::new(&offs);
        world.limited = limited(&limits);
        for (at, (pause, server, step)) in steps.into_iter().enumerate() {
            world.now_ms += pause;
            world.note_lapsed();
            let step = match step {
                Step::Settle(_) if whole => Step::Settle(100),
                step => step,
            };
            world.go(server, step, 3 + at);
            world.check(&limits, whole);
        }
    }
}
