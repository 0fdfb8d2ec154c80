//! What processes send each other: a kind, a length and so many bytes, all numbers little endian.

use std::io::{self, Read, Write};

use crate::{AttentionRow, ForwardInput};

/// Bytes before what a frame carries.
const HEADER: usize = 8;
/// Most bytes of a step's input: block tables of the longest contexts, many times over.
const STEP_BYTES_MAX: usize = 1 << 28;
/// Most bytes of the reason for an end.
const REASON_BYTES_MAX: usize = 4096;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// The rank has loaded its part.
    Ready = 1,
    /// A step's input.
    Step,
    /// Numbers that are exchanged.
    Numbers,
    /// The rank has failed; the reason as text.
    Stop,
}

/// Why a frame is not what was waited for.
#[derive(Debug)]
pub(super) enum Unexpected {
    Io(io::Error),
    /// The other side has failed, and says why.
    Stopped(String),
    /// What the other side sent.
    Other(&'static str),
    /// What is wrong on this side.
    Own(&'static str),
}

impl From<io::Error> for Unexpected {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        [Self::Ready, Self::Step, Self::Numbers, Self::Stop]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// Puts a frame of `fill`'s bytes into `buffer`, in place of what was there.
pub(super) fn write_into(buffer: &mut Vec<u8>, kind: Kind, fill: impl FnOnce(&mut Vec<u8>)) {
    buffer.clear();
    buffer.extend((kind as u32).to_le_bytes());
    buffer.extend([0; 4]);
    fill(buffer);
    // Too long a frame says so by its length, which no reader takes.
    let len = u32::try_from(buffer.len() - HEADER).unwrap_or(u32::MAX);
    buffer[4..HEADER].copy_from_slice(&len.to_le_bytes());
}

pub(super) fn write_numbers(buffer: &mut Vec<u8>, numbers: &[f32]) {
    write_into(buffer, Kind::Numbers, |buffer| {
        buffer.reserve(size_of_val(numbers));
        buffer.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
    });
}

pub(super) fn write_stop(buffer: &mut Vec<u8>, reason: &str) {
    let reason = &reason.as_bytes()[..reason.floor_char_boundary(REASON_BYTES_MAX)];
    write_into(buffer, Kind::Stop, |buffer| buffer.extend(reason));
}

/// Reads `len` numbers into `buffer`.
pub(super) fn read_numbers(from: &mut impl Read, buffer: &mut Vec<u8>, len: usize) -> Result<(), Unexpected> {
    let bytes = read(from, buffer, Kind::Numbers, len.saturating_mul(size_of::<f32>()))?;
    if bytes != len * size_of::<f32>() {
        return Err(Unexpected::Other("numbers of another shape"));
    }
    Ok(())
}

/// The numbers of a buffer.
pub(super) fn numbers(buffer: &[u8]) -> impl Iterator<Item = f32> + '_ {
    buffer
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
}

pub(super) fn read_ready(from: &mut impl Read, buffer: &mut Vec<u8>) -> Result<(), Unexpected> {
    read(from, buffer, Kind::Ready, 0).map(drop)
}

pub(super) fn read_step(from: &mut impl Read, buffer: &mut Vec<u8>) -> Result<StepInput, Unexpected> {
    read(from, buffer, Kind::Step, STEP_BYTES_MAX)?;
    StepInput::decode(buffer).ok_or(Unexpected::Other("a step that is cut off"))
}

/// Reads why the other side has failed, where that is what it said last.
pub(super) fn read_stop(from: &mut impl Read, buffer: &mut Vec<u8>) -> Result<(), Unexpected> {
    read(from, buffer, Kind::Stop, 0).map(drop)
}

/// Reads a frame of one kind with at most `bytes_max` into `buffer`, and returns how many bytes it has.
fn read(
    from: &mut impl Read,
    buffer: &mut Vec<u8>,
    wanted: Kind,
    bytes_max: usize,
) -> Result<usize, Unexpected> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let [kind, len] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|i| header[at + i])));
    let kind = Kind::of(kind).ok_or(Unexpected::Other("a frame of no kind"))?;
    let limit = if kind == Kind::Stop {
        REASON_BYTES_MAX
    } else {
        bytes_max
    };
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > limit {
        return Err(Unexpected::Other("a frame that is too long"));
    }
    buffer.resize(len, 0);
    from.read_exact(buffer)?;
    if kind == Kind::Stop {
        return Err(Unexpected::Stopped(String::from_utf8_lossy(buffer).into_owned()));
    }
    if kind != wanted {
        return Err(Unexpected::Other("a frame of another kind"));
    }
    Ok(len)
}

/// A step's input, as another rank gets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepInput {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
    rows: Vec<AttentionRow>,
    logits: Vec<u32>,
}

impl StepInput {
    /// The input as a model reads it.
    pub fn forward_input(&self) -> ForwardInput<'_> {
        ForwardInput {
            tokens: &self.tokens,
            positions: &self.positions,
            slots: &self.slots,
            rows: &self.rows,
            logits: &self.logits,
        }
    }

    /// Puts the frame of `input` into `buffer`: lists of numbers, each behind its length.
    pub(super) fn encode(input: &ForwardInput<'_>, buffer: &mut Vec<u8>) {
        write_into(buffer, Kind::Step, |buffer| {
            let mut list = |numbers: &[u32]| {
                buffer.extend((numbers.len() as u32).to_le_bytes());
                buffer.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            };
            list(input.tokens);
            list(input.positions);
            list(input.slots);
            list(input.logits);
            list(&[input.rows.len() as u32]);
            for row in input.rows {
                let (start, end) = (row.tokens.start as u32, row.tokens.end as u32);
                list(&[start, end, row.context_len as u32]);
                list(&row.block_table);
            }
        });
    }

    /// `None` where lengths and bytes do not agree. What the numbers mean is checked by the operations that use them.
    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut list = || -> Option<Vec<u32>> {
            let len = take(&mut bytes, 1)?.first().copied()?;
            take(&mut bytes, usize::try_from(len).ok()?)
        };
        let mut input = Self {
            tokens: list()?,
            positions: list()?,
            slots: list()?,
            logits: list()?,
            rows: Vec::new(),
        };
        let rows = list()?;
        for _ in 0..*rows.first()? {
            let &[start, end, context] = list()?.as_slice() else {
                return None;
            };
            input.rows.push(AttentionRow {
                tokens: start as usize..end as usize,
                context_len: context as usize,
                block_table: list()?,
            });
        }
        bytes.is_empty().then_some(input)
    }
}

/// The next `count` numbers, if there are as many.
fn take(bytes: &mut &[u8], count: usize) -> Option<Vec<u32>> {
    let (numbers, rest) = bytes.split_at_checked(count.checked_mul(size_of::<u32>())?)?;
    *bytes = rest;
    let numbers = numbers.as_chunks().0.iter();
    Some(numbers.map(|bytes| u32::from_le_bytes(*bytes)).collect())
}

/// Writes a frame that is in `buffer`.
pub(super) fn send(to: &mut impl Write, buffer: &[u8]) -> io::Result<()> {
    to.write_all(buffer)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = Vec<AttentionRow>> {
        let row = (
            0_usize..9,
            0_usize..9,
            0_usize..99,
            prop::collection::vec(any::<u32>(), 0..5),
        );
        let row = row.prop_map(|(start, len, context_len, block_table)| AttentionRow {
            tokens: start..start + len,
            context_len,
            block_table,
        });
        prop::collection::vec(row, 0..4)
    }

    proptest! {
        #[test]
        fn steps_come_as_they_were_sent(
            lists in prop::collection::vec(prop::collection::vec(any::<u32>(), 0..7), 4),
            rows in rows(),
            cut in 0_usize..64,
        ) {
            let [tokens, positions, slots, logits] = <[Vec<u32>; 4]>::try_from(lists).unwrap();
            let step = StepInput { tokens, positions, slots, rows, logits };
            let (mut frame, mut buffer) = (Vec::new(), Vec::new());
            StepInput::encode(&step.forward_input(), &mut frame);
            let read = read_step(&mut frame.as_slice(), &mut buffer).unwrap();
            prop_assert_eq!(&read, &step);
            // Cut off anywhere, it is none.
            let short = &frame[..frame.len().saturating_sub(cut + 1)];
            prop_assert!(read_step(&mut &*short, &mut buffer).is_err());
            if let Some(payload) = short.get(HEADER..) {
                prop_assert_eq!(StepInput::decode(payload), None);
            }
        }

        #[test]
        fn no_bytes_make_a_reader_panic_or_take_memory(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut buffer = Vec::new();
            let _ = read_step(&mut bytes.as_slice(), &mut buffer);
            let _ = read_numbers(&mut bytes.as_slice(), &mut buffer, 4);
            let _ = StepInput::decode(&bytes);
        }
    }

    #[test]
    fn numbers_keep_their_bits_and_their_count() {
        let sent = [1.5_f32, -0.0, f32::INFINITY, f32::MIN_POSITIVE];
        let (mut frame, mut buffer) = (Vec::new(), Vec::new());
        write_numbers(&mut frame, &sent);
        read_numbers(&mut frame.as_slice(), &mut buffer, 4).unwrap();
        let bits = |x: f32| x.to_bits();
        assert_eq!(numbers(&buffer).map(bits).collect::<Vec<_>>(), sent.map(bits));
        for len in [3, 5] {
            assert!(read_numbers(&mut frame.as_slice(), &mut buffer, len).is_err());
        }
        write_stop(&mut frame, "no memory");
        let stopped = read_numbers(&mut frame.as_slice(), &mut buffer, 4);
        assert!(matches!(stopped, Err(Unexpected::Stopped(reason)) if reason == "no memory"));
    }
}
