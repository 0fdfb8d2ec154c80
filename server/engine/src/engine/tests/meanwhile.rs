//! What is done beside a step.

use std::cell::RefCell;

use super::*;

/// Notes when it is called.
struct Noting<'a> {
    asynchronous: bool,
    notes: &'a RefCell<Vec<&'static str>>,
}

impl ModelRunner for Noting<'_> {
    type Logits = ();
    type Error = &'static str;

    fn forward(&mut self, _: &Batch) -> Result<(), &'static str> {
        self.notes.borrow_mut().push("forward");
        Ok(())
    }

    fn is_asynchronous(&self) -> bool {
        self.asynchronous
    }

    fn sample(&mut self, (): (), rows: &[SampleRow<'_>]) -> Result<Vec<Sampled>, &'static str> {
        self.notes.borrow_mut().push("sample");
        let token = Sampled {
            token: 7,
            logprob: None,
        };
        Ok(vec![token; rows.len()])
    }
}

#[test]
fn it_is_done_while_a_device_computes_or_before_a_processor_does() {
    for (asynchronous, expected) in [
        (true, ["forward", "meanwhile", "sample"]),
        (false, ["meanwhile", "forward", "sample"]),
    ] {
        let notes = RefCell::default();
        let runner = Noting {
            asynchronous,
            notes: &notes,
        };
        let mut engine = Engine::new(runner, CONFIG);
        engine.add(RequestId(0), request(&text(1, 3), 1), 0).unwrap();
        let step = |engine: &mut Engine<Noting<'_>>| {
            engine
                .step_beside(0, || notes.borrow_mut().push("meanwhile"))
                .unwrap();
            notes.take()
        };
        assert_eq!(step(&mut engine), expected);
        assert!(!engine.has_work());
        assert_eq!(step(&mut engine), ["meanwhile"]);
    }
}
