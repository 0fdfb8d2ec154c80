//! The end of a JSON object in a text that arrives in pieces.

/// Follows strings and brackets, nothing else: what it reads was made by a grammar, or is told as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ObjectScanner {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl ObjectScanner {
    /// Reads on. Returns the bytes up to and including the bracket that closes the object, if it is in this piece.
    pub(super) fn scan(&mut self, piece: &str) -> Option<usize> {
        for (at, byte) in piece.bytes().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(at + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_found_in_any_pieces() {
        let object = r#"{"a": "}\"]\\", "b": [{"c": {}}, "é{"]}"#;
        let text = format!("{object}}}\n</tool_call>");
        for cut in (0..text.len()).filter(|cut| text.is_char_boundary(*cut)) {
            let mut scanner = ObjectScanner::default();
            let (first, second) = text.split_at(cut);
            let end = scanner
                .scan(first)
                .or_else(|| scanner.scan(second).map(|at| cut + at));
            assert_eq!(end, Some(object.len()), "cut at {cut}");
        }
    }
}
