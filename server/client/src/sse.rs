//! Server-sent events out of bytes as they come, with a limit on what an event may hold.

use crate::limits::EVENT_BYTES_MAX;

/// An event, or a line of one, is longer than any server's would be.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

/// Reads the `data` of events; other fields and comments are skipped. Lines end with LF or CR LF.
#[derive(Debug, Default)]
pub struct Events {
    /// Of a line whose end has not come.
    line: Vec<u8>,
    /// Of the lines of the event that has not ended.
    data: Vec<u8>,
    has_data: bool,
}

impl Events {
    /// Takes bytes, and gives the data of every event that ends within them.
    ///
    /// # Errors
    /// What `on_event` returned first; or `TooLong`.
    pub fn push<E: From<TooLong>>(
        &mut self,
        mut bytes: &[u8],
        mut on_event: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (head, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.line.is_empty() {
                self.take_line(head, &mut on_event)?;
                continue;
            }
            self.hold(head)?;
            let line = std::mem::take(&mut self.line);
            let taken = self.take_line(&line, &mut on_event);
            self.line = line;
            self.line.clear();
            taken?;
        }
        self.hold(bytes)?;
        Ok(())
    }

    /// Whether what came so far ends within an event.
    pub fn is_within(&self) -> bool {
        self.has_data || !self.line.is_empty()
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if self.line.len() + self.data.len() + bytes.len() > EVENT_BYTES_MAX {
            return Err(TooLong);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn take_line<E: From<TooLong>>(
        &mut self,
        line: &[u8],
        on_event: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            if !std::mem::take(&mut self.has_data) {
                return Ok(());
            }
            let given = on_event(&self.data);
            self.data.clear();
            return given;
        }
        let Some(value) = line.strip_prefix(b"data:") else {
            return Ok(());
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if self.data.len() + value.len() > EVENT_BYTES_MAX {
            return Err(TooLong.into());
        }
        if self.has_data {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        self.has_data = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(parts: &[&[u8]]) -> Result<Vec<String>, TooLong> {
        let (mut reader, mut found) = (Events::default(), Vec::new());
        for part in parts {
            reader.push::<TooLong>(part, |data| {
                found.push(String::from_utf8(data.to_vec()).unwrap());
                Ok(())
            })?;
        }
        Ok(found)
    }

    const STREAM: &[u8] = b": hello\r\n\r\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:two\ndata: lines\n\ndata: [DONE]\n\ndata: half";

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        let whole = events(&[STREAM]).unwrap();
        assert_eq!(whole, ["{\"a\":1}", "two\nlines", "[DONE]"]);
        for cut in 0..STREAM.len() {
            assert_eq!(events(&[&STREAM[..cut], &STREAM[cut..]]).unwrap(), whole, "{cut}");
        }
        let single: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(events(&single).unwrap(), whole);
    }

    #[test]
    fn a_line_without_an_end_is_refused_and_not_held() {
        let part = vec![b'x'; EVENT_BYTES_MAX / 4 + 1];
        assert_eq!(events(&[&part, &part, &part]), Ok(Vec::new()));
        assert_eq!(events(&[&part, &part, &part, &part]), Err(TooLong));
        let line = [b"data: ".as_slice(), &vec![b'x'; 1 << 16], b"\n"].concat();
        let lines: Vec<&[u8]> = std::iter::repeat_n(line.as_slice(), 17).collect();
        assert_eq!(events(&lines), Err(TooLong));
    }

    #[test]
    fn half_an_event_is_known_as_such() {
        let mut reader = Events::default();
        reader.push::<TooLong>(b"data: a\n\n", |_| Ok(())).unwrap();
        assert!(!reader.is_within());
        reader.push::<TooLong>(b"data: a\n", |_| Ok(())).unwrap();
        assert!(reader.is_within());
    }
}
