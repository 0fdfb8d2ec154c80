use super::*;

#[test]
fn the_default_is_what_is_recommended() {
    let policy = Policy::default();
    assert_eq!(policy.check(), Ok(()));
    assert_eq!(policy.doubts(), Vec::<String>::new());
    let short = Policy {
        usage: Some(182),
        audit: None,
        sums: None,
        ..policy
    };
    assert_eq!(short.check(), Ok(()));
    assert_eq!(short.doubts().len(), 3);
}

#[test]
fn what_can_t_be_followed_is_refused() {
    let policy = Policy::default();
    for (wrong, why) in [
        (
            Policy {
                usage: Some(31),
                ..policy
            },
            "usage is 32 to",
        ),
        (
            Policy {
                audit: Some(i64::MAX),
                ..policy
            },
            "audit is 32 to",
        ),
        (
            Policy {
                people: Some(-1),
                ..policy
            },
            "people is 0 to",
        ),
        (
            Policy {
                sums: Some(182),
                ..policy
            },
            "sums are kept",
        ),
        (
            Policy {
                usage: None,
                ..policy
            },
            "sums are kept",
        ),
    ] {
        let error = wrong.check().unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn what_was_not_due_was_not_retention() {
    let cut = |at_ms, days| Trimmed {
        usage: Some(Cut {
            seq: 1,
            hash: String::new(),
            at_ms,
            days,
        }),
        ..Trimmed::default()
    };
    let now = 1_000 * DAY_MS;
    assert_eq!(cut(now - 40 * DAY_MS, 40).check(9, now, now), Ok(()));
    assert_eq!(
        cut(now - 40 * DAY_MS, 40).check(9, now, now - 2 * AHEAD_MAX_MS),
        Err(BrokenRetention::Early(9))
    );
    assert_eq!(
        cut(now - 40 * DAY_MS + 1, 40).check(9, now, now),
        Err(BrokenRetention::Early(9))
    );
    assert_eq!(
        cut(now - 40 * DAY_MS, 31).check(9, now, now),
        Err(BrokenRetention::Early(9))
    );
    assert_eq!(
        cut(i64::MAX, i64::MAX).check(9, now, now),
        Err(BrokenRetention::Early(9))
    );
}

const NOW: i64 = 2_000 * DAY_MS;

fn run(seq: i64, kind: &str, state: &Trimmed) -> AuditEvent {
    AuditEvent {
        seq,
        at_ms: NOW,
        actor: "server".to_owned(),
        action: RUN.to_owned(),
        object: kind.to_owned(),
        detail: state.detail(),
        previous: String::new(),
        hash: String::new(),
    }
}

fn told(whole: bool, rows: &[(i64, &str, &Trimmed)]) -> Result<(), BrokenRetention> {
    let mut told = Told::new(whole, NOW);
    rows.iter()
        .try_for_each(|(seq, kind, state)| told.take(&run(*seq, kind, state)))
}

/// A deletion of sums, of usage and of the chain, one behind the other.
fn deletions() -> [Trimmed; 3] {
    let cut = |seq, days| Cut {
        seq,
        hash: String::new(),
        at_ms: NOW - 400 * DAY_MS,
        days,
    };
    let day = (2_000 - 200) * DAY_S;
    let sums = KeptSums {
        to: day + DAY_S,
        to_days: 183,
        batch: 7,
        digest: "d".to_owned(),
        days: BTreeMap::from([(day, "a".to_owned())]),
        ..KeptSums::default()
    };
    let first = Trimmed {
        sums: Some(sums.clone()),
        ..Trimmed::default()
    };
    let second = Trimmed {
        sums: Some(sums.without_days()),
        usage: Some(cut(5, 183)),
        ..Trimmed::default()
    };
    let third = Trimmed {
        audit: Some(cut(3, 366)),
        ..second.clone()
    };
    [first, second, third]
}

#[test]
fn deletions_follow_each_other() {
    let [sums, usage, audit] = deletions();
    let rows = [(10, SUMS, &sums), (11, USAGE, &usage), (12, AUDIT, &audit)];
    assert_eq!(told(true, &rows), Ok(()));
    for begin in 0..3 {
        assert_eq!(told(false, &rows[begin..]), Ok(()), "{begin}");
    }
    let mut next = audit.clone();
    let day = (2_000 - 190) * DAY_S;
    if let Some(sums) = &mut next.sums {
        sums.to = day + DAY_S;
        sums.days = BTreeMap::from([(day, "b".to_owned())]);
    }
    assert_eq!(
        told(true, &[rows[0], rows[1], rows[2], (13, SUMS, &next)]),
        Ok(())
    );
}

#[test]
fn deletions_that_were_made_up_do_not_follow() {
    let [sums, usage, audit] = deletions();
    let change = |state: &Trimmed, change: &dyn Fn(&mut Trimmed)| {
        let mut state = state.clone();
        change(&mut state);
        state
    };
    let usage_days = |state: &mut Trimmed| state.usage.as_mut().unwrap().days = 32;
    let audit_days = |state: &mut Trimmed| state.audit.as_mut().unwrap().days = 32;
    let to_days = |state: &mut Trimmed| state.sums.as_mut().unwrap().to_days = 32;
    let digest = |state: &mut Trimmed| state.sums.as_mut().unwrap().digest = "x".to_owned();
    let again = |state: &mut Trimmed| {
        let sums = state.sums.as_mut().unwrap();
        sums.days = BTreeMap::from([(sums.to - DAY_S, "x".to_owned())]);
        sums.digest = "x".to_owned();
    };
    let policy = |state: &mut Trimmed| state.policy.usage = Some(32);
    let back = |state: &mut Trimmed| state.usage.as_mut().unwrap().seq = 4;
    let base = [(10, SUMS, &sums), (11, USAGE, &usage)];
    for (kind, wrong) in [
        // Other days than those of the policy, or another policy.
        (AUDIT, change(&audit, &audit_days)),
        (AUDIT, change(&audit, &policy)),
        // Of another kind than the row says.
        (USAGE, audit.clone()),
        ("model", audit.clone()),
        // Back, or with other sums, or a day that was told before.
        (USAGE, change(&usage, &back)),
        (SUMS, change(&usage, &digest)),
        (SUMS, change(&usage, &again)),
        (SUMS, change(&usage, &to_days)),
    ] {
        let rows = [base[0], base[1], (12, kind, &wrong)];
        assert!(told(true, &rows).is_err(), "{kind}: {wrong:?}");
    }
    // The first of those that are left.
    for (whole, kind, wrong) in [
        (true, USAGE, change(&usage, &usage_days)),
        (true, SUMS, change(&sums, &to_days)),
        (false, USAGE, change(&usage, &usage_days)),
        (false, AUDIT, change(&audit, &audit_days)),
        // That cut is not before the first row.
        (
            false,
            USAGE,
            change(&audit, &|state| state.audit.as_mut().unwrap().seq = 11),
        ),
    ] {
        assert!(told(whole, &[(11, kind, &wrong)]).is_err(), "{kind}: {wrong:?}");
    }
}
