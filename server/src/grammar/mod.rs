//! Answers that follow a format: what a client asked for, compiled for the model's vocabulary and followed token by token.
//!
//! Compiling belongs to `llguidance` (an Earley parser over a lexer of regular expressions; Moskal et al.): first in a process
//! of its own, where it may take what it takes, then here, away from the engine's thread. What was compiled is kept for the
//! next request that asks for the same.

mod calls;
pub mod check;
mod follow;
mod patience;
mod schema;
mod thinking;
mod vocabulary;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{InferenceCapabilities, TokEnv};
use llguidance::{Matcher, ParserFactory};
use rempart_engine::SharedGrammar;
use rempart_text::Tokenizer;
use serde_json::{Value, json};

use crate::chat::plan::Thinking;
use crate::config::RequestLimits;
use crate::http::error::ApiError;
use crate::openai::format::{AskedFormat, OutputFormat};
use check::Trial;
use follow::Compiled;
use patience::Patience;
use vocabulary::Vocabulary;

/// Formats that are compiled at one time. Those that took too long for their client still count until they end.
pub const COMPILING_MAX: usize = 2;
/// When a client may try again if they are too many.
const RETRY_AFTER_S: u64 = 2;
/// Open brackets in each other, in a regular expression or a grammar.
const BRACKETS_MAX: usize = 100;
/// Work on the lexer to begin with, and its states, of up to 5 kB each.
const LEXER_FUEL_MAX: u64 = 1_000_000;
const LEXER_STATES_MAX: usize = 4_000;
/// Work on one mask, on the engine's thread, where every sequence waits for it: of the lexer and of the parser.
const MASK_FUEL_MAX: u64 = 50_000;
const MASK_ITEMS_MAX: usize = 2_000;
/// Ways in which a text may be read at one place.
const ROW_ITEMS_MAX: usize = 500;
/// White space between two parts of JSON: a blank, or a new line with deep indentation. No more: small models that may write it
/// write little else, and use up their tokens before the document ends.
const JSON_WHITE_SPACE: &str = r"\x20|\x0D?\x0A(\x20{0,32}|\x09{0,16})";
/// Characters of what the compiler says that a client is told.
const MESSAGE_MAX: usize = 300;

/// The code of the error for a format that can't be followed.
const INVALID: &str = "invalid_format";

/// How long a format that took too long is not tried again. By then the machine may be less busy.
const LATE_FOR: Duration = Duration::from_mins(1);

/// What came of a format.
#[derive(Clone)]
enum Known {
    Grammar(SharedGrammar),
    Refused(String),
    /// It took too long then.
    Late(Instant),
}

/// Why a format was not compiled.
enum Failure {
    Refused(String),
    Late,
    /// It is not the format's fault.
    Server(ApiError),
}

/// The formats of one model.
pub struct Grammars {
    tokenizer: Tokenizer,
    vocab_size: usize,
    eos_tokens: Vec<u32>,
    /// Made for the first request that needs it: it holds the vocabulary once more.
    factory: OnceLock<Option<Arc<ParserFactory>>>,
    /// The latest used comes first.
    compiled: Mutex<Vec<(OutputFormat, Known)>>,
    compiling: Arc<AtomicUsize>,
    /// The program that tries formats.
    program: PathBuf,
}

impl Grammars {
    /// `eos_tokens` end an answer; `vocab_size` is that of the logits; `program` is this server's, which tries formats.
    pub fn new(tokenizer: Tokenizer, vocab_size: usize, eos_tokens: Vec<u32>, program: PathBuf) -> Self {
        Self {
            program,
            tokenizer,
            vocab_size,
            eos_tokens,
            factory: OnceLock::new(),
            compiled: Mutex::default(),
            compiling: Arc::default(),
        }
    }

    /// The grammar of a format, or of its fallback. Blocks for as long as compiling may take.
    ///
    /// # Errors
    /// 400 with the reason where there is no such grammar or it takes too long, 503 where too many are being compiled.
    pub fn compile(&self, asked: &AskedFormat, limits: &RequestLimits) -> Result<SharedGrammar, ApiError> {
        match (
            self.compile_one(&asked.format, asked.param, limits),
            &asked.fallback,
        ) {
            (Err(error), Some(fallback)) if error.code == Some(INVALID) => {
                self.compile_one(fallback, asked.param, limits)
            }
            (result, _) => result,
        }
    }

    /// The grammar of a format, or of its fallback, that is compiled already.
    pub fn find(&self, asked: &AskedFormat) -> Option<SharedGrammar> {
        match (self.known(&asked.format)?, &asked.fallback) {
            (Known::Grammar(grammar), _) => Some(grammar),
            (Known::Refused(_) | Known::Late(_), Some(fallback)) => match self.known(fallback)? {
                Known::Grammar(grammar) => Some(grammar),
                Known::Refused(_) | Known::Late(_) => None,
            },
            (Known::Refused(_) | Known::Late(_), None) => None,
        }
    }

    /// The grammar of reasoning in front of an answer.
    pub fn reasoned(&self, thinking: Thinking, answer: Option<SharedGrammar>) -> SharedGrammar {
        thinking::reasoned(thinking, self.vocab_size, &self.eos_tokens, answer)
    }

    /// What came of a format before.
    fn known(&self, format: &OutputFormat) -> Option<Known> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.retain(|(_, known)| !matches!(known, Known::Late(since) if since.elapsed() >= LATE_FOR));
        let at = compiled.iter().position(|(known, _)| known == format)?;
        compiled[..=at].rotate_right(1);
        Some(compiled[0].1.clone())
    }

    fn compile_one(
        &self,
        format: &OutputFormat,
        param: &'static str,
        limits: &RequestLimits,
    ) -> Result<SharedGrammar, ApiError> {
        let refuse = |why: String| {
            // Behind its first line the compiler quotes the grammar.
            let why: String = why
                .lines()
                .next()
                .unwrap_or_default()
                .chars()
                .take(MESSAGE_MAX)
                .collect();
            ApiError::invalid(param, INVALID, format!("`{param}` can't be followed: {why}"))
        };
        let answer = |known| match known {
            Known::Grammar(grammar) => Ok(grammar),
            Known::Refused(why) => Err(refuse(why)),
            Known::Late(_) => {
                let limit = limits.grammar_timeout.as_millis();
                Err(refuse(format!("it takes longer than the limit of {limit} ms")))
            }
        };
        if let Some(known) = self.known(format) {
            return answer(known);
        }
        let result = match self.build(format, limits) {
            Ok(compiled) => Known::Grammar(SharedGrammar(Arc::new(compiled))),
            Err(Failure::Refused(why)) => Known::Refused(why),
            Err(Failure::Late) => Known::Late(Instant::now()),
            Err(Failure::Server(error)) => return Err(error),
        };
        // Another request may have asked for the same meanwhile.
        if let Some(known) = self.known(format) {
            return answer(known);
        }
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.insert(0, (format.clone(), result.clone()));
        compiled.truncate(limits.grammars_max);
        answer(result)
    }

    fn build(&self, format: &OutputFormat, limits: &RequestLimits) -> Result<Compiled, Failure> {
        let grammar = source(format, &|text| self.tokenizer.markup(text)).map_err(Failure::Refused)?;
        let factory = self
            .factory()
            .ok_or_else(|| Failure::Server(ApiError::internal()))?;
        let slot = Slot::take(&self.compiling).ok_or_else(|| Failure::Server(busy()))?;
        match check::in_child(&self.program, format, limits.grammar_timeout) {
            Ok(Trial::Passed) => {}
            Ok(Trial::Refused(why)) => return Err(Failure::Refused(why)),
            Ok(Trial::Late) => return Err(Failure::Late),
            Err(error) => {
                tracing::error!(%error, "formats can't be tried");
                return Err(Failure::Server(ApiError::internal()));
            }
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        let work = move || {
            let result = catch_unwind(AssertUnwindSafe(|| compile(&factory, grammar)));
            drop(slot);
            // Nobody waits any more for what took too long.
            let _ = sender.send(result.unwrap_or_else(|_| Err("its compiler failed".to_owned())));
        };
        let builder = thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(check::STACK_BYTES);
        builder.spawn(work).map_err(|_| Failure::Server(busy()))?;
        let mut patience = Patience::of(limits.grammar_timeout);
        loop {
            match receiver.recv_timeout(patience.look()) {
                Ok(compiled) => return compiled.map(Compiled::new).map_err(Failure::Refused),
                Err(RecvTimeoutError::Timeout) if !patience.is_over() => {}
                Err(_) => return Err(Failure::Late),
            }
        }
    }

    fn factory(&self) -> Option<Arc<ParserFactory>> {
        let make = || {
            let vocabulary = Vocabulary::new(self.tokenizer.clone(), self.vocab_size, &self.eos_tokens)?;
            let environment: TokEnv = Arc::new(vocabulary);
            factory(&environment).map(Arc::new)
        };
        self.factory.get_or_init(make).clone()
    }
}

/// A compiler for a vocabulary.
fn factory(environment: &TokEnv) -> Option<ParserFactory> {
    let can = InferenceCapabilities {
        ff_tokens: true,
        ..InferenceCapabilities::default()
    };
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let mut factory = ParserFactory::new(environment, can, &slices).ok()?;
    *factory.quiet().limits_mut() = ParserLimits {
        initial_lexer_fuel: LEXER_FUEL_MAX,
        max_lexer_states: LEXER_STATES_MAX,
        step_lexer_fuel: MASK_FUEL_MAX,
        step_max_items: MASK_ITEMS_MAX,
        max_items_in_row: ROW_ITEMS_MAX,
        // What a model wrote so far belongs in no message.
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Some(factory)
}

fn busy() -> ApiError {
    ApiError::overloaded(RETRY_AFTER_S)
}

/// One of the formats that are being compiled.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(compiling: &Arc<AtomicUsize>) -> Option<Self> {
        let slot = Self(Arc::clone(compiling));
        // Given back by `drop` if there were too many.
        (slot.0.fetch_add(1, Ordering::Relaxed) < COMPILING_MAX).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A format in the compiler's terms. `split` is what a vocabulary makes of markup.
fn source(format: &OutputFormat, split: calls::Split<'_>) -> Result<TopLevelGrammar, String> {
    Ok(match format {
        OutputFormat::JsonObject => json_schema(json!({"type": "object"}))?,
        OutputFormat::JsonSchema(text) => {
            let schema =
                serde_json::from_str(text).map_err(|error| format!("the schema is not JSON: {error}"))?;
            json_schema(schema)?
        }
        OutputFormat::Regex(pattern) => {
            check_brackets(pattern)?;
            TopLevelGrammar::from_regex(pattern)
        }
        OutputFormat::Choice(choices) => {
            let quoted: Vec<String> = choices.iter().map(|choice| calls::quoted(choice)).collect();
            TopLevelGrammar::from_lark(format!("start: {}", quoted.join(" | ")))
        }
        OutputFormat::Lark(text) => {
            check_brackets(text)?;
            // They would reach the compiler's own switches.
            if let Some(directive) = ["%json", "%llguidance"].iter().find(|word| text.contains(**word)) {
                return Err(format!("{directive} is not supported"));
            }
            TopLevelGrammar::from_lark(text.clone())
        }
        OutputFormat::Calls(format) => calls::grammar(format, split)?,
    })
}

fn json_schema(schema: Value) -> Result<TopLevelGrammar, String> {
    Ok(TopLevelGrammar::from_json_schema(prepared_schema(schema)?))
}

/// A schema as the compiler is given it.
fn prepared_schema(mut schema: Value) -> Result<Value, String> {
    schema::drop_unknown_formats(&mut schema);
    let fields = schema.as_object_mut().ok_or("a schema must be an object")?;
    // The compiler's own switches are not for clients: they could make it lenient.
    fields.insert(
        "x-guidance".to_owned(),
        json!({"whitespace_pattern": JSON_WHITE_SPACE}),
    );
    Ok(schema)
}

fn check_brackets(text: &str) -> Result<(), String> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > BRACKETS_MAX {
            return Err(format!("more than {BRACKETS_MAX} brackets are open at once"));
        }
    }
    Ok(())
}

/// A matcher at its start. Its first mask is made here, where it harms nobody if that takes long.
fn compile(factory: &ParserFactory, grammar: TopLevelGrammar) -> Result<Matcher, String> {
    let mut matcher = Matcher::new(factory.create_parser(grammar));
    let mask = matcher.compute_mask();
    if let Some(error) = matcher.get_error() {
        // The text of a panic is for its maker.
        return Err(if error.starts_with("panic") {
            "its compiler failed".to_owned()
        } else {
            error
        });
    }
    match mask {
        Ok(mask) if !mask.is_zero() => Ok(matcher),
        _ => Err("no text is of that format".to_owned()),
    }
}
