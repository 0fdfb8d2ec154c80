//! `strftime` over a given time, in UTC and English, as Python's C locale writes it.

use std::fmt::Write as _;

use minijinja::{Error, ErrorKind};

const SECONDS_PER_DAY: i64 = 86_400;
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A day and a time of day.
struct Moment {
    year: i64,
    /// 1 to 12.
    month: i64,
    day: i64,
    /// 0 is Sunday.
    weekday: i64,
    /// 1 is the first of January.
    day_of_year: i64,
    second: i64,
}

impl Moment {
    /// From seconds since 1970 in UTC; years 0 to 9999.
    fn new(seconds: i64) -> Self {
        let days = seconds.div_euclid(SECONDS_PER_DAY).clamp(-719_528, 2_932_896);
        // Years begin in March here, so that the leap day is the last; eras of 400 years have 146,097 days.
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_from_march + 2) / 153;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        let year = era * 400 + year_of_era + i64::from(month <= 2);
        let leap = i64::from(year % 4 == 0 && (year % 100 != 0 || year % 400 == 0));
        let before_march = if month <= 2 {
            day_from_march - 306
        } else {
            day_from_march + 59 + leap
        };
        Self {
            year,
            month,
            day: day_from_march - (153 * month_from_march + 2) / 5 + 1,
            weekday: (days + 4).rem_euclid(7),
            day_of_year: before_march + 1,
            second: seconds.rem_euclid(SECONDS_PER_DAY),
        }
    }

    /// Writes what `%` and `letter` stand for; false if it is not known. `pad` is the filler of numbers.
    fn write(&self, letter: char, pad: Option<char>, out: &mut String) -> bool {
        let hour = self.second / 3600;
        let month = MONTHS[usize::try_from(self.month - 1).unwrap_or(0)];
        let weekday = DAYS[usize::try_from(self.weekday).unwrap_or(0)];
        let (number, width, default) = match letter {
            'Y' => (self.year, 1, '0'),
            'y' => (self.year.rem_euclid(100), 2, '0'),
            'm' => (self.month, 2, '0'),
            'd' => (self.day, 2, '0'),
            'e' => (self.day, 2, ' '),
            'j' => (self.day_of_year, 3, '0'),
            'H' => (hour, 2, '0'),
            'I' => ((hour + 11) % 12 + 1, 2, '0'),
            'M' => (self.second / 60 % 60, 2, '0'),
            'S' => (self.second % 60, 2, '0'),
            'w' => (self.weekday, 1, '0'),
            'B' | 'b' | 'h' | 'A' | 'a' | 'p' | 'Z' | 'z' | '%' | 'n' | 't' => {
                out.push_str(match letter {
                    'B' => month,
                    'b' | 'h' => &month[..3],
                    'A' => weekday,
                    'a' => &weekday[..3],
                    'p' if hour < 12 => "AM",
                    'p' => "PM",
                    'Z' => "UTC",
                    'z' => "+0000",
                    'n' => "\n",
                    't' => "\t",
                    _ => "%",
                });
                return true;
            }
            _ => {
                let Some(format) = compound(letter) else {
                    return false;
                };
                return strftime_moment(self, format, out).is_ok();
            }
        };
        let digits = number.to_string();
        let filler = match pad {
            Some('-') => None,
            Some('_') => Some(' '),
            _ => Some(default),
        };
        out.extend(
            filler
                .into_iter()
                .flat_map(|filler| std::iter::repeat_n(filler, width_left(width, &digits))),
        );
        // Writing to a string cannot fail.
        let _ = write!(out, "{digits}");
        true
    }
}

fn width_left(width: usize, digits: &str) -> usize {
    width.saturating_sub(digits.len())
}

fn compound(letter: char) -> Option<&'static str> {
    Some(match letter {
        'F' => "%Y-%m-%d",
        'T' | 'X' => "%H:%M:%S",
        'R' => "%H:%M",
        'D' | 'x' => "%m/%d/%y",
        'c' => "%a %b %e %H:%M:%S %Y",
        'r' => "%I:%M:%S %p",
        _ => return None,
    })
}

/// The time as a text.
///
/// # Errors
/// If the format asks for something that is not known.
pub(super) fn strftime(seconds: i64, format: &str) -> Result<String, Error> {
    let mut out = String::new();
    strftime_moment(&Moment::new(seconds), format, &mut out)?;
    Ok(out)
}

fn strftime_moment(moment: &Moment, format: &str, out: &mut String) -> Result<(), Error> {
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let mut letter = characters.next();
        let pad = letter.filter(|letter| matches!(letter, '-' | '_' | '0'));
        if pad.is_some() {
            letter = characters.next();
        }
        if !letter.is_some_and(|letter| moment.write(letter, pad, out)) {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                "strftime_now: a format that is not known",
            ));
        }
    }
    Ok(())
}
