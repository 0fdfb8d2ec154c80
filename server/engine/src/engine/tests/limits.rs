use super::*;

#[test]
fn refusals_carry_their_numbers() {
    let mut engine = engine(EngineConfig {
        blocks: 8,
        queue_requests_max: 2,
        queue_tokens_max: 20,
        ..CONFIG
    });
    let mut add = |id, request| {
        engine
            .add(RequestId(id), request, 0)
            .map_err(|error| error.to_string())
    };
    assert_eq!(
        add(0, request(&[], 1)),
        Err("the prompt has no tokens".to_owned())
    );
    let many = Request {
        n: 129,
        ..request(&[1], 1)
    };
    assert_eq!(add(0, many), Err("n is 129, it must be 1 to 128".to_owned()));
    let none = Request {
        n: 0,
        ..request(&[1], 1)
    };
    assert_eq!(add(0, none), Err("n is 0, it must be 1 to 128".to_owned()));
    assert_eq!(
        add(0, request(&[1; 64], 1)),
        Err("the prompt has 64 tokens, the limit is 63".to_owned())
    );
    assert_eq!(
        add(0, request(&[1; 65], 0)),
        Err("the prompt has 65 tokens, the limit is 64".to_owned())
    );
    let large = "the request needs up to 9 cache blocks, the pool has 8".to_owned();
    assert_eq!(add(0, request(&[1; 10], 24)), Err(large.clone()));
    assert_eq!(add(0, request(&[1; 33], 0)), Err(large));
    // 10 + 23 - 1 tokens fill the 8 blocks exactly.
    assert_eq!(add(0, request(&[1; 10], 23)), Ok(()));
    assert_eq!(
        add(0, request(&[1], 1)),
        Err("a request with this id is already being served".to_owned())
    );
    assert_eq!(
        add(1, Request { n: 2, ..request(&[1; 10], 1) }),
        Err("the queue is full: 1 of 2 requests and 10 of 20 prompt tokens wait, and this request has 11 tokens"
            .to_owned())
    );
    assert_eq!(add(1, request(&[1; 10], 1)), Ok(()));
    assert!(add(2, request(&[1], 1)).is_err());
    assert_eq!(engine.stats().waiting_requests, 2);
}

#[test]
fn the_most_sequences_of_a_request_are_taken() {
    let mut engine = engine(CONFIG);
    let most = Request {
        n: 128,
        ..request(&[1], 1)
    };
    assert_eq!(engine.add(RequestId(0), most, 0), Ok(()));
    assert_eq!(finishes(&run_all(&mut engine)).len(), 128);
}

#[test]
fn an_empty_queue_takes_any_request() {
    let mut engine = engine(EngineConfig {
        queue_tokens_max: 3,
        ..CONFIG
    });
    assert_eq!(engine.add(RequestId(0), request(&text(0, 10), 1), 0), Ok(()));
    assert!(matches!(
        engine.add(RequestId(1), request(&[1], 1), 0),
        Err(AddError::QueueFull { .. })
    ));
}

#[test]
fn prompts_may_fill_the_context() {
    let mut engine = engine(CONFIG);
    // One token is left for the answer, or none is asked for.
    assert_eq!(engine.add(RequestId(0), request(&[1; 63], 1), 0), Ok(()));
    assert_eq!(finishes(&run_all(&mut engine)), [(0, 0, Finish::Length)]);
    assert_eq!(engine.add(RequestId(1), request(&[2; 64], 0), 0), Ok(()));
    assert_eq!(finishes(&run_all(&mut engine)), [(1, 0, Finish::Length)]);
}

#[test]
fn a_queue_limited_by_requests_only() {
    let mut engine = engine(EngineConfig {
        queue_requests_max: 2,
        ..CONFIG
    });
    for id in 0..2 {
        engine.add(RequestId(id), request(&[1], 9), 0).unwrap();
    }
    assert!(matches!(
        engine.add(RequestId(2), request(&[1], 1), 0),
        Err(AddError::QueueFull { .. })
    ));
    engine.step(0).unwrap();
    // Both run; the queue is empty again.
    assert_eq!(engine.add(RequestId(2), request(&[1], 1), 0), Ok(()));
}

#[test]
fn stop_tokens_end_a_sequence_but_not_before_min_tokens() {
    let prompt = text(0, 4);
    let mut engine = engine(CONFIG);
    let stop = |min_tokens| StopRules {
        tokens: text(0, 49),
        max_tokens: 10,
        min_tokens,
    };
    engine
        .add(
            RequestId(0),
            Request {
                stop: stop(0),
                ..request(&prompt, 10)
            },
            0,
        )
        .unwrap();
    engine
        .add(
            RequestId(1),
            Request {
                stop: stop(3),
                ..request(&prompt, 10)
            },
            0,
        )
        .unwrap();
    let outputs = run_all(&mut engine);
    let tokens = |id| {
        let of = outputs.iter().filter(|output| output.request.0 == id);
        of.filter_map(|output| match &output.event {
            Event::Token(sampled) => Some(sampled.token),
            _ => None,
        })
        .collect::<Vec<Token>>()
    };
    assert_eq!(tokens(0), Vec::<Token>::new());
    // Only token 49 is allowed at first.
    assert_eq!(tokens(1)[..3], [49; 3]);
    assert!(
        finishes(&outputs)
            .iter()
            .all(|(.., finish)| matches!(finish, Finish::Stop(_)))
    );
}

#[test]
fn the_context_ends_a_sequence() {
    let mut engine = engine(CONFIG);
    engine.add(RequestId(0), request(&[7; 60], 1000), 0).unwrap();
    let outputs = run_all(&mut engine);
    assert_eq!(finishes(&outputs), [(0, 0, Finish::Length)]);
    // Started, 4 tokens, Finished.
    assert_eq!(outputs.len(), 6);
}

#[test]
fn aborts_and_deadlines_free_everything_at_once() {
    let mut engine = engine(CONFIG);
    engine
        .add(
            RequestId(0),
            Request {
                n: 3,
                ..request(&text(0, 4), 30)
            },
            0,
        )
        .unwrap();
    engine
        .add(
            RequestId(1),
            Request {
                deadline_ms: Some(50),
                ..request(&text(10, 4), 30)
            },
            0,
        )
        .unwrap();
    for _ in 0..3 {
        engine.step(49).unwrap();
    }
    engine.abort_sequence(RequestId(0), 1);
    engine.abort_sequence(RequestId(0), 7);
    engine.abort_sequence(RequestId(8), 0);
    engine.check_integrity();
    assert_eq!(engine.stats().running, 3);
    let report = engine.step(50).unwrap();
    assert_eq!(
        finishes(&report.outputs),
        [(0, 1, Finish::Aborted), (1, 0, Finish::Deadline)]
    );
    engine.abort(RequestId(0));
    engine.abort(RequestId(0));
    assert_eq!((engine.stats().running, engine.stats().blocks_used), (0, 0));
    assert!(engine.has_work());
    assert_eq!(
        finishes(&engine.step(50).unwrap().outputs),
        [(0, 0, Finish::Aborted), (0, 2, Finish::Aborted)]
    );
    assert!(!engine.has_work());
    // One that never ran ends without having started.
    engine.add(RequestId(2), request(&[1], 1), 60).unwrap();
    engine.abort(RequestId(2));
    engine.check_integrity();
    engine
        .add(
            RequestId(3),
            Request {
                deadline_ms: Some(10),
                ..request(&[1], 1)
            },
            60,
        )
        .unwrap();
    let outputs = engine.step(60).unwrap().outputs;
    assert_eq!(outputs.len(), 2);
    assert_eq!(
        finishes(&outputs),
        [(2, 0, Finish::Aborted), (3, 0, Finish::Deadline)]
    );
}

fn config(change: impl Fn(&mut EngineConfig)) -> EngineConfig {
    let mut config = CONFIG;
    change(&mut config);
    config
}

#[test]
fn configurations_are_checked() {
    let wrong =
        |change: &dyn Fn(&mut EngineConfig)| config(change).check().map_err(|error| error.to_string());
    let says = |message: &str| Err(message.to_owned());
    assert_eq!(wrong(&|_| ()), Ok(()));
    assert_eq!(wrong(&|c| c.blocks = 0), says("blocks must be at least 1"));
    assert_eq!(
        wrong(&|c| c.queue_tokens_max = 0),
        says("queue_tokens_max must be at least 1")
    );
    let budget = says("step_tokens_max is 3, it must be at least sequences_max, 4");
    assert_eq!(wrong(&|c| c.step_tokens_max = 3), budget);
    assert_eq!(wrong(&|c| c.step_tokens_max = 4), Ok(()));
    let slots = says("2147483648 blocks of 4 tokens have more slots than 32 bits can number");
    assert_eq!(wrong(&|c| c.blocks = 1 << 31), slots);
    assert!(wrong(&|c| c.blocks = usize::MAX).is_err());
    let context = says("context_max is 1, it must be at least 2 and fit in 32 bits");
    assert_eq!(wrong(&|c| c.context_max = 1), context);
    assert_eq!(wrong(&|c| c.context_max = 2), Ok(()));
    assert!(wrong(&|c| c.context_max = 1 << 32).is_err());
}

#[test]
fn logits_are_limited_by_sequences_and_by_tokens() {
    assert_eq!(CONFIG.logits_max(), 8);
    assert_eq!(config(|c| c.step_tokens_max = 500).logits_max(), 68);
}
