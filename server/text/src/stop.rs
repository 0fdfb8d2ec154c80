//! Stop strings over a stream of text pieces: found across any border, and nothing is held back needlessly.

use crate::Error;

/// What a piece led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    /// Text that no stop string can still claim; may be empty.
    Text(String),
    /// A stop string ended: the last text to send (with the stop string if it is to be included) and which one it was.
    Stopped { text: String, index: usize },
}

/// Searches all stop strings at once. The match that ends first wins, the longest of those that end together.
///
/// One Knuth-Morris-Pratt automaton per stop string: each byte costs O(1) amortised per stop, and the automata's states
/// say exactly how many bytes could still become a stop.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<Automaton>,
    include: bool,
    held: String,
    stopped: bool,
}

#[derive(Clone, Debug)]
struct Automaton {
    pattern: Vec<u8>,
    /// `borders[i]`: length of the longest proper prefix of `pattern` that ends at byte `i`.
    borders: Vec<usize>,
    /// Bytes of `pattern` that the text ends with.
    matched: usize,
}

impl Automaton {
    fn new(pattern: Vec<u8>) -> Self {
        let mut borders = vec![0; pattern.len()];
        for end in 1..pattern.len() {
            let mut length: usize = borders[end - 1];
            while length > 0 && pattern[length] != pattern[end] {
                length = borders[length - 1];
            }
            borders[end] = length + usize::from(pattern[length] == pattern[end]);
        }
        Self {
            pattern,
            borders,
            matched: 0,
        }
    }

    /// Takes a byte; true when the whole pattern has just been read. The next match may overlap it.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.pattern[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        self.matched += usize::from(self.pattern[self.matched] == byte);
        let found = self.matched == self.pattern.len();
        if found {
            self.matched = self.borders[self.matched - 1];
        }
        found
    }
}

impl StopMatcher {
    /// With `include`, the text given out ends with the stop string (`include_stop_str_in_output`).
    ///
    /// # Errors
    /// [`Error::EmptyStop`] if a stop string is empty.
    pub fn new(stops: Vec<String>, include: bool) -> Result<Self, Error> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::EmptyStop);
        }
        let stops = stops
            .into_iter()
            .map(|stop| Automaton::new(stop.into_bytes()))
            .collect();
        Ok(Self {
            stops,
            include,
            held: String::new(),
            stopped: false,
        })
    }

    /// Takes the next piece of text. After a stop every further piece is swallowed.
    pub fn push(&mut self, piece: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome::Text(String::new());
        }
        if self.stops.is_empty() {
            return StopOutcome::Text(piece.to_owned());
        }
        for (offset, byte) in piece.bytes().enumerate() {
            if let Some(index) = self.step(byte) {
                return self.stop(&piece[..=offset], index);
            }
        }
        StopOutcome::Text(self.release(piece))
    }

    /// Takes a piece in which stop strings may end without effect. One that begins in it and ends later still counts.
    pub fn pass(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        for byte in piece.bytes() {
            self.step(byte);
        }
        self.release(piece)
    }

    /// Gives out what no stop string can claim any more.
    fn release(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        let keep = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// The text ended without a stop, or is interrupted: what was held back. A stop string has to begin anew.
    pub fn finish(&mut self) -> String {
        self.stops.iter_mut().for_each(|stop| stop.matched = 0);
        std::mem::take(&mut self.held)
    }

    fn step(&mut self, byte: u8) -> Option<usize> {
        let mut found: Option<usize> = None;
        for index in 0..self.stops.len() {
            if self.stops[index].step(byte) {
                let longer = |best: usize| self.stops[index].pattern.len() > self.stops[best].pattern.len();
                if found.is_none_or(longer) {
                    found = Some(index);
                }
            }
        }
        found
    }

    fn stop(&mut self, read: &str, index: usize) -> StopOutcome {
        self.stopped = true;
        let mut text = std::mem::take(&mut self.held);
        text.push_str(read);
        if !self.include {
            text.truncate(text.len() - self.stops[index].pattern.len());
        }
        StopOutcome::Stopped { text, index }
    }
}
