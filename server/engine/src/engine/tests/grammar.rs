use super::*;
use crate::constraint::{Advance, Constraint, Grammar, SharedGrammar, Then, TokenMask};
use std::sync::Arc;

/// Places by number; each allows tokens that lead to the next place.
#[derive(Clone, Debug)]
struct Line {
    places: Vec<Vec<Token>>,
    at: usize,
}

impl Grammar for Line {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

impl Constraint for Line {
    fn allowed(&mut self) -> TokenMask {
        self.places[self.at].iter().copied().collect()
    }

    fn advance(&mut self, token: Token, force: bool) -> Advance {
        assert!(self.places[self.at].contains(&token), "{token} at {}", self.at);
        self.at += 1;
        let mut forced = Vec::new();
        while let (Some([only]), true) = (self.places.get(self.at).map(Vec::as_slice), force) {
            forced.push(*only);
            self.at += 1;
        }
        let then = if self.at == self.places.len() {
            Then::Nothing
        } else {
            Then::More
        };
        Advance { forced, then }
    }
}

fn constrained(places: &[&[Token]], max_tokens: usize) -> Request {
    let places = places.iter().map(|place| place.to_vec()).collect();
    Request {
        grammar: Some(SharedGrammar(Arc::new(Line { places, at: 0 }))),
        ..request(&[1, 2, 3], max_tokens)
    }
}

/// What a request gives, and the steps that takes.
fn serve(request: Request) -> (Vec<Token>, Finish, usize) {
    let mut engine = engine(CONFIG);
    engine.add(RequestId(0), request, 0).unwrap();
    let (mut tokens, mut end, mut steps) = (Vec::new(), None, 0);
    while engine.has_work() {
        let report = engine.step(0).unwrap();
        engine.check_integrity();
        steps += usize::from(report.prefill_tokens + report.decode_tokens > 0);
        for output in report.outputs {
            match output.event {
                Event::Token(sampled) => tokens.push(sampled.token),
                Event::Finished(finish) => end = Some(finish),
                _ => {}
            }
        }
    }
    (tokens, end.unwrap(), steps)
}

/// A choice, four tokens without one, a choice, an end.
const PLACES: &[&[Token]] = &[&[4, 5], &[6], &[7], &[8], &[9], &[10, 11], &[12]];

#[test]
fn forced_tokens_take_no_steps() {
    let (tokens, finish, steps) = serve(constrained(PLACES, 40));
    assert!(
        PLACES
            .iter()
            .zip(&tokens)
            .all(|(place, token)| place.contains(token))
    );
    assert_eq!((tokens.len(), finish), (7, Finish::Complete));
    assert_eq!(
        steps, 2,
        "one for the prompt and one for all that the first choice forced"
    );
    let mut spelt = constrained(PLACES, 40);
    spelt.sampling.logprobs = Some(0);
    let (same, finish, steps) = serve(spelt);
    assert_eq!(
        (same, finish, steps),
        (tokens, Finish::Complete, 7),
        "one by one where each has a likelihood to tell"
    );
}

#[test]
fn forced_tokens_stop_where_others_would() {
    let (tokens, finish, _) = serve(constrained(PLACES, 3));
    assert_eq!((tokens.len(), finish), (3, Finish::Length));
    let mut stopped = constrained(PLACES, 40);
    stopped.stop.tokens = vec![8];
    let (tokens, finish, _) = serve(stopped);
    assert_eq!((tokens.len(), finish), (3, Finish::Stop(8)));
}

#[test]
fn a_place_without_tokens_ends_its_sequence_alone() {
    let mut engine = engine(CONFIG);
    engine
        .add(RequestId(0), constrained(&[&[4, 5], &[], &[6]], 40), 0)
        .unwrap();
    engine.add(RequestId(1), request(&[1, 2], 5), 0).unwrap();
    let ends = finishes(&run_all(&mut engine));
    assert!(
        ends.contains(&(0, 0, Finish::Stuck)) && ends.contains(&(1, 0, Finish::Length)),
        "{ends:?}"
    );
}
