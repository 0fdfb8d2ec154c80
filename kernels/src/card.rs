//! What a card's kernels can compute: known without a card, and before anything is loaded.

use crate::{Activations, Format, KvDtype, packed::Layout};

/// Dimensions of heads that there are attention kernels for.
pub(crate) const HEAD_DIMS: [usize; 3] = [64, 128, 256];

/// What a model would have a card compute.
#[derive(Debug, Clone, Copy)]
pub struct CardNeeds {
    /// Dimensions of a head.
    pub head_dim: usize,
    /// How layers with integer weights round their activations.
    pub activations: Activations,
    /// How keys and values are held.
    pub kv_dtype: KvDtype,
}

impl CardNeeds {
    /// Why no card computes a model with these needs, whose matrices are in these formats; `None` where one does.
    pub fn refused(self, formats: impl IntoIterator<Item = Format>) -> Option<String> {
        if let Some(format) = formats.into_iter().find(|format| Layout::of(*format).is_none()) {
            return Some(format!("a card has no kernels for weights in {}", format.name()));
        }
        if !HEAD_DIMS.contains(&self.head_dim) {
            return Some(format!(
                "attention on a card is for heads of {HEAD_DIMS:?} dimensions, and these have {}",
                self.head_dim
            ));
        }
        if self.activations != Activations::Int8 {
            return Some("a card rounds activations to 8 bits: --activations int8".to_owned());
        }
        (self.kv_dtype != KvDtype::Bf16)
            .then(|| "keys and values on a card are in bf16: --kv-dtype bf16".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: CardNeeds = CardNeeds {
        head_dim: 128,
        activations: Activations::Int8,
        kv_dtype: KvDtype::Bf16,
    };

    #[test]
    fn a_card_takes_integer_weights_and_says_why_it_takes_no_others() {
        for format in Format::ALL {
            let floating = matches!(format, Format::F32 | Format::F16 | Format::Bf16);
            let refused = NEEDS.refused([Format::Q4K, format]);
            assert_eq!(refused.is_some(), floating, "{}", format.name());
            assert!(refused.is_none_or(|why| why.ends_with(format.name())));
        }
        let why = |needs: CardNeeds| needs.refused([Format::Q8_0]).unwrap_or_default();
        let narrow = CardNeeds {
            head_dim: 80,
            ..NEEDS
        };
        assert!(why(narrow).ends_with("have 80"));
        let exact = CardNeeds {
            activations: Activations::Int16,
            ..NEEDS
        };
        assert!(why(exact).ends_with("--activations int8"));
        let small = CardNeeds {
            kv_dtype: KvDtype::Int8,
            ..NEEDS
        };
        assert!(why(small).ends_with("--kv-dtype bf16"));
    }
}
