use proptest::prelude::*;

use super::bucket::MINUTE_MS;
use super::calendar::{day, day_ends_ms, month_ends_ms};
use super::*;
use crate::retention::DAY_MS;

/// 31 January 2028, 23:59:50 UTC.
const NOW_MS: i64 = 1_832_975_990_000;

fn limits(of: &[(Metric, i64)]) -> Limits {
    let mut limits = Limits::default();
    for (metric, value) in of {
        limits.set(*metric, Some(*value));
    }
    limits
}

fn at(at_ms: i64, tokens: i64) -> Reserved {
    Reserved {
        at_ms,
        expected: tokens,
        most: tokens,
    }
}

fn key(of: &[(Metric, i64)]) -> Vec<(Subject, Limits)> {
    vec![(Subject::Key("k".to_owned()), limits(of))]
}

fn over(result: Result<(), Exceeded>) -> (Metric, Option<i64>) {
    let exceeded = result.unwrap_err();
    (exceeded.metric, exceeded.retry_after_ms)
}

#[test]
fn requests_come_back_evenly() {
    let limited = key(&[(Metric::RequestsPerMinute, 3)]);
    let mut limiter = Limiter::default();
    for _ in 0..3 {
        limiter.begin(&limited, NOW_MS).unwrap();
    }
    assert_eq!(
        over(limiter.begin(&limited, NOW_MS)),
        (Metric::RequestsPerMinute, Some(20_000))
    );
    assert_eq!(
        over(limiter.begin(&limited, NOW_MS + 19_999)),
        (Metric::RequestsPerMinute, Some(1))
    );
    limiter.begin(&limited, NOW_MS + 20_000).unwrap();
    let [requests, tokens] = limiter.standing(&limited, NOW_MS + 30_000);
    assert_eq!(
        requests,
        Some(Standing {
            limit: 3,
            remaining: 0,
            reset_ms: 50_000
        })
    );
    assert_eq!(tokens, None);
    // A clock that is set back gives nothing for that time, and what comes back then goes on from there.
    assert!(limiter.begin(&limited, NOW_MS - 90_000_000).is_err());
    assert!(limiter.begin(&limited, NOW_MS - 90_000_000 + 9_000).is_err());
    limiter.begin(&limited, NOW_MS - 90_000_000 + 20_000).unwrap();
}

#[test]
fn tokens_are_reserved_and_settled() {
    let limited = key(&[
        (Metric::TokensPerMinute, 600),
        (Metric::TokensPerDay, 1_000),
        (Metric::TokensPerMonth, 5_000),
    ]);
    let mut limiter = Limiter::default();
    assert_eq!(
        over(limiter.reserve(&limited, at(NOW_MS, 601))),
        (Metric::TokensPerMinute, None),
        "it can never be"
    );
    limiter.reserve(&limited, at(NOW_MS, 500)).unwrap();
    assert_eq!(
        over(limiter.reserve(&limited, at(NOW_MS, 200))),
        (Metric::TokensPerMinute, Some(10_000))
    );
    limiter.settle(&limited, at(NOW_MS, 500), NOW_MS, 100);
    limiter.reserve(&limited, at(NOW_MS, 500)).unwrap();
    // What was used beyond is owed.
    limiter.settle(&limited, at(NOW_MS, 500), NOW_MS, 800);
    assert_eq!(
        over(limiter.reserve(&limited, at(NOW_MS, 10))),
        (Metric::TokensPerMinute, Some(31_000))
    );
    // 900 of the day are gone. It ends before the minute is whole again.
    assert_eq!(
        over(limiter.reserve(&limited, at(NOW_MS + 9_999, 0))),
        (Metric::TokensPerMinute, Some(20_001))
    );
    let next = NOW_MS + 50_000;
    limiter.reserve(&limited, at(next, 190)).unwrap();
    // What was reserved the day before gives nothing back to this one.
    limiter.settle(&limited, at(NOW_MS, 0), next, -100);
    limiter.settle(&limited, at(NOW_MS, 0), next, 810);
    let later = next + 600_000;
    assert_eq!(
        over(limiter.reserve(&limited, at(later, 1))),
        (Metric::TokensPerDay, Some(day_ends_ms(later) - later))
    );
}

#[test]
fn days_and_months_are_those_of_the_calendar() {
    let limited = key(&[(Metric::TokensPerDay, 100), (Metric::TokensPerMonth, 150)]);
    let mut limiter = Limiter::default();
    limiter.remember(Subject::Key("k".to_owned()), NOW_MS - DAY_MS, 60);
    limiter.remember(Subject::Key("k".to_owned()), NOW_MS, 40);
    assert_eq!(
        over(limiter.reserve(&limited, at(NOW_MS, 61))),
        (Metric::TokensPerDay, Some(10_000))
    );
    assert_eq!(
        over(limiter.reserve(&limited, at(NOW_MS, 55))),
        (Metric::TokensPerMonth, Some(10_000))
    );
    limiter.reserve(&limited, at(NOW_MS, 50)).unwrap();
    assert!(limiter.reserve(&limited, at(NOW_MS, 1)).is_err());
    limiter.reserve(&limited, at(NOW_MS + 10_000, 100)).unwrap();
    assert_eq!(month_began_ms(NOW_MS), NOW_MS + 10_000 - 31 * DAY_MS);
    assert_eq!(
        month_ends_ms(NOW_MS + 10_000),
        NOW_MS + 10_000 + 29 * DAY_MS,
        "2028 is a leap year"
    );
    for at_ms in [
        NOW_MS,
        NOW_MS + 10_000,
        NOW_MS - 31 * DAY_MS,
        NOW_MS + 335 * DAY_MS,
    ] {
        let subject = Subject::Key("k".to_owned());
        let of = |metric| Counter::at(&subject, metric, at_ms).time_ms();
        let month = (month_began_ms(at_ms), month_ends_ms(at_ms));
        assert_eq!(of(Metric::TokensPerMonth), Some(month));
        let day = (day_ends_ms(at_ms) - DAY_MS, day_ends_ms(at_ms));
        assert_eq!(of(Metric::TokensPerDay), Some(day));
        assert_eq!(of(Metric::Parallel), None);
    }
}

/// A clock that is ahead, or behind, for a moment.
#[test]
fn a_wrong_clock_gives_no_second_budget() {
    let limited = key(&[(Metric::TokensPerDay, 100)]);
    for wrong in [DAY_MS, 40 * DAY_MS, -DAY_MS, -40 * DAY_MS] {
        let mut limiter = Limiter::default();
        limiter.reserve(&limited, at(NOW_MS, 90)).unwrap();
        // What it gives or refuses meanwhile is not the point.
        let _ = limiter.reserve(&limited, at(NOW_MS + wrong, 5));
        assert!(limiter.reserve(&limited, at(NOW_MS, 11)).is_err(), "{wrong}");
        limiter.reserve(&limited, at(NOW_MS, 5)).unwrap();
        assert!(limiter.reserve(&limited, at(NOW_MS, 6)).is_err(), "{wrong}");
        limiter.reserve(&limited, at(NOW_MS + 2 * DAY_MS, 90)).unwrap();
    }
}

#[test]
fn a_request_counts_for_its_key_and_its_project_or_for_neither() {
    let project = Subject::Project("p".to_owned());
    let both = vec![
        (Subject::Key("k".to_owned()), limits(&[(Metric::Parallel, 2)])),
        (
            project.clone(),
            limits(&[(Metric::Parallel, 3), (Metric::TokensPerDay, 10)]),
        ),
    ];
    let other = vec![(Subject::Key("o".to_owned()), Limits::default()), both[1].clone()];
    let mut limiter = Limiter::default();
    limiter.begin(&both, NOW_MS).unwrap();
    limiter.begin(&both, NOW_MS).unwrap();
    let exceeded = limiter.begin(&both, NOW_MS).unwrap_err();
    assert_eq!(exceeded.to_string(), "this key's limit is 2 requests at one time");
    limiter.begin(&other, NOW_MS).unwrap();
    let exceeded = limiter.begin(&other, NOW_MS).unwrap_err();
    assert_eq!((exceeded.subject, exceeded.limit), (project, 3));
    limiter.end(&both);
    limiter.begin(&other, NOW_MS).unwrap();
    limiter.reserve(&other, at(NOW_MS, 10)).unwrap();
    assert!(limiter.reserve(&both, at(NOW_MS, 1)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Of requests that use no more than they reserve, however they come: at no time more than a minute's worth beyond what
    /// comes back, a day's worth in a day, or so many at one time.
    #[test]
    fn no_limit_is_passed(
        steps in prop::collection::vec((0_i64..40_000, 1_i64..120, 0_i64..=100, prop::bool::ANY), 1..60),
    ) {
        const MINUTE: i64 = 100;
        const DAY: i64 = 900;
        let limited = key(&[(Metric::TokensPerMinute, MINUTE), (Metric::TokensPerDay, DAY), (Metric::Parallel, 3)]);
        let (mut limiter, mut now, mut running) = (Limiter::default(), NOW_MS, Vec::new());
        let mut used: Vec<(i64, i64)> = Vec::new();
        for (pause, tokens, percent, ends) in steps {
            now += pause;
            if ends && let Some((reserved_at, reserved, percent)) = running.pop() {
                let took: i64 = reserved * percent / 100;
                limiter.settle(&limited, at(reserved_at, reserved), now, took);
                limiter.end(&limited);
                used.push((reserved_at, took));
            } else if limiter.begin(&limited, now).is_ok() {
                prop_assert!(running.len() < 3);
                if limiter.reserve(&limited, at(now, tokens)).is_ok() {
                    running.push((now, tokens, percent));
                } else {
                    limiter.end(&limited);
                }
            }
        }
        used.extend(running.iter().map(|(at, reserved, _)| (*at, *reserved)));
        for (to, _) in &used {
            let before: i64 = used.iter().filter(|(at, _)| at <= to).map(|(_, took)| took).sum();
            prop_assert!(before * MINUTE_MS <= MINUTE * (MINUTE_MS + to - NOW_MS));
            let today: i64 = used.iter().filter(|(at, _)| day(*at) == day(*to)).map(|(_, took)| took).sum();
            prop_assert!(today <= DAY);
        }
    }
}

/// Requests that use all that they reserve get all that comes back, however long they take.
#[test]
fn what_comes_back_is_not_lost() {
    for seconds in [1, 30, 120, 300] {
        let limited = key(&[(Metric::TokensPerMinute, 6_000)]);
        let (mut limiter, mut running, mut used) = (Limiter::default(), Vec::new(), 0);
        for second in 0..1_800 {
            let now = NOW_MS + 1_000 * second;
            let ended: Vec<Reserved> = running
                .extract_if(.., |reserved: &mut Reserved| {
                    reserved.at_ms + 1_000 * seconds <= now
                })
                .collect();
            for reserved in ended {
                limiter.settle(&limited, reserved, now, 500);
                used += 500;
            }
            while limiter.reserve(&limited, at(now, 500)).is_ok() {
                running.push(at(now, 500));
            }
        }
        let due = 100 * (1_800 - seconds) + 6_000;
        assert!((due - 1_000..=due).contains(&used), "{seconds}: {used} of {due}");
    }
}
