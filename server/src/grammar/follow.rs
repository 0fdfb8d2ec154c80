//! A compiled grammar as the engine sees it.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use llguidance::Matcher;
use rempart_engine::{Advance, Constraint, Grammar, Then, Token, TokenMask};

/// A grammar at its start; locked, as threads may share a matcher only so.
pub(super) struct Compiled(Mutex<Matcher>);

impl Compiled {
    pub(super) fn new(start: Matcher) -> Self {
        Self(Mutex::new(start))
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Compiled")
    }
}

impl Grammar for Compiled {
    fn start(&self) -> Box<dyn Constraint> {
        // With a lexer of its own: what is left of a shared one's limits would depend on all who used it before.
        let start = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Box::new(Follower(start.deep_clone()))
    }
}

/// One sequence's place in a grammar.
struct Follower(Matcher);

impl fmt::Debug for Follower {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Follower")
    }
}

impl Follower {
    fn then(&self) -> Then {
        if !self.0.is_stopped() {
            Then::More
        } else if self.0.stop_reason().is_ok() {
            Then::Nothing
        } else {
            Then::Failure
        }
    }
}

impl Constraint for Follower {
    fn allowed(&mut self) -> TokenMask {
        let mask = self.0.compute_mask_or_eos();
        mask.map_or_else(
            |_| TokenMask::none(),
            |mask| TokenMask::from_words(mask.as_slice().to_vec()),
        )
    }

    fn advance(&mut self, token: Token, force: bool) -> Advance {
        let consumed = self.0.consume_token(token);
        let forced = if consumed.is_ok() && force && self.then() == Then::More {
            self.0.consume_ff_tokens()
        } else {
            Vec::new()
        };
        Advance {
            forced,
            then: self.then(),
        }
    }
}
