//! Weights, their sum, and a token at a point of their sum. Written so that the compiler vectorises it, and in plain
//! arithmetic so that every machine gets the same bits.

use crate::request::Token;

/// Weights are summed in chunks of this many, so that a draw needs to walk one chunk only.
const CHUNK: usize = 256;

/// Below this, e^x is zero for a softmax (and nearly so in 32 bits).
const UNDERFLOW: f32 = -87.0;

/// Each logit becomes e^((logit - max) / temperature). The temperature is positive; no logit is NaN or above `max`.
pub(super) fn weigh(logits: &mut [f32], max: f32, temperature: f32) {
    // An infinite temperature would make NaN of an excluded token.
    let temperature = temperature.min(f32::MAX);
    for logit in logits.iter_mut() {
        *logit = exp((*logit - max) / temperature);
    }
}

/// e^x for x of at most 0, within 3e-7 of it, relatively; 0 below [`UNDERFLOW`].
fn exp(x: f32) -> f32 {
    /// Adding it rounds a small number to a whole one, which is then in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has few enough bits that its product with a whole number is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.max(UNDERFLOW);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let rest = clamped - whole * LN2_HIGH - whole * LN2_LOW;
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * rest + coefficient;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let power = f32::from_bits(exponent << 23);
    if x < UNDERFLOW { 0.0 } else { sum * power }
}

/// The greatest of numbers none of which is NaN; minus infinity of none.
pub(super) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 8];
    let (eights, rest) = values.as_chunks::<8>();
    for eight in eights {
        for (lane, value) in lanes.iter_mut().zip(eight) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// The sum of weights, in 64 bits.
pub(super) fn sum(weights: &[f32]) -> f64 {
    weights.chunks(CHUNK).map(chunk_sum).sum()
}

fn chunk_sum(weights: &[f32]) -> f64 {
    let mut lanes = [0.0_f64; 8];
    let (eights, rest) = weights.as_chunks::<8>();
    for eight in eights {
        for (lane, weight) in lanes.iter_mut().zip(eight) {
            *lane += f64::from(*weight);
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|weight| f64::from(*weight)).sum::<f64>()
}

/// The token in whose weight the point `share` (0 to 1) of the sum lies, walking up from token 0. `None` without any
/// weight.
pub(super) fn pick(weights: &[f32], share: f64) -> Option<Token> {
    let sums: Vec<f64> = weights.chunks(CHUNK).map(chunk_sum).collect();
    let mut point = share * sums.iter().sum::<f64>();
    let mut chosen = None;
    for (chunk, sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        chosen = Some(chunk);
        if point < *sum {
            break;
        }
        point -= sum;
    }
    let start = chosen? * CHUNK;
    let end = weights.len().min(start + CHUNK);
    let mut token = None;
    for (offset, weight) in weights[start..end]
        .iter()
        .enumerate()
        .filter(|(_, weight)| **weight > 0.0)
    {
        token = Some((start + offset) as Token);
        if point < f64::from(*weight) {
            break;
        }
        point -= f64::from(*weight);
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_real_one() {
        let mut worst = 0.0_f64;
        for step in 0..87_000 {
            let x = -(step as f32) * 1e-3;
            let real = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - real).abs() / real);
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
        assert!(exp(UNDERFLOW) > 0.0);
        assert_eq!(exp(-87.1).to_bits(), 0);
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
    }

    #[test]
    fn sums_are_exact_at_every_length() {
        for len in 0..600_usize {
            let weights: Vec<f32> = (0..len).map(|index| index as f32).collect();
            let expected = (len * len.saturating_sub(1) / 2) as f64;
            assert!((sum(&weights) - expected).abs() < 1e-9, "{len}");
        }
    }

    #[test]
    fn pick_finds_the_token_at_every_point() {
        let mut weights = vec![0.0_f32; 1000];
        for (token, weight) in [(3, 1.0), (255, 2.0), (256, 3.0), (700, 4.0)] {
            weights[token] = weight;
        }
        let picked = |share: f64| pick(&weights, share);
        assert_eq!(picked(0.0), Some(3));
        assert_eq!(picked(0.099), Some(3));
        assert_eq!(picked(0.1), Some(255));
        assert_eq!(picked(0.299), Some(255));
        assert_eq!(picked(0.3), Some(256));
        assert_eq!(picked(0.599), Some(256));
        assert_eq!(picked(0.6), Some(700));
        assert_eq!(picked(0.999_999_999), Some(700));
        // Rounding may carry the point past the end: the last token with weight it is.
        assert_eq!(picked(1.5), Some(700));
        assert_eq!(pick(&[0.0; 300], 0.5), None);
        assert_eq!(pick(&[], 0.5), None);
    }
}
