//! Turns at the processor: models that share it compute one after the other, in the order in which they asked.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A queue for the processor. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    tickets: Mutex<Tickets>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct Tickets {
    next: u64,
    called: u64,
}

/// The right to compute, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    shared: &'a Shared,
    /// Numbers count up by one for each turn that anybody takes.
    pub number: u64,
}

impl Turns {
    /// Waits until it is the caller's turn. A lock alone would let one who has just ended begin again before the others.
    pub fn wait(&self) -> Turn<'_> {
        self.wait_after(|| ())
    }

    /// Waits likewise; where it is somebody else's turn, `before` is called first.
    pub fn wait_after(&self, before: impl FnOnce()) -> Turn<'_> {
        let mut tickets = self.0.lock();
        let own = tickets.next;
        tickets.next += 1;
        if tickets.called != own {
            drop(tickets);
            before();
            tickets = self.0.lock();
        }
        let waiting = self.0.called.wait_while(tickets, |tickets| tickets.called != own);
        drop(waiting.unwrap_or_else(PoisonError::into_inner));
        Turn {
            shared: &self.0,
            number: own,
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tickets> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.lock().called += 1;
        self.shared.called.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_comes_before_waiting_is_done_only_where_one_waits() {
        let turns = Turns::default();
        let first = turns.wait_after(|| panic!("it is nobody else's turn"));
        std::thread::scope(|scope| {
            let (told, hears) = std::sync::mpsc::channel();
            let turns = &turns;
            scope.spawn(move || turns.wait_after(|| told.send(()).unwrap()).number);
            // The first turn has not ended.
            hears.recv().unwrap();
            drop(first);
        });
    }

    #[test]
    fn turns_come_in_the_order_of_asking() {
        let turns = Turns::default();
        let (order, inside) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
        let first = turns.wait();
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let (turns, order, inside) = (turns.clone(), &order, &inside);
                scope.spawn(move || {
                    while turns.0.lock().next != thread + 1 {
                        std::thread::yield_now();
                    }
                    let turn = turns.wait();
                    assert_eq!(inside.fetch_add(1, Ordering::Relaxed), 0, "one at a time");
                    order.lock().unwrap().push(thread);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::Relaxed);
                    drop(turn);
                });
            }
            while turns.0.lock().next != 9 {
                std::thread::yield_now();
            }
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), (0..8).collect::<Vec<_>>());
    }
}
