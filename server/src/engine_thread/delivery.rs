//! How events reach their streams: all of a step at once, while the next step is computed. Brought one by one by the engine's own
//! thread, they would wake a thread of HTTP's hundreds of times, which may want the engine's core before the next step has begun.

use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::thread::sched_getcpu;
use tokio::runtime::{self, Handle};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use super::StreamEvent;

/// Where events of one submission go. It needs no limit of its own, as it holds one answer at most: `max_tokens`, and three events
/// beside. So a slow client never holds up a step.
pub(super) type Events = UnboundedSender<StreamEvent>;

/// Events of one step, and the streams that they are for.
type Parcel = Vec<(Events, StreamEvent)>;

/// A task that brings events to the streams of one thread, where none of them has to wake another thread. What waits for it is, at most,
/// what its streams are still to be told.
#[derive(Clone)]
pub(super) struct Route {
    parcels: UnboundedSender<Parcel>,
    arrived: Arc<Arrived>,
    runtime: runtime::Id,
    /// Where it ran when it last brought any.
    core: Arc<AtomicUsize>,
}

thread_local! {
    static HERE: RefCell<Option<Route>> = const { RefCell::new(None) };
}

impl Route {
    /// The one of the caller's thread and runtime.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub(super) fn here() -> Self {
        let runtime = Handle::current().id();
        HERE.with_borrow_mut(|here| match here {
            Some(route) if route.runtime == runtime => route.clone(),
            _ => here.insert(Self::open(runtime)).clone(),
        })
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the task ends with its runtime, whose streams alone it serves"
    )]
    fn open(runtime: runtime::Id) -> Self {
        let (parcels, arrived) = mpsc::unbounded_channel();
        let arrived = Arc::new(Arrived(Mutex::new(arrived)));
        let core = Arc::new(AtomicUsize::new(usize::MAX));
        let (open, ran_on) = (Open(Arc::clone(&arrived)), Arc::clone(&core));
        tokio::spawn(async move {
            while poll_fn(|context| open.0.poll_deliver(context)).await {
                ran_on.store(sched_getcpu(), Ordering::Relaxed);
            }
        });
        Self {
            parcels,
            arrived,
            runtime,
            core,
        }
    }

    /// Delivers at once what its task has not come to yet.
    pub(super) fn deliver(&self) {
        self.arrived.deliver();
    }
}

/// Parcels for the streams of one thread. The lock is held until a parcel is delivered whole, so that the next one overtakes nothing.
struct Arrived(Mutex<UnboundedReceiver<Parcel>>);

impl Arrived {
    fn lock(&self) -> MutexGuard<'_, UnboundedReceiver<Parcel>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Delivers the next parcel. False: there will be none.
    fn poll_deliver(&self, context: &mut Context<'_>) -> Poll<bool> {
        let mut parcels = self.lock();
        let parcel = ready!(parcels.poll_recv(context));
        Poll::Ready(parcel.map(deliver).is_some())
    }

    fn deliver(&self) {
        let mut parcels = self.lock();
        while let Ok(parcel) = parcels.try_recv() {
            deliver(parcel);
        }
    }
}

/// What a route's task has: where its runtime ends, so does the route.
struct Open(Arc<Arrived>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.lock().close();
        self.0.deliver();
    }
}

fn deliver(parcel: Parcel) {
    for (events, event) in parcel {
        // Who has left is seen before the next step.
        let _ = events.send(event);
    }
}

/// Events that were made and are still to be brought, at the latest when this is dropped.
#[derive(Default)]
pub(super) struct Delivery(Vec<(Route, Parcel)>);

impl Delivery {
    /// Keeps an event until all are brought.
    pub(super) fn add(&mut self, route: &Route, events: &Events, event: StreamEvent) {
        let entry = (events.clone(), event);
        let known = |to: &Route| to.parcels.same_channel(&route.parcels);
        match self.0.iter_mut().find(|(to, _)| known(to)) {
            Some((_, parcel)) => parcel.push(entry),
            None => self.0.push((route.clone(), vec![entry])),
        }
    }

    /// Has all of them brought, each stream's in the order in which they were added.
    pub(super) fn bring(&mut self) {
        let mut parcels = std::mem::take(&mut self.0);
        let here = sched_getcpu();
        // Whoever would take the caller's core is woken last.
        parcels.sort_by_key(|(route, _)| route.core.load(Ordering::Relaxed) == here);
        for (route, parcel) in parcels {
            // A runtime that has ended has no streams either.
            let _ = route.parcels.send(parcel);
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.bring();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::{Builder, JoinHandle};
    use std::time::Instant;

    use rempart_engine::{Event, Finish};
    use tokio::runtime::Runtime;

    use super::super::TokenStream;
    use super::*;

    fn runtime() -> Runtime {
        runtime::Builder::new_current_thread().build().unwrap()
    }

    fn event(choice: usize) -> StreamEvent {
        StreamEvent {
            choice,
            event: Event::Finished(Finish::Length),
            at: Instant::now(),
        }
    }

    /// A thread with a route of its own, and the choices that its one stream is told of, to its end.
    fn listen(opened: Sender<(Route, Events)>) -> JoinHandle<Vec<usize>> {
        let hear = async move {
            let (events, mut stream) = mpsc::unbounded_channel();
            opened.send((Route::here(), events)).unwrap();
            let mut heard = Vec::new();
            while let Some(event) = stream.recv().await {
                heard.push(event.choice);
            }
            heard
        };
        Builder::new().spawn(|| runtime().block_on(hear)).unwrap()
    }

    #[test]
    fn each_stream_has_its_events_in_order_whoever_has_left() {
        let (opened, routes) = channel();
        let threads = [listen(opened.clone()), listen(opened.clone()), listen(opened)];
        let mut open: Vec<_> = routes.iter().take(threads.len()).collect();
        let mut delivery = Delivery::default();
        for step in 0..100 {
            // Another one is the first of each step.
            open.rotate_left(1);
            for (route, events) in &open {
                delivery.add(route, events, event(2 * step));
                delivery.add(route, events, event(2 * step + 1));
            }
            delivery.bring();
        }
        let (gone, _) = open.pop().unwrap();
        for (route, events) in &open {
            delivery.add(&gone, events, event(999));
            delivery.add(route, events, event(200));
        }
        drop(open);
        // What was not brought yet is brought now.
        drop(delivery);
        let mut heard: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        heard.sort_by_key(Vec::len);
        assert_eq!(heard[0], (0..200).collect::<Vec<_>>());
        for mut living in heard.drain(1..) {
            // By way of another thread, whose task may have ended with its stream or not.
            living.retain(|choice| *choice != 999);
            assert_eq!(living, (0..=200).collect::<Vec<_>>());
        }
    }

    #[test]
    fn whoever_cannot_wait_has_what_is_on_its_way_at_once() {
        runtime().block_on(async {
            let (events, receiver) = mpsc::unbounded_channel();
            let route = Route::here();
            let mut stream = TokenStream {
                events: receiver,
                route: route.clone(),
                stopped: Arc::default(),
            };
            let mut delivery = Delivery::default();
            let mut bring = |choice| {
                delivery.add(&route, &events, event(choice));
                delivery.bring();
            };
            // The route's task has begun to wait when it is left nothing of what wakes it.
            tokio::task::yield_now().await;
            bring(0);
            bring(1);
            let mut next = || stream.try_next().map(|event| event.choice);
            assert_eq!((next(), next(), next()), (Some(0), Some(1), None));
            tokio::task::yield_now().await;
            bring(2);
            assert_eq!(stream.next().await.unwrap().choice, 2, "the task goes on");
        });
    }

    #[test]
    fn a_thread_has_a_route_in_each_of_its_runtimes() {
        let (first, second) = (runtime(), runtime());
        let here = async { Route::here() };
        let route = first.block_on(async { Route::here() });
        assert!(route.parcels.same_channel(&first.block_on(here).parcels));
        let other = second.block_on(async { Route::here() });
        assert!(!route.parcels.same_channel(&other.parcels));
        drop(second);
        assert!(other.parcels.is_closed());
        assert!(!route.parcels.is_closed());
    }
}
