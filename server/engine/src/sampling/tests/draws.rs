use super::*;

/// Chi-square of drawing `draws` tokens against these probabilities; tokens of probability 0 must not occur.
fn chi_square(logits: &[f32], params: &SamplingParams, probabilities: &[f64], draws: usize) -> f64 {
    let mut counts = vec![0_usize; logits.len()];
    for position in 0..draws {
        counts[token_of(
            logits,
            &SampleRow {
                position,
                ..row(params)
            },
        )
        .unwrap() as usize] += 1;
    }
    let mut chi = 0.0;
    for (count, probability) in counts.iter().zip(probabilities) {
        let expected = probability * draws as f64;
        if expected == 0.0 {
            assert_eq!(*count, 0);
        } else {
            chi += (*count as f64 - expected).powi(2) / expected;
        }
    }
    chi
}

/// The softmax of the kept tokens.
fn distribution(logits: &[f32], temperature: f64, kept: &[Token]) -> Vec<f64> {
    let weight = |(logit, token): (&f32, Token)| {
        if kept.contains(&token) {
            (f64::from(*logit) / temperature).exp()
        } else {
            0.0
        }
    };
    let weights: Vec<f64> = logits.iter().zip(0..).map(weight).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = vec![0.0, 1.0, 2.0, 0.5, -1.0, 1.5, -0.5, 0.2];
    let all: Vec<Token> = (0..8).collect();
    // 24.3 is the 0.1 % point of chi-square with 7 degrees of freedom; the seeds are fixed.
    for seed in 0..3 {
        let params = SamplingParams {
            seed,
            ..SamplingParams::default()
        };
        let chi = chi_square(&logits, &params, &distribution(&logits, 1.0, &all), 8_000);
        assert!(chi < 24.3, "seed {seed}: {chi}");
        let hot = SamplingParams {
            temperature: 2.5,
            ..params.clone()
        };
        let chi = chi_square(&logits, &hot, &distribution(&logits, 2.5, &all), 8_000);
        assert!(chi < 24.3, "seed {seed}, hot: {chi}");
        let top = SamplingParams {
            top_k: 3,
            ..params.clone()
        };
        let chi = chi_square(&logits, &top, &distribution(&logits, 1.0, &[1, 2, 5]), 8_000);
        assert!(chi < 13.8, "seed {seed}, top_k: {chi}");
        let nucleus = SamplingParams { top_p: 0.7, ..params };
        let chi = chi_square(&logits, &nucleus, &distribution(&logits, 1.0, &[1, 2, 5]), 8_000);
        assert!(chi < 13.8, "seed {seed}, top_p: {chi}");
    }
    // The wrong distribution is told apart.
    let params = SamplingParams::default();
    assert!(chi_square(&logits, &params, &distribution(&logits, 1.1, &all), 20_000) > 24.3);
}

#[test]
fn a_large_vocabulary_is_drawn_evenly() {
    let logits = vec![3.0_f32; 5000];
    let params = SamplingParams::default();
    let drawn = |position| {
        token_of(
            &logits,
            &SampleRow {
                position,
                ..row(&params)
            },
        )
        .unwrap() as usize
    };
    let mut counts = [0_usize; 50];
    (0..20_000).for_each(|position| counts[drawn(position) / 100] += 1);
    let chi: f64 = counts
        .iter()
        .map(|count| (*count as f64 - 400.0).powi(2) / 400.0)
        .sum();
    // The 0.1 % point with 49 degrees of freedom.
    assert!(chi < 85.4, "{chi}");
}

#[test]
fn draws_depend_on_seed_and_position_only() {
    let logits = vec![0.0_f32; 4096];
    let params = SamplingParams::default();
    let draw = |seed, position| {
        token_of(
            &logits,
            &SampleRow {
                position,
                seed,
                ..row(&params)
            },
        )
        .unwrap()
    };
    assert_eq!(draw(7, 3), draw(7, 3));
    let tokens: std::collections::BTreeSet<Token> = (0..40)
        .flat_map(|seed| (0..40).map(move |position| draw(seed, position)))
        .collect();
    // 1,600 draws from 4,096 leave about 1,325 distinct ones.
    assert!((1250..1400).contains(&tokens.len()), "{}", tokens.len());
}
