//! Reads an answer as it arrives.

use super::calls::{CallSyntax, Head, Tail};
use super::object::ObjectScanner;
use super::reasoning::ReasoningMarkers;

/// White space that is dropped in front of a marker, bytes: a model that writes more of it means it.
const BLANKS_MAX: usize = 64;

/// Something that an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Reasoning(String),
    Content(String),
    /// A function of this name is called; its arguments follow.
    Call(String),
    /// More of the arguments of the latest call, as the model wrote them.
    Arguments(String),
    /// So many characters of syntax, which say nothing.
    Syntax(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing but white space so far: reasoning may begin.
    Start,
    Reasoning,
    /// A span of reasoning or a call was before: white space is dropped.
    Lead,
    /// Where a call without a tag would begin.
    Bare,
    Content,
    /// A call's tag was read, or the list goes on.
    Head {
        first: bool,
    },
    Arguments(ObjectScanner),
    Tail,
}

/// The functions that an answer may call.
#[derive(Clone, Debug)]
pub struct Callable {
    /// How calls are written.
    pub syntax: CallSyntax,
    pub names: Vec<String>,
    /// Whether an answer is calls and nothing else.
    pub required: bool,
    /// Whether a call may be what an answer begins with, without a tag.
    pub bare: bool,
}

/// The calls of one answer.
#[derive(Debug)]
struct Calls {
    syntax: CallSyntax,
    /// The syntax of those at its beginning, until something else came.
    bare: Option<CallSyntax>,
    names: Vec<String>,
    /// Whether nothing else is to come: they are required, or one was made.
    only: bool,
}

/// Tells the parts of one answer apart. What it gives does not depend on the pieces that the text came in, but for where
/// a part is cut in two.
#[derive(Debug)]
pub struct Reader {
    reasoning: Option<ReasoningMarkers>,
    calls: Option<Calls>,
    state: State,
    /// Whether white space is dropped that comes next in the reasoning.
    reasoning_begins: bool,
    /// Text that is not understood yet.
    held: String,
}

impl Reader {
    /// `begun`: the prompt ends in a span of reasoning.
    pub fn new(reasoning: Option<ReasoningMarkers>, calls: Option<Callable>, begun: bool) -> Self {
        let mut reader = Self {
            reasoning,
            calls: calls.map(|calls| Calls {
                bare: calls.syntax.bare().filter(|_| calls.bare),
                syntax: calls.syntax,
                names: calls.names,
                only: calls.required,
            }),
            state: State::Start,
            reasoning_begins: true,
            held: String::new(),
        };
        if reasoning.is_none() {
            reader.state = reader.answer();
        } else if begun {
            reader.state = State::Reasoning;
        }
        reader
    }

    /// Whether what comes next belongs to the reasoning, as far as is known.
    pub fn is_reasoning(&self) -> bool {
        self.state == State::Reasoning
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: &str) -> Vec<Part> {
        self.held.push_str(piece);
        let mut parts = Vec::new();
        while !self.held.is_empty() && self.step(&mut parts) {}
        parts
    }

    /// The text has ended: what was held back. Of a call that was cut off before its arguments there is nothing to tell.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let length = self.held.len();
        // The beginning of a call, where nothing else would come.
        let calls = self.calls.as_ref().filter(|calls| calls.only);
        let tag = calls.and_then(|calls| calls.syntax.trigger());
        if tag.is_some_and(|tag| tag.starts_with(&self.held))
            || (calls.is_some() && self.state == State::Bare)
        {
            self.state = State::Tail;
        }
        match self.state {
            State::Reasoning => self.give(length, Part::Reasoning, &mut parts),
            State::Arguments(_) => self.give(length, Part::Arguments, &mut parts),
            State::Head { .. } | State::Tail | State::Lead => self.skip(length, &mut parts),
            State::Start | State::Bare | State::Content => self.give(length, Part::Content, &mut parts),
        }
        parts
    }

    /// The state in front of what is no reasoning.
    fn answer(&self) -> State {
        let bare = self.calls.as_ref().and_then(|calls| calls.bare.as_ref());
        bare.map_or(State::Content, |_| State::Bare)
    }

    /// Understands something of what is held; false if more text is needed.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.state {
            State::Start => self.start(parts),
            State::Reasoning => self.reason(parts),
            State::Lead => {
                self.skip_blanks(parts);
                self.state = if self.held.is_empty() {
                    State::Lead
                } else {
                    self.answer()
                };
                true
            }
            State::Bare => self.bare(),
            State::Content => self.content(parts),
            State::Head { first } => self.head(first, parts),
            State::Arguments(scanner) => self.arguments(scanner, parts),
            State::Tail => self.tail(parts),
        }
    }

    fn start(&mut self, parts: &mut Vec<Part>) -> bool {
        let open = self.reasoning.map_or("", |markers| markers.open);
        let text = self.held.trim_start();
        let blanks = self.held.len() - text.len();
        if blanks <= BLANKS_MAX {
            if text.starts_with(open) {
                self.skip(blanks + open.len(), parts);
                self.state = State::Reasoning;
                return true;
            }
            if open.starts_with(text) {
                return false;
            }
        }
        self.state = self.answer();
        true
    }

    fn reason(&mut self, parts: &mut Vec<Part>) -> bool {
        let close = self.reasoning.map_or("", |markers| markers.close);
        if self.reasoning_begins {
            self.skip_blanks(parts);
            self.reasoning_begins = self.held.is_empty();
        }
        let found = self.give_until(close, Part::Reasoning, parts);
        if found {
            self.skip_blanks(parts);
            self.skip(close.len(), parts);
            self.state = State::Lead;
        }
        found
    }

    fn bare(&mut self) -> bool {
        let Some(calls) = &mut self.calls else {
            return false;
        };
        let found = calls.bare.as_ref().map(|bare| bare.head(&self.held, true));
        match found {
            Some(Head::Incomplete) => return false,
            Some(Head::Call(_, name)) if calls.names.iter().any(|known| known == name) => {
                // From here on there are only such calls.
                calls.syntax = calls.bare.clone().unwrap_or_else(|| calls.syntax.clone());
                self.state = State::Head { first: true };
            }
            _ => {
                calls.bare = None;
                self.state = State::Content;
            }
        }
        true
    }

    fn content(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(trigger) = self.calls.as_ref().and_then(|calls| calls.syntax.trigger()) else {
            self.give(self.held.len(), Part::Content, parts);
            return false;
        };
        let trigger = trigger.to_owned();
        let found = self.give_until(&trigger, Part::Content, parts);
        if found {
            self.state = State::Head { first: true };
        }
        found
    }

    fn head(&mut self, first: bool, parts: &mut Vec<Part>) -> bool {
        let Some(calls) = &mut self.calls else {
            return false;
        };
        let tag = calls.syntax.trigger().filter(|_| first);
        let blanks = tag.and_then(|tag| self.held.find(tag)).unwrap_or(0);
        let tag = tag.map_or(0, str::len);
        match calls.syntax.head(&self.held[blanks..], first) {
            Head::Incomplete => return false,
            Head::Call(length, name) => {
                let name = name.to_owned();
                calls.only = true;
                self.skip(blanks + length, parts);
                parts.push(Part::Call(name));
                self.state = State::Arguments(ObjectScanner::default());
            }
            // A grammar keeps this from happening; without one, it is content, the tag included.
            Head::Other => {
                self.give(blanks + tag, Part::Content, parts);
                self.state = State::Content;
            }
        }
        true
    }

    fn arguments(&mut self, mut scanner: ObjectScanner, parts: &mut Vec<Part>) -> bool {
        let end = scanner.scan(&self.held);
        self.give(end.unwrap_or(self.held.len()), Part::Arguments, parts);
        self.state = end.map_or(State::Arguments(scanner), |_| State::Tail);
        true
    }

    fn tail(&mut self, parts: &mut Vec<Part>) -> bool {
        let (length, state) = match self.calls.as_ref().map(|calls| calls.syntax.tail(&self.held)) {
            Some(Tail::Incomplete) => return false,
            Some(Tail::Next(length)) => (length, State::Head { first: false }),
            Some(Tail::End(length)) => (length, State::Lead),
            None => (0, State::Lead),
        };
        self.skip(length, parts);
        self.state = state;
        true
    }

    /// Gives what comes before a marker and the white space in front of it. Whether the marker is there; if not, what could
    /// become it is held.
    fn give_until(&mut self, marker: &str, part: fn(String) -> Part, parts: &mut Vec<Part>) -> bool {
        let found = self.held.find(marker);
        let end = found.unwrap_or_else(|| self.held.len() - begun(&self.held, marker));
        self.give(end - blanks_at_end(&self.held[..end]), part, parts);
        found.is_some()
    }

    fn give(&mut self, length: usize, part: fn(String) -> Part, parts: &mut Vec<Part>) {
        if length > 0 {
            parts.push(part(self.held.drain(..length).collect()));
        }
    }

    fn skip(&mut self, length: usize, parts: &mut Vec<Part>) {
        if length > 0 {
            parts.push(Part::Syntax(self.held.drain(..length).as_str().chars().count()));
        }
    }

    fn skip_blanks(&mut self, parts: &mut Vec<Part>) {
        self.skip(self.held.len() - self.held.trim_start().len(), parts);
    }
}

/// Bytes at the end of a text that are the beginning of a marker, and not the whole of it.
fn begun(text: &str, marker: &str) -> usize {
    let lengths = (1..marker.len())
        .rev()
        .filter(|length| marker.is_char_boundary(*length));
    let mut begun = lengths.filter(|length| text.ends_with(&marker[..*length]));
    begun.next().unwrap_or(0)
}

/// Bytes of white space at the end of a text, up to [`BLANKS_MAX`].
fn blanks_at_end(text: &str) -> usize {
    let blanks = text.len() - text.trim_end().len();
    let mut kept = blanks.min(BLANKS_MAX);
    while !text.is_char_boundary(text.len() - kept) {
        kept -= 1;
    }
    kept
}

#[cfg(test)]
mod tests;
