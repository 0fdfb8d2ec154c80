//! Reasoning in front of an answer: it is free, ends by a token, and has a budget. What an answer must be begins behind it.

use std::sync::Arc;

use rempart_engine::{Advance, Constraint, Grammar, SharedGrammar, Then, Token, TokenMask};

use crate::chat::plan::Thinking;

/// Reasoning, and then an answer.
#[derive(Debug)]
struct Reasoned {
    thinking: Thinking,
    /// All tokens but those that end a text.
    everything: Arc<TokenMask>,
    eos_tokens: Vec<Token>,
    answer: Option<SharedGrammar>,
}

/// The grammar of reasoning in front of an answer. `vocab_size` is that of the logits.
pub(super) fn reasoned(
    thinking: Thinking,
    vocab_size: usize,
    eos_tokens: &[Token],
    answer: Option<SharedGrammar>,
) -> SharedGrammar {
    let tokens = 0..Token::try_from(vocab_size).unwrap_or(Token::MAX);
    let everything = tokens.filter(|token| !eos_tokens.contains(token)).collect();
    SharedGrammar(Arc::new(Reasoned {
        thinking,
        everything: Arc::new(everything),
        eos_tokens: eos_tokens.to_vec(),
        answer,
    }))
}

impl Grammar for Reasoned {
    fn start(&self) -> Box<dyn Constraint> {
        Box::new(Place {
            thinking: self.thinking,
            everything: Arc::clone(&self.everything),
            eos_tokens: self.eos_tokens.clone(),
            answer: self.answer.as_ref().map(|answer| answer.0.start()),
            phase: if self.thinking.begun {
                Phase::Inside { tokens: 0 }
            } else {
                Phase::Before
            },
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first token tells whether there is any reasoning.
    Before,
    /// So many tokens of it were made.
    Inside {
        tokens: usize,
    },
    Behind,
}

/// One sequence's place.
#[derive(Debug)]
struct Place {
    thinking: Thinking,
    everything: Arc<TokenMask>,
    eos_tokens: Vec<Token>,
    /// `None` where an answer may be anything.
    answer: Option<Box<dyn Constraint>>,
    phase: Phase,
}

impl Place {
    fn is_spent(&self, tokens: usize) -> bool {
        self.thinking.budget.is_some_and(|budget| tokens >= budget)
    }

    /// What an answer may go on with.
    fn answer(&mut self) -> TokenMask {
        if let Some(answer) = &mut self.answer {
            return answer.allowed();
        }
        let mut mask = (*self.everything).clone();
        self.eos_tokens.iter().for_each(|token| mask.allow(*token));
        mask
    }

    /// Reasoning after so many tokens of it.
    fn think(&mut self, tokens: usize, force: bool) -> Advance {
        self.phase = Phase::Inside { tokens };
        if !(force && self.is_spent(tokens)) {
            return Advance::default();
        }
        self.phase = Phase::Behind;
        Advance {
            forced: vec![self.thinking.tokens.close],
            then: Then::More,
        }
    }
}

impl Constraint for Place {
    fn allowed(&mut self) -> TokenMask {
        match self.phase {
            Phase::Before => {
                let mut mask = self.answer();
                mask.allow(self.thinking.tokens.open);
                mask
            }
            Phase::Inside { tokens } if self.is_spent(tokens) => {
                [self.thinking.tokens.close].into_iter().collect()
            }
            // An answer must follow, so the text can't end here.
            Phase::Inside { .. } => (*self.everything).clone(),
            Phase::Behind => self.answer(),
        }
    }

    fn advance(&mut self, token: Token, force: bool) -> Advance {
        match self.phase {
            Phase::Before if token == self.thinking.tokens.open => self.think(0, force),
            Phase::Inside { .. } if token == self.thinking.tokens.close => {
                self.phase = Phase::Behind;
                Advance::default()
            }
            Phase::Inside { tokens } => self.think(tokens + 1, force),
            Phase::Before | Phase::Behind => {
                self.phase = Phase::Behind;
                let answer = self.answer.as_mut();
                answer.map_or_else(Advance::default, |answer| answer.advance(token, force))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::template::ThinkingTokens;

    const EOS: Token = 9;
    const TOKENS: ThinkingTokens = ThinkingTokens { open: 7, close: 8 };

    /// Says 1, then 2, and nothing else.
    #[derive(Debug)]
    struct OneTwo(Token);

    impl Grammar for OneTwo {
        fn start(&self) -> Box<dyn Constraint> {
            Box::new(Self(self.0))
        }
    }

    impl Constraint for OneTwo {
        fn allowed(&mut self) -> TokenMask {
            [self.0].into_iter().collect()
        }

        fn advance(&mut self, token: Token, _force: bool) -> Advance {
            assert_eq!(token, self.0);
            self.0 += 1;
            Advance {
                forced: Vec::new(),
                then: if self.0 > 2 { Then::Nothing } else { Then::More },
            }
        }
    }

    fn start(begun: bool, budget: Option<usize>, answer: bool) -> Box<dyn Constraint> {
        let thinking = Thinking {
            tokens: TOKENS,
            begun,
            budget,
        };
        let answer = answer.then(|| SharedGrammar(Arc::new(OneTwo(1))));
        reasoned(thinking, 10, &[EOS], answer).0.start()
    }

    fn allowed(place: &mut dyn Constraint) -> Vec<Token> {
        let mask = place.allowed();
        (0..12).filter(|token| mask.allows(*token)).collect()
    }

    #[test]
    fn an_answer_follows_reasoning_or_comes_at_once() {
        let mut place = start(false, None, true);
        assert_eq!(allowed(&mut *place), [1, 7]);
        place.advance(1, true);
        assert_eq!(allowed(&mut *place), [2]);
        assert_eq!(place.advance(2, true).then, Then::Nothing);

        let mut place = start(false, None, true);
        place.advance(7, true);
        assert_eq!(
            allowed(&mut *place),
            (0..9).collect::<Vec<_>>(),
            "all but the end"
        );
        place.advance(3, true);
        place.advance(8, true);
        assert_eq!(allowed(&mut *place), [1]);
    }

    #[test]
    fn a_budget_closes_reasoning() {
        let mut place = start(true, Some(2), false);
        assert!(place.advance(3, true).forced.is_empty());
        assert_eq!(place.advance(4, true).forced, [8]);
        assert_eq!(
            allowed(&mut *place),
            (0..10).collect::<Vec<_>>(),
            "the answer is free"
        );
        // With likelihoods nothing is forced: the one token is sampled.
        let mut place = start(true, Some(1), true);
        assert!(place.advance(3, false).forced.is_empty());
        assert_eq!(allowed(&mut *place), [8]);
        place.advance(8, false);
        assert_eq!(allowed(&mut *place), [1]);
        assert_eq!(allowed(&mut *start(true, Some(0), true)), [8]);
        let opened = start(false, Some(0), true).advance(7, true);
        assert_eq!(opened.forced, [8]);
    }
}
