//! The lines of a file that a server adds to and, when it is full, puts aside under the same name with `.1` behind.

use std::ffi::OsString;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use super::place::{FileId, Place};

/// What the name of the file before ends with, as the server has it.
const BEFORE: &str = ".1";
/// Of one line: a batch of spans has some hundred thousand.
const LINE_BYTES_MAX: usize = 16 << 20;

/// A line without its end, and the place behind it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// `None` where it has more bytes than are held.
    pub(super) bytes: Option<Vec<u8>>,
    pub(super) behind: Place,
}

/// Reads from a place on, over to the file that follows when the one it reads has been put aside.
#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    before: PathBuf,
    reading: Option<Reading>,
    /// What was aside already when the file was opened that is read.
    older: Option<FileId>,
    /// Whether lines may be gone that were never read: their file was put aside, and another one after it.
    missed: bool,
}

#[derive(Debug)]
struct Reading {
    file: BufReader<fs::File>,
    /// Where the line begins that is read.
    place: Place,
    line: Vec<u8>,
    /// Bytes of the line that were read.
    length: u64,
}

impl Tail {
    /// Goes on at `place`; begins with the oldest file there is where none is given, or where its file is gone.
    ///
    /// # Errors
    /// A file is there and can't be read.
    pub(super) fn open(path: &Path, place: Option<Place>) -> io::Result<Self> {
        let before = before(path);
        let (new, old) = (Reading::open(path)?, Reading::open(&before)?);
        let older = old.as_ref().map(|old| old.place.file);
        let mut files = [new, old].into_iter().flatten();
        let known =
            place.and_then(|place| Some((place, files.find(|found| found.place.file == place.file)?)));
        let missed = place.is_some() && known.is_none();
        let reading = match known {
            Some((place, mut file)) => {
                file.go_to(place.offset)?;
                Some(file)
            }
            None => Reading::open(&before)?.or(Reading::open(path)?),
        };
        Ok(Self {
            path: path.to_owned(),
            before,
            older: reading.as_ref().and(older),
            reading,
            missed,
        })
    }

    /// The next line that has its end; `None` where there is none yet.
    ///
    /// # Errors
    /// A file can't be read.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let Some(reading) = &mut self.reading else {
                if !self.follow()? {
                    return Ok(None);
                }
                continue;
            };
            if let Some(line) = reading.line()? {
                return Ok(Some(line));
            }
            if let Some(there) = about(&self.path)?
                && FileId::new(&there) == reading.place.file
            {
                // Somebody emptied it.
                if there.len() < reading.place.offset + reading.length {
                    reading.go_to(0)?;
                    continue;
                }
                return Ok(None);
            }
            // It was put aside, and a line may have been added before that.
            if let Some(line) = reading.line()? {
                return Ok(Some(line));
            }
            if !self.follow()? {
                return Ok(None);
            }
        }
    }

    /// Whether lines may have gone unread since this was asked last.
    pub(super) fn has_missed(&mut self) -> bool {
        std::mem::take(&mut self.missed)
    }

    /// Goes over to the file behind the one that was read; `false` where there is none yet.
    fn follow(&mut self) -> io::Result<bool> {
        let (next, aside) = (Reading::open(&self.path)?, Reading::open(&self.before)?);
        if next.is_none() {
            return Ok(false);
        }
        let done = self.reading.as_ref().map(|reading| reading.place.file);
        let id = aside.as_ref().map(|aside| aside.place.file);
        self.reading = match aside {
            // Put aside since, it is younger than what was read, and may not be the next one after it.
            Some(aside) if done.is_some() && id != done && id != self.older => {
                self.missed = true;
                Some(aside)
            }
            _ => next,
        };
        self.older = id;
        Ok(true)
    }
}

/// Whether there is something to read.
///
/// # Errors
/// As for [`Tail::open`].
pub(super) fn is_there(path: &Path) -> io::Result<bool> {
    Ok(Reading::open(path)?.is_some() || Reading::open(&before(path))?.is_some())
}

fn before(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(BEFORE);
    PathBuf::from(name)
}

/// What a file is like; `None` where there is none.
fn about(path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(about) => Ok(Some(about)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Reading {
    /// From a file's beginning on; `None` where there is none.
    fn open(path: &Path) -> io::Result<Option<Self>> {
        // A pipe would be waited for.
        if about(path)?.is_some_and(|about| !about.is_file()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no file, of which one could tell what has been read",
            ));
        }
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let about = file.metadata()?;
        Ok(Some(Self {
            file: BufReader::new(file),
            place: Place {
                file: FileId::new(&about),
                offset: 0,
            },
            line: Vec::new(),
            length: 0,
        }))
    }

    fn go_to(&mut self, offset: u64) -> io::Result<()> {
        // Of a file that was emptied, nothing stands before its beginning.
        let offset = if offset <= self.file.get_ref().metadata()?.len() {
            offset
        } else {
            0
        };
        self.file.seek(SeekFrom::Start(offset))?;
        self.place.offset = offset;
        self.line.clear();
        self.length = 0;
        Ok(())
    }

    /// The next line, once its end is there.
    fn line(&mut self) -> io::Result<Option<Line>> {
        loop {
            let read = self.file.fill_buf()?;
            if read.is_empty() {
                return Ok(None);
            }
            let end = read.iter().position(|byte| *byte == b'\n');
            let part = &read[..end.unwrap_or(read.len())];
            // Of a line that is too long, no more than tells that it is.
            let room = (LINE_BYTES_MAX + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.file.consume(used);
            self.length += used as u64;
            if end.is_some() {
                self.place.offset += self.length;
                self.length = 0;
                let bytes = std::mem::take(&mut self.line);
                return Ok(Some(Line {
                    bytes: (bytes.len() <= LINE_BYTES_MAX).then_some(bytes),
                    behind: self.place,
                }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    struct Written {
        folder: tempfile::TempDir,
        path: PathBuf,
    }

    impl Written {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("traces.jsonl");
            Self { folder, path }
        }

        fn add(&self, text: &str) {
            let mut options = fs::OpenOptions::new();
            let mut file = options.append(true).create(true).open(&self.path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn put_aside(&self) {
            fs::rename(&self.path, self.folder.path().join("traces.jsonl.1")).unwrap();
        }

        fn tail(&self, place: Option<Place>) -> Tail {
            Tail::open(&self.path, place).unwrap()
        }
    }

    fn read(tail: &mut Tail) -> Vec<String> {
        std::iter::from_fn(|| tail.next().unwrap())
            .map(|line| String::from_utf8(line.bytes.unwrap()).unwrap())
            .collect()
    }

    #[test]
    fn a_line_is_read_when_its_end_is_there() {
        let written = Written::new();
        let mut tail = written.tail(None);
        assert_eq!(tail.next().unwrap(), None, "there is no file yet");
        written.add("one\ntw");
        assert_eq!(read(&mut tail), ["one"]);
        written.add("o\n\nfour");
        assert_eq!(read(&mut tail), ["two", ""]);
        assert!(!tail.has_missed());
    }

    #[test]
    fn a_file_that_was_put_aside_is_read_to_its_end_and_then_the_next() {
        let written = Written::new();
        written.add("one\n");
        let mut tail = written.tail(None);
        assert_eq!(read(&mut tail), ["one"]);
        written.add("two\n");
        written.put_aside();
        assert_eq!(read(&mut tail), ["two"], "the next one is not there yet");
        written.add("three\n");
        assert_eq!(read(&mut tail), ["three"]);
        assert!(!tail.has_missed());
    }

    #[test]
    fn what_is_gone_before_it_was_read_is_told() {
        let written = Written::new();
        written.add("one\n");
        let mut tail = written.tail(None);
        assert_eq!(read(&mut tail), ["one"]);
        for text in ["two\n", "three\n", "four\n"] {
            written.put_aside();
            written.add(text);
        }
        assert_eq!(read(&mut tail), ["three", "four"]);
        assert!(tail.has_missed());
        assert!(!tail.has_missed(), "once");
    }

    #[test]
    fn what_was_aside_before_is_not_read_again() {
        let written = Written::new();
        written.add("one\n");
        let mut tail = written.tail(None);
        assert_eq!(read(&mut tail), ["one"]);
        written.put_aside();
        written.add("two\n");
        assert_eq!(read(&mut tail), ["two"]);
        // Somebody takes the file away, and `.1` stays what it was.
        fs::rename(&written.path, written.folder.path().join("taken")).unwrap();
        written.add("three\n");
        assert_eq!(read(&mut tail), ["three"]);
        assert!(!tail.has_missed());
    }

    #[test]
    fn it_goes_on_where_it_was() {
        let written = Written::new();
        written.add("one\ntwo\n");
        let first = written.tail(None).next().unwrap().unwrap();
        assert_eq!(read(&mut written.tail(Some(first.behind))), ["two"]);
        written.put_aside();
        written.add("three\n");
        assert_eq!(read(&mut written.tail(Some(first.behind))), ["two", "three"]);
        let mut anew = written.tail(None);
        assert_eq!(read(&mut anew), ["one", "two", "three"], "the oldest first");
        written.put_aside();
        written.add("four\n");
        let mut late = written.tail(Some(first.behind));
        assert!(late.has_missed());
        assert_eq!(read(&mut late), ["three", "four"]);
    }

    #[test]
    fn a_file_that_was_emptied_is_read_from_its_beginning() {
        let written = Written::new();
        written.add("one\ntwo\n");
        let mut tail = written.tail(None);
        assert_eq!(read(&mut tail), ["one", "two"]);
        fs::write(&written.path, "new\n").unwrap();
        assert_eq!(read(&mut tail), ["new"]);
        let behind = Place {
            file: FileId::new(&fs::metadata(&written.path).unwrap()),
            offset: 999,
        };
        assert_eq!(read(&mut written.tail(Some(behind))), ["new"]);
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over() {
        let written = Written::new();
        written.add(&"x".repeat(LINE_BYTES_MAX + 1));
        written.add("\nnext\n");
        let mut tail = written.tail(None);
        assert_eq!(tail.next().unwrap().unwrap().bytes, None);
        assert_eq!(read(&mut tail), ["next"]);
    }
}
