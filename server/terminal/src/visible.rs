//! Text from elsewhere, made harmless: what would steer a terminal is shown instead of obeyed.

use std::fmt::Write as _;

/// Text that a terminal shows and does not obey. Line ends and tabs stay; a carriage return, which would have text written over,
/// is dropped; other control characters, and those that turn the direction of writing, become signs for themselves.
///
/// It looks at single characters, so that a text that comes in parts may be given in parts.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            '\r' => {}
            // Unicode has a block of pictures of the first 32 and of DEL: an escape is ␛.
            '\0'..='\u{1f}' => shown.extend(char::from_u32(0x2400 + u32::from(c))),
            '\u{7f}' => shown.push('\u{2421}'),
            _ if steers(c) => {
                let _ = write!(shown, "<U+{:04X}>", u32::from(c));
            }
            _ => shown.push(c),
        }
    }
    shown
}

/// The same on one line, for names in tables and for messages, and cut to so many characters.
pub(crate) fn line(text: &str, chars_max: usize) -> String {
    let shown = visible(text).replace(['\n', '\t'], " ");
    if shown.chars().count() <= chars_max {
        return shown;
    }
    let mut cut: String = shown.chars().take(chars_max.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Control characters of 8 bits (U+009B begins a sequence as ESC [ does), marks and overrides of direction, separators of lines
/// that few terminals agree on, and tags that nobody sees.
fn steers(c: char) -> bool {
    matches!(c, '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_steers_a_terminal() {
        for c in '\0'..=char::MAX {
            let shown = visible(&c.to_string());
            let harmless = |c: char| matches!(c, '\n' | '\t') || !c.is_control() && !steers(c);
            assert!(shown.chars().all(harmless), "{c:?} became {shown:?}");
        }
    }

    #[test]
    fn sequences_are_shown_and_text_stays() {
        let title = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\rA\u{202e}B";
        assert_eq!(visible(title), "␛]0;owned␇␛[2J<U+009B>31mA<U+202E>B");
        let text = "Grüße,\n\t日本語 🦀 e\u{301}";
        assert_eq!(visible(text), text);
    }

    #[test]
    fn lines_are_one_line_and_cut() {
        assert_eq!(line("a\nb\u{1b}", 10), "a b␛");
        assert_eq!(line("abcdef", 4), "abc…");
        assert_eq!(line("", 4), "");
    }
}
