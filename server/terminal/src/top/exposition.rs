//! Prometheus's text format, version 0.0.4: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

/// Series that are kept of a page.
const SERIES_MAX: usize = 200_000;
/// Of one line.
const LINE_BYTES_MAX: usize = 64 << 10;
const LABELS_MAX: usize = 64;

/// One line: a name, its labels and a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series<'a> {
    pub name: &'a str,
    pub labels: Vec<(&'a str, String)>,
    pub value: f64,
}

/// Why a page is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// The number of the line that is not in the format.
    Line(usize),
    LineTooLong(usize),
    TooManySeries,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number} is not in Prometheus's text format"),
            Self::LineTooLong(number) => write!(f, "line {number} has more than {LINE_BYTES_MAX} bytes"),
            Self::TooManySeries => write!(f, "more than {SERIES_MAX} series"),
        }
    }
}

impl std::error::Error for Error {}

impl Series<'_> {
    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(label, _)| *label == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Reads a page, and gives every series whose name is wanted.
///
/// # Errors
/// The first line that is not in the format. What it says is not repeated.
pub(crate) fn read<'a>(
    page: &'a str,
    wanted: impl Fn(&str) -> bool,
    mut take: impl FnMut(&Series<'a>),
) -> Result<(), Error> {
    let mut count = 0_usize;
    for (index, line) in page.lines().enumerate() {
        if line.len() > LINE_BYTES_MAX {
            return Err(Error::LineTooLong(index + 1));
        }
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        count += 1;
        if count > SERIES_MAX {
            return Err(Error::TooManySeries);
        }
        let name_ends = line.find(|c: char| c == '{' || c.is_whitespace());
        let (name, rest) = name_ends
            .map(|at| line.split_at(at))
            .ok_or(Error::Line(index + 1))?;
        if wanted(name) {
            take(&series(name, rest).ok_or(Error::Line(index + 1))?);
        }
    }
    Ok(())
}

fn series<'a>(name: &'a str, rest: &'a str) -> Option<Series<'a>> {
    let name_is_good = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'));
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        None => (Vec::new(), rest),
        Some(rest) => labels(rest)?,
    };
    // A time may stand behind the value; it says when, which is now.
    let value = value(rest.split_ascii_whitespace().next()?)?;
    name_is_good.then_some(Series { name, labels, value })
}

/// Labels up to the brace that ends them, and what is behind it.
fn labels(mut rest: &str) -> Option<(Vec<(&str, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(behind) = rest.strip_prefix('}') {
            return Some((labels, behind));
        }
        if labels.len() == LABELS_MAX {
            return None;
        }
        let (name, value) = rest.split_once('=')?;
        let (value, behind) = quoted(value.trim_start().strip_prefix('"')?)?;
        labels.push((name.trim_end(), value));
        rest = behind.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

/// A value up to the quote that ends it: a backslash stands in front of a quote, of itself, and of the n of a line end.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => value.push('\n'),
                escaped @ ('\\' | '"') => value.push(escaped),
                _ => return None,
            },
            _ => value.push(c),
        }
    }
    None
}

/// A number as Go writes it.
fn value(text: &str) -> Option<f64> {
    match text {
        "+Inf" => Some(f64::INFINITY),
        "-Inf" => Some(f64::NEG_INFINITY),
        "NaN" => Some(f64::NAN),
        _ => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(page: &str) -> Result<Vec<(String, Vec<String>, f64)>, Error> {
        let mut found = Vec::new();
        read(
            page,
            |_| true,
            |series| {
                let labels = series
                    .labels
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"));
                found.push((series.name.to_owned(), labels.collect(), series.value));
            },
        )?;
        Ok(found)
    }

    #[test]
    fn lines_are_taken_apart() {
        let page = "# HELP a \"x\n# TYPE a counter\n\na 1\nb{} 2.5e3 1700000000\nvllm:c{m=\"a,b}=\\\"\\\\\\n\", le=\"+Inf\",} +Inf\n";
        let found = all(page).unwrap();
        assert_eq!(found[0], ("a".to_owned(), Vec::new(), 1.0));
        assert_eq!(found[1], ("b".to_owned(), Vec::new(), 2500.0));
        let labels = vec!["m=a,b}=\"\\\n".to_owned(), "le=+Inf".to_owned()];
        assert_eq!(found[2], ("vllm:c".to_owned(), labels, f64::INFINITY));
        assert!(all("a NaN").unwrap()[0].2.is_nan());
    }

    #[test]
    fn what_is_not_the_format_is_refused_with_its_line() {
        for bad in [
            "a",
            "a{ 1",
            "a{b} 1",
            "a{b=\"c} 1",
            "a{b=\"\\x\"} 1",
            "a{b=c} 1",
            "a b",
            "{} 1",
            "<html> 1",
            "a{b=\"c\"}",
        ] {
            assert_eq!(all(&format!("x 1\n{bad}")), Err(Error::Line(2)), "{bad}");
        }
        let long = format!("a{{b=\"{}\"}} 1", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(all(&long), Err(Error::LineTooLong(1)));
        assert_eq!(all(&"a 1\n".repeat(SERIES_MAX + 1)), Err(Error::TooManySeries));
    }

    #[test]
    fn a_page_cut_anywhere_panics_nowhere() {
        let page = "a{b=\"ü\\n\",c=\"\\\\\"} 1.5\nd 7\n";
        for (at, _) in page.char_indices() {
            let _ = all(&page[..at]);
            let _ = all(&page[at..]);
        }
    }
}
