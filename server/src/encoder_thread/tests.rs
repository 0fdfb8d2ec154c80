use super::*;
use crate::metrics::Metrics;

/// Gives each sequence its first token, and knows what it was given together.
struct First(Arc<Mutex<Vec<Vec<usize>>>>);

impl Encode for First {
    fn encode(&mut self, batch: &EncoderBatch<'_>) -> Result<Vec<Vec<f32>>, String> {
        self.0.lock().unwrap().push(batch.lengths.to_vec());
        let mut at = 0;
        let mut results = Vec::new();
        for length in batch.lengths {
            match batch.tokens[at] {
                97 => results.push(vec![f32::NAN]),
                98 => return Err("asked for".to_owned()),
                99 => panic!("asked for"),
                token => results.push(vec![token as f32]),
            }
            at += length;
        }
        std::thread::sleep(Duration::from_millis(5));
        Ok(results)
    }
}

fn start(tokens_max: usize) -> (EncoderHandle, Arc<Mutex<Vec<Vec<usize>>>>) {
    let limits = EncoderLimits {
        batch_tokens_max: tokens_max,
        queue_requests_max: 8,
        queue_tokens_max: 1000,
    };
    let batches = Arc::new(Mutex::default());
    let metrics = Metrics::new().unwrap().encoder("test");
    let encoder = First(Arc::clone(&batches));
    (
        spawn(encoder, limits, Turns::default(), metrics).unwrap().0,
        batches,
    )
}

fn sequences(first: &[u32], length: usize) -> Vec<Encoded> {
    let sequence = |first: &u32| Encoded {
        ids: vec![*first; length],
        type_ids: vec![0; length],
    };
    first.iter().map(sequence).collect()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn batches_are_short_while_others_compute() {
    let mut pace = Pace::default();
    assert_eq!(pace.tokens_max(1024), 1024);
    let second = Duration::from_secs(1);
    pace.learn(8000, second, 4);
    pace.learn(8000, second, 5);
    assert_eq!(pace.tokens_max(1024), 1024, "nobody else had a turn");
    pace.learn(8000, second, 7);
    assert_eq!(pace.tokens_max(1024), 200);
    assert_eq!(pace.tokens_max(16), 16);
    pace.learn(8000, second, 8);
    assert_eq!(pace.tokens_max(1024), 1024);
}

#[test]
fn a_few_tokens_tell_the_pace_until_there_are_more() {
    let mut pace = Pace::default();
    let second = Duration::from_secs(1);
    pace.learn(2, second, 0);
    assert_eq!(pace.tokens_per_s, 2);
    pace.learn(4000, second, 1);
    assert_eq!(pace.tokens_per_s, 4000);
    pace.learn(2, second, 2);
    assert_eq!(pace.tokens_per_s, 4000);
    pace.learn(8000, second, 3);
    assert_eq!(pace.tokens_per_s, 5000);
}

/// Without it, the first clients of a full queue were told to wait as long as there is.
#[tokio::test]
async fn how_fast_an_encoder_is_is_known_before_the_first_request() {
    for tokens_max in [16, 512] {
        let (handle, batches) = start(100);
        assert_eq!(handle.0.0.tokens_per_s.load(Ordering::Relaxed), 0);
        handle.warm_up(tokens_max, soon()).await.unwrap();
        let longest = tokens_max.min(WARM_UP_TOKENS_MAX);
        assert_eq!(*batches.lock().unwrap(), [[1], [longest]]);
        let rate = handle.0.0.tokens_per_s.load(Ordering::Relaxed);
        assert!(
            (1..=200 * longest as u64).contains(&rate),
            "{rate}: a batch takes 5 ms"
        );
        assert!(handle.0.0.retry_after_s(1000) < RETRY_AFTER_MAX_S);
    }
}

#[tokio::test]
async fn results_come_in_order_whatever_is_computed_together() {
    let (handle, batches) = start(10);
    let many: Vec<u32> = (0..40).collect();
    let (many_results, few) = tokio::join!(
        handle.run(sequences(&many, 3), soon()),
        handle.run(sequences(&[50, 51], 4), soon())
    );
    let expected: Vec<Vec<f32>> = many.iter().map(|token| vec![*token as f32]).collect();
    assert_eq!(many_results.unwrap(), expected);
    assert_eq!(few.unwrap(), [[50.0], [51.0]]);
    let batches = batches.lock().unwrap();
    assert!(batches.iter().all(|lengths| lengths.iter().sum::<usize>() <= 10));
    let few_at = batches.iter().rposition(|lengths| lengths.contains(&4)).unwrap();
    assert!(few_at < 5, "a few texts did not wait for many: {few_at}");
}

#[tokio::test]
async fn a_failure_fails_its_request_only() {
    let (handle, _) = start(40);
    for bad in [97, 98, 99] {
        let (failed, other) = tokio::join!(
            handle.run(sequences(&[bad, 1], 3), soon()),
            handle.run(sequences(&[1, 2], 3), soon())
        );
        assert_eq!(failed.unwrap_err().status, 500);
        assert_eq!(other.unwrap(), [[1.0], [2.0]], "whoever was in the same batch");
        assert!(!handle.has_failed());
    }
    for _ in 0..FAILURES_MAX {
        assert!(handle.run(sequences(&[98], 3), soon()).await.is_err());
    }
    assert!(handle.has_failed());
    assert!(handle.run(sequences(&[1], 3), soon()).await.is_ok());
    assert!(!handle.has_failed());
    let long = handle.run(sequences(&[5], 100), soon()).await;
    assert_eq!(long.unwrap(), [[5.0]], "longer than a batch");
}

#[tokio::test]
async fn a_full_queue_refuses_and_late_requests_end() {
    let (handle, _) = start(10);
    let never = handle.run(sequences(&[1; 11], 100), soon()).await.unwrap_err();
    assert_eq!(
        (never.status.as_u16(), never.code),
        (400, Some("request_too_large"))
    );
    let late = handle
        .run(
            sequences(&[1; 50], 10),
            Instant::now() + Duration::from_millis(20),
        )
        .await;
    assert_eq!(late.unwrap_err().status, 504);
    // Behind its next batch the thread has forgotten the late one.
    assert!(handle.run(sequences(&[1], 3), soon()).await.is_ok());
    let all = futures::future::join_all((0..20).map(|_| handle.run(sequences(&[1; 5], 10), soon()))).await;
    let refused = all
        .iter()
        .filter(|result| result.as_ref().is_err_and(|error| error.status == 503));
    assert!(refused.count() >= 10);
    assert!(all.iter().filter(|result| result.is_ok()).count() >= 8);
}
