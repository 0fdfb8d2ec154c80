//! A bounded cursor over the header's bytes.

use bytes::Bytes;

use super::super::Refusal;

/// Reads little-endian fields and never past the file's end or the header's limit.
pub(super) struct Reader<'a> {
    file: &'a Bytes,
    end: usize,
    position: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a Bytes, bytes_max: usize) -> Self {
        Self {
            file,
            end: file.len().min(bytes_max),
            position: 0,
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The bytes from `start` to the cursor, sharing the file's memory.
    pub(super) fn since(&self, start: usize) -> Bytes {
        self.file.slice(start..self.position)
    }

    pub(super) fn take(&mut self, field: &'static str, count: u64) -> Result<&'a [u8], Refusal> {
        let left = &self.file[self.position..self.end];
        match usize::try_from(count).ok().and_then(|count| left.get(..count)) {
            Some(bytes) => {
                self.position += bytes.len();
                Ok(bytes)
            }
            None => Err(self.cut_off(field, count)),
        }
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, Refusal> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, Refusal> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], Refusal> {
        let bytes = self.take(field, N as u64)?;
        <[u8; N]>::try_from(bytes).map_err(|_| self.cut_off(field, N as u64))
    }

    /// A 64-bit length, then that many bytes of UTF-8.
    pub(super) fn string(&mut self, field: &'static str, bytes_max: u64) -> Result<&'a str, Refusal> {
        let length = self.u64(field)?;
        if length > bytes_max {
            return Err(Refusal::new(
                field,
                format!("a string of {length} bytes"),
                format!("the limit is {bytes_max}"),
            ));
        }
        let bytes = self.take(field, length)?;
        std::str::from_utf8(bytes).map_err(|error| {
            let found = format!("a byte that is not UTF-8 at {} of {length}", error.valid_up_to());
            Refusal::new(field, found, "strings must be UTF-8")
        })
    }

    fn cut_off(&self, field: &'static str, count: u64) -> Refusal {
        let found = if self.end < self.file.len() {
            format!("the header's limit of {} bytes", self.end)
        } else {
            format!("the end of the file at byte {}", self.end)
        };
        Refusal::new(
            field,
            found,
            format!("{count} bytes are needed from byte {}", self.position),
        )
    }
}
