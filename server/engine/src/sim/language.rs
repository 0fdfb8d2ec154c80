//! Small languages over the two tokens of the simulator: each place allows one of them, both, or nothing more.

use crate::constraint::{Advance, Constraint, Grammar, Then, TokenMask};
use crate::request::Token;
use crate::rng::mix;

/// A language whose places follow from a number.
#[derive(Debug)]
pub(super) struct Language(pub(super) u64);

/// Where a text of it has come to.
#[derive(Debug)]
struct Place(u64);

impl Grammar for Language {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(Place(mix(self.0)))
    }
}

impl Place {
    fn tokens(&self) -> &'static [Token] {
        match self.0 % 16 {
            0 => &[],
            1..=5 => &[0],
            6..=10 => &[1],
            _ => &[0, 1],
        }
    }

    fn go(&mut self, token: Token) {
        self.0 = mix(self.0 ^ u64::from(token + 1));
    }
}

impl Constraint for Place {
    fn allowed(&mut self) -> TokenMask {
        self.tokens().iter().copied().collect()
    }

    fn advance(&mut self, token: Token, force: bool) -> Advance {
        if !self.tokens().contains(&token) {
            return Advance {
                then: Then::Failure,
                ..Advance::default()
            };
        }
        self.go(token);
        let mut forced = Vec::new();
        while let ([only], true) = (self.tokens(), force) {
            forced.push(*only);
            self.go(*only);
        }
        let then = if self.tokens().is_empty() {
            Then::Nothing
        } else {
            Then::More
        };
        Advance { forced, then }
    }
}
