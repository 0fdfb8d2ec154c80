//! Days and months of UTC, as they are counted.

use chrono::{DateTime, Datelike as _, Months, NaiveDate, NaiveTime};

use crate::retention::DAY_MS;

/// Days since 1970.
pub(super) fn day(now_ms: i64) -> i64 {
    now_ms.div_euclid(DAY_MS)
}

pub(super) fn day_ends_ms(now_ms: i64) -> i64 {
    (day(now_ms) + 1) * DAY_MS
}

/// The first day of the month of a time, of UTC; of times that no calendar has, the first there is.
fn first_of_month(now_ms: i64) -> NaiveDate {
    let date = DateTime::from_timestamp_millis(now_ms).map(|time| time.date_naive());
    date.and_then(|date| date.with_day(1)).unwrap_or(NaiveDate::MIN)
}

/// Months since year 0.
pub(super) fn month(now_ms: i64) -> i64 {
    let first = first_of_month(now_ms);
    i64::from(first.year()) * 12 + i64::from(first.month0())
}

/// When the month that a time is in began, Unix milliseconds.
pub fn month_began_ms(now_ms: i64) -> i64 {
    midnight_ms(first_of_month(now_ms))
}

/// When a month began, by its number since year 0.
pub(super) fn month_began_at(month: i64) -> i64 {
    let year = i32::try_from(month.div_euclid(12)).unwrap_or(i32::MAX);
    let first = u32::try_from(month.rem_euclid(12) + 1)
        .ok()
        .and_then(|month| NaiveDate::from_ymd_opt(year, month, 1));
    midnight_ms(first.unwrap_or(NaiveDate::MAX))
}

pub(super) fn month_ends_ms(now_ms: i64) -> i64 {
    let next = first_of_month(now_ms).checked_add_months(Months::new(1));
    midnight_ms(next.unwrap_or(NaiveDate::MAX))
}

fn midnight_ms(date: NaiveDate) -> i64 {
    date.and_time(NaiveTime::MIN).and_utc().timestamp_millis()
}
