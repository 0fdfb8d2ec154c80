use super::*;
use crate::sequence::{Rank, Sequence};

#[test]
fn an_error_fails_the_step_and_nothing_else() {
    for fault in [Fault::ForwardError, Fault::SampleError, Fault::Panic] {
        let mut engine = engine(EngineConfig {
            sequences_max: 2,
            ..CONFIG
        });
        for id in 0..3 {
            engine
                .add(RequestId(id), request(&text(id as Token * 10, 5), 3), 0)
                .unwrap();
        }
        engine.step(0).unwrap();
        engine.runner().fail_next(fault);
        let failed = catch_unwind(AssertUnwindSafe(|| engine.step(0)));
        assert!(!matches!(failed, Ok(Ok(_))));
        let report = engine.fail_step();
        engine.check_integrity();
        assert_eq!(
            finishes(&report.outputs),
            [(0, 0, Finish::Failed), (1, 0, Finish::Failed)]
        );
        assert_eq!((report.stats.running, report.stats.waiting), (0, 1));
        assert_eq!(engine.runner().forget_fault(), None);
        assert_eq!(finishes(&run_all(&mut engine)), [(2, 0, Finish::Length)]);
        assert_eq!(engine.fail_step().outputs, []);
    }
}

#[test]
fn a_step_after_an_error_reports_its_failures() {
    let mut engine = engine(CONFIG);
    engine.add(RequestId(0), request(&[1, 2], 3), 0).unwrap();
    engine.runner().fail_next(Fault::SampleError);
    assert_eq!(engine.step(0).unwrap_err(), FakeError::Asked);
    assert_eq!(
        finishes(&engine.step(0).unwrap().outputs),
        [(0, 0, Finish::Failed)]
    );
}

#[test]
fn blocks_of_a_failed_step_are_not_found_again() {
    let mut engine = engine(CONFIG);
    engine.add(RequestId(0), request(&text(0, 12), 1), 0).unwrap();
    engine.step(0).unwrap();
    engine.runner().fail_next(Fault::SampleError);
    engine.step(0).unwrap_err();
    engine.fail_step();
    engine.add(RequestId(1), request(&text(0, 12), 1), 0).unwrap();
    // The first step's two blocks, not the failed one's.
    assert_eq!(engine.step(0).unwrap().cache_hit_tokens, 8);
}

#[test]
fn unsound_state_is_thrown_away() {
    for damage in [
        |engine: &mut Engine<FakeRunner>| engine.in_step = InStep::Scheduling,
        |engine: &mut Engine<FakeRunner>| {
            engine.in_step = InStep::Running(vec![SeqId(0)]);
            engine.scheduler.waiting_tokens += 1;
        },
    ] {
        let mut engine = engine(CONFIG);
        engine.add(RequestId(0), request(&[1, 2], 9), 0).unwrap();
        engine
            .add(
                RequestId(1),
                Request {
                    deadline_ms: Some(99),
                    n: 2,
                    ..request(&[3, 4], 9)
                },
                0,
            )
            .unwrap();
        engine.step(0).unwrap();
        engine.add(RequestId(2), request(&[5, 6], 9), 0).unwrap();
        damage(&mut engine);
        let mut failed = finishes(&engine.fail_step().outputs);
        failed.sort_unstable_by_key(|(request, index, _)| (*request, *index));
        let all = [(0, 0), (1, 0), (1, 1), (2, 0)].map(|(request, index)| (request, index, Finish::Failed));
        assert_eq!(failed, all);
        engine.check_integrity();
        assert_eq!(
            engine.stats(),
            Stats {
                blocks_total: 32,
                ..Stats::default()
            }
        );
        engine.add(RequestId(3), request(&[1, 2], 1), 0).unwrap();
        assert_eq!(finishes(&run_all(&mut engine)), [(3, 0, Finish::Length)]);
    }
}

/// Answers too few rows.
struct Short;

impl ModelRunner for Short {
    type Logits = ();
    type Error = String;
    fn forward(&mut self, _: &Batch) -> Result<(), String> {
        Ok(())
    }
    fn sample(&mut self, (): (), _: &[SampleRow<'_>]) -> Result<Vec<Sampled>, String> {
        Ok(Vec::new())
    }
}

#[test]
fn a_runner_that_answers_too_little_fails_its_step() {
    let mut engine = Engine::new(Short, CONFIG);
    engine.add(RequestId(0), request(&[1], 1), 0).unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| engine.step(0))).unwrap_err();
    let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
    assert!(message.contains("This is a bug."), "{message}");
    assert_eq!(finishes(&engine.fail_step().outputs), [(0, 0, Finish::Failed)]);
    engine.check_integrity();
}

#[test]
#[should_panic(expected = "This is a bug.")]
fn an_unchecked_configuration_is_a_bug() {
    engine(EngineConfig { blocks: 0, ..CONFIG });
}

#[test]
#[should_panic(expected = "This is a bug.")]
fn check_integrity_panics_on_damage() {
    let mut engine = engine(CONFIG);
    engine.scheduler.waiting_tokens = 1;
    engine.check_integrity();
}

/// What `check` says of an engine with two running sequences and a waiting one after this harm.
fn damage(harm: &dyn Fn(&mut Scheduler)) -> String {
    let mut engine = engine(EngineConfig {
        sequences_max: 2,
        ..CONFIG
    });
    for id in 0..3 {
        engine
            .add(
                RequestId(id),
                Request {
                    deadline_ms: Some(9),
                    ..request(&[1, 2], 9)
                },
                0,
            )
            .unwrap();
    }
    engine.step(0).unwrap();
    engine.check_integrity();
    harm(&mut engine.scheduler);
    engine.scheduler.check().expect_err("damage")
}

fn says(wrong: &str, harm: &dyn Fn(&mut Scheduler)) {
    let found = damage(harm);
    assert!(found.contains(wrong), "{found}");
}

fn first(scheduler: &mut Scheduler) -> &mut Sequence {
    scheduler.sequences.get_mut(&SeqId(0)).unwrap()
}

#[test]
fn miscounts_are_found() {
    says("holders", &|s| {
        _ = first(s).table.pop();
    });
    says("tokens wait", &|s| s.waiting_tokens += 1);
    says("sequences decode", &|s| s.decoding += 1);
    says("has no sequence", &|s| {
        let rank = s.sequence(SeqId(0)).rank();
        s.waiting.insert(Rank {
            seq: SeqId(77),
            ..rank
        });
    });
    says("sequences run", &|s| s.config.sequences_max = 1);
    says("in groups", &|s| {
        s.groups.get_mut(&RequestId(0)).unwrap().seqs.push(SeqId(9));
    });
    says("have not started", &|s| s.unstarted.clear());
    says("have deadlines", &|s| s.deadlines.clear());
}

#[test]
fn unsound_sequences_are_found() {
    says("either wait or run", &|s| s.running.clear());
    says("either wait or run", &|s| {
        let rank = s.sequence(SeqId(0)).rank();
        s.waiting.insert(rank);
    });
    says("it waits and holds blocks", &|s| {
        s.sequences.get_mut(&SeqId(2)).unwrap().computed = 1;
    });
    says("never started", &|s| {
        first(s).started = false;
    });
    says("nothing to compute", &|s| {
        first(s).computed = 3;
    });
    says("don't hold what it computed", &|s| {
        first(s).tokens.extend([0; 9]);
        first(s).computed = 5;
    });
    says("longer than the context", &|s| {
        first(s).tokens.extend([0; 99]);
    });
    says("has no group", &|s| {
        first(s).request = RequestId(50);
    });
    says("doesn't know it", &|s| {
        first(s).request = RequestId(1);
    });
    says("wrongly counted", &|s| {
        first(s).decodes = false;
        s.decoding -= 1;
    });
}

#[test]
fn a_row_without_a_choice_fails_alone_and_leaves_nothing_to_find() {
    let mut engine = Engine::new(
        FakeRunner::new(
            FakeModel {
                vocab: 50,
                nan_one_in: 1,
            },
            &CONFIG,
        ),
        CONFIG,
    );
    for id in 0..2 {
        engine.add(RequestId(id), request(&text(0, 5), 3), 0).unwrap();
        let report = engine.step(0).unwrap();
        engine.check_integrity();
        assert_eq!(finishes(&report.outputs), [(id, 0, Finish::Failed)]);
        assert_eq!((report.cache_hit_tokens, report.stats.blocks_cached), (0, 0));
    }
    // One row in three or so: the others go on.
    let model = FakeModel {
        vocab: 50,
        nan_one_in: 3,
    };
    let mut engine = Engine::new(FakeRunner::new(model, &CONFIG), CONFIG);
    for id in 0..4 {
        engine.add(RequestId(id), request(&[id as Token], 1), 0).unwrap();
    }
    let ends = finishes(&engine.step(0).unwrap().outputs);
    let expected = |id| model.alone(&request(&[id], 1), 0, 64).finish;
    assert_eq!(ends, [0, 1, 2, 3].map(|id| (u64::from(id), 0, expected(id))));
    assert!(ends.iter().any(|end| end.2 == Finish::Failed) && ends.iter().any(|end| end.2 == Finish::Length));
}
