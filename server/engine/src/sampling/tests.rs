#![expect(clippy::float_cmp, reason = "exact values are expected")]

use proptest::prelude::*;

use super::*;

mod draws;
mod ranks;

/// A row to sample with everything off.
fn row(params: &SamplingParams) -> SampleRow<'_> {
    SampleRow {
        params,
        prompt: &[],
        output: &[],
        position: 0,
        seed: params.seed,
        banned: &[],
        allowed: None,
        kind: SampleKind::Sample,
        logprobs: None,
    }
}

fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    }
}

fn token_of(logits: &[f32], row: &SampleRow<'_>) -> Option<Token> {
    let sampled = sample(&mut logits.to_vec(), row);
    sampled.is_valid().then_some(sampled.token)
}

/// The tokens that have weight after all filters.
fn support(logits: &[f32], params: &SamplingParams) -> Vec<Token> {
    let mut weights = logits.to_vec();
    let max = best(&weights).unwrap().value;
    filter(&mut weights, max, params);
    candidates(&weights)
        .filter(|kept| kept.value > 0.0)
        .map(|kept| kept.token)
        .collect()
}

/// The same filters by one full sort, step by step as they are documented. `slack` moves the border of the nucleus.
fn naive_support(logits: &[f32], params: &SamplingParams, slack: f64) -> Vec<Token> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from((logit - max) / params.temperature).exp();
    let mut sorted: Vec<(f32, Token)> = logits.iter().copied().zip(0..).collect();
    sorted.retain(|(logit, _)| weight(*logit) > 1e-37 && weight(*logit) >= f64::from(params.min_p));
    sorted.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
    if params.top_k > 0 {
        sorted.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let total: f64 = sorted.iter().map(|(logit, _)| weight(*logit)).sum();
        let mut before = 0.0;
        let mut kept = 0;
        while kept < sorted.len() && (kept == 0 || before < f64::from(params.top_p) * total + slack * total) {
            before += weight(sorted[kept].0);
            kept += 1;
        }
        sorted.truncate(kept);
    }
    let mut tokens: Vec<Token> = sorted.into_iter().map(|(_, token)| token).collect();
    tokens.sort_unstable();
    tokens
}

#[test]
fn greedy_takes_the_lowest_of_the_best() {
    let params = greedy();
    assert_eq!(token_of(&[1.0, 3.0, 3.0, 2.0], &row(&params)), Some(1));
    assert_eq!(token_of(&[-5.0], &row(&params)), Some(0));
    assert_eq!(token_of(&[-0.0, 0.0], &row(&params)), Some(0));
    let nearly = SamplingParams {
        temperature: 9e-6,
        ..greedy()
    };
    assert_eq!(token_of(&[0.0, 1e-9], &row(&nearly)), Some(1));
    let negative = SamplingParams {
        temperature: -1.0,
        ..greedy()
    };
    assert_eq!(token_of(&[0.0, 1.0], &row(&negative)), Some(1));
}

#[test]
fn the_temperature_limit_itself_samples() {
    let params = SamplingParams {
        temperature: TEMPERATURE_MIN,
        ..SamplingParams::default()
    };
    let drawn = |position| {
        token_of(
            &[0.0, 1e-6],
            &SampleRow {
                position,
                ..row(&params)
            },
        )
    };
    assert!((0..200).any(|position| drawn(position) == Some(0)));
}

#[test]
fn unusable_rows_are_invalid_and_unsound_logits_harmless() {
    let nan = f32::NAN;
    let inf = f32::INFINITY;
    for params in [greedy(), SamplingParams::default()] {
        assert_eq!(token_of(&[nan, nan], &row(&params)), None);
        assert_eq!(token_of(&[-inf, nan], &row(&params)), None);
        assert_eq!(token_of(&[], &row(&params)), None);
        assert_eq!(token_of(&[nan, 1.0, -inf], &row(&params)), Some(1));
        assert_eq!(token_of(&[0.0, inf, 5.0], &row(&params)), Some(1));
        let banned = SampleRow {
            banned: &[0, 1],
            ..row(&params)
        };
        assert_eq!(token_of(&[1.0, 2.0], &banned), None);
        let score = SampleRow {
            kind: SampleKind::Score(1),
            logprobs: Some(1),
            ..row(&params)
        };
        assert!(!sample(&mut [nan, nan], &score).is_valid());
    }
    assert!(!Sampled::invalid().is_valid());
}

#[test]
fn bias_penalties_and_bans_in_their_order() {
    let bias = |bias: Vec<(Token, f32)>| SamplingParams {
        logit_bias: bias,
        ..greedy()
    };
    assert_eq!(token_of(&[1.0, 2.0], &row(&bias(vec![(0, 1.5)]))), Some(0));
    assert_eq!(
        token_of(&[1.0, 2.0], &row(&bias(vec![(1, -1.5), (9, 100.0)]))),
        Some(0)
    );
    assert_eq!(token_of(&[1.0, 2.0], &row(&bias(vec![(1, f32::NAN)]))), Some(0));
    // A ban comes after the bias.
    let biased = bias(vec![(1, 100.0)]);
    assert_eq!(
        token_of(
            &[1.0, 2.0],
            &SampleRow {
                banned: &[1, 7],
                ..row(&biased)
            }
        ),
        Some(0)
    );
}

#[test]
fn repetition_looks_at_prompt_and_output() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        ..greedy()
    };
    let seen = SampleRow {
        prompt: &[0],
        output: &[1, 1],
        ..row(&params)
    };
    assert_eq!(token_of(&[3.0, 3.0, 1.6], &seen), Some(2));
    assert_eq!(token_of(&[3.0, 3.0, 1.4], &seen), Some(0));
    // Negative logits are multiplied: -1 becomes -2.
    assert_eq!(token_of(&[-1.0, -1.0, -1.9], &seen), Some(2));
    assert_eq!(token_of(&[-1.0, -1.0, -2.1], &seen), Some(0));
    // The bias comes before: (1 + 3) / 2 = 2.
    let biased = SamplingParams {
        logit_bias: vec![(0, 3.0)],
        ..params
    };
    assert_eq!(
        token_of(
            &[1.0, 0.0, 2.1],
            &SampleRow {
                prompt: &[0],
                ..row(&biased)
            }
        ),
        Some(2)
    );
    assert_eq!(
        token_of(
            &[1.0, 0.0, 1.9],
            &SampleRow {
                prompt: &[0],
                ..row(&biased)
            }
        ),
        Some(0)
    );
}

#[test]
fn a_repetition_penalty_of_zero_leaves_zero_alone() {
    let params = SamplingParams {
        repetition_penalty: 0.0,
        ..greedy()
    };
    let seen = SampleRow {
        prompt: &[0, 1],
        ..row(&params)
    };
    assert_eq!(token_of(&[0.0, -1.0], &seen), Some(0));
}

#[test]
fn frequency_and_presence_look_at_the_output_only() {
    let params = SamplingParams {
        frequency_penalty: 0.5,
        presence_penalty: 1.0,
        ..greedy()
    };
    let seen = SampleRow {
        prompt: &[2, 2, 2],
        output: &[0, 1, 1, 40],
        ..row(&params)
    };
    // Token 0 loses 1.5, token 1 loses 2, token 2 nothing.
    assert_eq!(token_of(&[5.0, 5.4, 3.4], &seen), Some(0));
    assert_eq!(token_of(&[5.0, 5.6, 3.4], &seen), Some(1));
    assert_eq!(token_of(&[5.0, 5.4, 3.6], &seen), Some(2));
    let presence = SamplingParams {
        presence_penalty: 1.0,
        ..greedy()
    };
    assert_eq!(
        token_of(
            &[2.0, 1.1],
            &SampleRow {
                output: &[0, 0],
                ..row(&presence)
            }
        ),
        Some(1)
    );
    assert_eq!(
        token_of(
            &[2.0, 0.9],
            &SampleRow {
                output: &[0, 0],
                ..row(&presence)
            }
        ),
        Some(0)
    );
    let frequency = SamplingParams {
        frequency_penalty: 1.0,
        ..greedy()
    };
    assert_eq!(
        token_of(
            &[2.0, 0.1],
            &SampleRow {
                output: &[0, 0],
                ..row(&frequency)
            }
        ),
        Some(1)
    );
    // Repetition comes first: 4 / 2 - 1 = 1, not (4 - 1) / 2.
    let both = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 1.0,
        ..greedy()
    };
    assert_eq!(
        token_of(
            &[4.0, 1.2],
            &SampleRow {
                output: &[0],
                ..row(&both)
            }
        ),
        Some(1)
    );
}

#[test]
fn logprobs_are_of_the_raw_logits_and_sum_to_one() {
    let params = SamplingParams {
        logit_bias: vec![(0, 50.0)],
        ..greedy()
    };
    let logits: Vec<f32> = (0..1000).map(|index| (index as f32 * 0.7).sin() * 8.0).collect();
    let all = SampleRow {
        logprobs: Some(1000),
        ..row(&params)
    };
    let sampled = sample(&mut logits.clone(), &all);
    let found = sampled.logprob.unwrap();
    assert_eq!(sampled.token, 0);
    assert_eq!(found.top.len(), 1000);
    let total: f64 = found.top.iter().map(|entry| f64::from(entry.logprob).exp()).sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
    let entry = found.top.iter().find(|entry| entry.token == 0).unwrap();
    assert_eq!(entry.logprob.to_bits(), found.chosen.to_bits());
    let sorted = found.top.windows(2).all(|pair| {
        (pair[1].logprob, pair[0].token) <= (pair[0].logprob, pair[1].token)
            || pair[1].logprob < pair[0].logprob
    });
    assert!(sorted);
    let log_sum = logits
        .iter()
        .map(|logit| f64::from(*logit).exp())
        .sum::<f64>()
        .ln();
    for entry in &found.top {
        let expected = f64::from(logits[entry.token as usize]) - log_sum;
        assert!((f64::from(entry.logprob) - expected).abs() < 1e-5);
    }
}

#[test]
fn scores_and_short_lists() {
    let params = SamplingParams::default();
    let score = SampleRow {
        kind: SampleKind::Score(2),
        logprobs: Some(2),
        ..row(&params)
    };
    let sampled = sample(&mut [0.0, 0.0, f32::NEG_INFINITY], &score);
    assert_eq!(sampled.token, 2);
    let found = sampled.logprob.unwrap();
    assert_eq!(found.chosen, f32::NEG_INFINITY);
    assert_eq!(found.rank, 3);
    assert_eq!(
        found.top.iter().map(|entry| entry.token).collect::<Vec<_>>(),
        [0, 1]
    );
    let half = 0.5_f32.ln();
    assert!(found.top.iter().all(|entry| (entry.logprob - half).abs() < 1e-6));
    // An excluded token is in no list, however long.
    let long = SampleRow {
        logprobs: Some(3),
        ..score
    };
    let found = sample(&mut [0.0, 0.0, f32::NEG_INFINITY], &long);
    assert_eq!(found.logprob.unwrap().top.len(), 2);
    let outside = SampleRow {
        kind: SampleKind::Score(99),
        logprobs: Some(0),
        ..row(&params)
    };
    let found = sample(&mut [0.0, 0.0], &outside).logprob.unwrap();
    assert_eq!((found.chosen, found.top.len()), (f32::NEG_INFINITY, 0));
    assert_eq!(sample(&mut [0.0], &row(&params)).logprob, None);
}

#[test]
fn min_p_is_a_share_of_the_best() {
    let half = SamplingParams {
        min_p: 0.5,
        ..SamplingParams::default()
    };
    // The weights are 1, 0.61 and 0.37.
    assert_eq!(support(&[0.0, -0.5, -1.0], &half), [0, 1]);
}

#[test]
fn a_nucleus_counts_what_came_before() {
    let most = SamplingParams {
        top_p: 0.8,
        ..SamplingParams::default()
    };
    let logits = [0.4_f32, 0.3, 0.2, 0.1].map(f32::ln);
    assert_eq!(support(&logits, &most), [0, 1, 2]);
}

#[test]
fn the_two_zeros_tie() {
    let one = SamplingParams {
        top_k: 1,
        ..SamplingParams::default()
    };
    assert_eq!(support(&[-0.0, 0.0], &one), [0]);
    assert_eq!(support(&[0.0, -0.0], &one), [0]);
}

/// A tail too small to change the sum of the weights is kept.
#[test]
fn a_nucleus_of_one_is_off() {
    assert_eq!(support(&[0.0, -46.0], &SamplingParams::default()), [0, 1]);
}

fn any_f32() -> impl Strategy<Value = f32> {
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        1e-45,
        1e-20,
    ];
    prop_oneof![
        prop::sample::select(special.to_vec()),
        Just(f32::NAN),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        -10.0_f32..10.0,
    ]
}

prop_compose! {
    fn any_params()(
        floats in prop::array::uniform7(any_f32()),
        top_k in prop_oneof![0_u32..20, Just(u32::MAX)],
        logit_bias in prop::collection::vec((0_u32..40, any_f32()), 0..4),
        seed: u64,
        logprobs in prop::option::of(prop_oneof![0_u32..40, Just(u32::MAX)]),
    ) -> SamplingParams {
        let [temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, _] = floats;
        SamplingParams {
            temperature, top_p, top_k, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias,
            seed, logprobs,
        }
    }
}

/// Logits with many ties: whole numbers, or a few values of any size.
fn tied_logits() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        prop::collection::vec((-6_i32..6).prop_map(|logit| logit as f32), 1..400),
        prop::collection::vec(-8.0_f32..8.0, 1..400),
        prop::collection::vec(
            prop_oneof![9 => Just(f32::NEG_INFINITY), 1 => -3.0_f32..3.0],
            1..200
        )
        .prop_filter("something to choose", |logits| logits
            .iter()
            .any(|logit| logit.is_finite())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics(
        logits in prop::collection::vec(any_f32(), 0..40),
        params in any_params(),
        prompt in prop::collection::vec(0_u32..50, 0..10),
        output in prop::collection::vec(0_u32..50, 0..10),
        banned in prop::collection::vec(0_u32..50, 0..3),
        position: usize,
    ) {
        let row = SampleRow {
            prompt: &prompt, output: &output, banned: &banned, position, logprobs: params.logprobs, ..row(&params)
        };
        let sampled = sample(&mut logits.clone(), &row);
        if sampled.is_valid() {
            prop_assert!((sampled.token as usize) < logits.len());
            prop_assert!(!banned.contains(&sampled.token));
            if let Some(found) = sampled.logprob {
                prop_assert!(!found.chosen.is_nan() && found.top.iter().all(|entry| !entry.logprob.is_nan()));
            }
        }
    }

    #[test]
    fn filters_keep_what_a_full_sort_keeps(
        logits in tied_logits(),
        temperature in 0.3_f32..3.0,
        top_k in prop_oneof![Just(0_u32), 1_u32..30, 100_u32..500],
        top_p in prop_oneof![Just(1.0_f32), 0.0_f32..1.0, Just(0.0)],
        min_p in prop_oneof![Just(0.0_f32), 0.001_f32..0.9],
    ) {
        let params = SamplingParams { temperature, top_p, top_k, min_p, ..SamplingParams::default() };
        let found = support(&logits, &params);
        let tight = naive_support(&logits, &params, -1e-6);
        let loose = naive_support(&logits, &params, 1e-6);
        prop_assert!(found == tight || found == loose, "{found:?} is neither {tight:?} nor {loose:?}");
    }

    #[test]
    fn best_of_is_the_head_of_a_sort(logits in tied_logits(), count in 1_usize..420) {
        let mut found: Vec<Token> = best_of(&logits, count).iter().map(|kept| kept.token).collect();
        found.sort_unstable();
        let params = SamplingParams { top_k: count as u32, ..SamplingParams::default() };
        prop_assert_eq!(found, naive_support(&logits, &params, 0.0));
    }
}
