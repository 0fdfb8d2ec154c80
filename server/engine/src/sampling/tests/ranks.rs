use super::*;

#[test]
fn ranks_are_places_among_all_tokens() {
    let params = SamplingParams::default();
    let logits = [1.0, 3.0, 2.0, 3.0, f32::NEG_INFINITY, 2.0];
    for (token, rank) in [(1, 1), (3, 2), (2, 3), (5, 4), (0, 5), (4, 6)] {
        let score = SampleRow {
            kind: SampleKind::Score(token),
            logprobs: Some(1),
            ..row(&params)
        };
        let found = sample(&mut logits.clone(), &score).logprob.unwrap();
        assert_eq!((found.rank, found.top[0].token), (rank, 1), "{token}");
    }
}
