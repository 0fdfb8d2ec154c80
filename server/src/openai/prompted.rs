//! What somebody wrote last, by which one finds a request again.

/// A request with a prompt.
pub trait Prompted {
    /// The text of the last message of a user, or of the prompts, each on lines of its own; `None` where there is none, as of tokens.
    fn prompt(&self) -> Option<String>;
}

/// Texts, each on lines of its own, if there are any.
pub fn joined<'a>(texts: impl Iterator<Item = &'a str>) -> Option<String> {
    let all: Vec<&str> = texts.collect();
    (!all.is_empty()).then(|| all.join("\n"))
}
