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
        let mut rounds = false;
        for format in formats {
            let is_packed = Layout::of(format).is_some();
            if format == Format::F32 {
                return Some(format!("a card has no kernels for weights in {}", format.name()));
            }
            rounds |= is_packed;
        }
        if rounds && self.activations != Activations::Int8 {
            return Some("a card rounds activations to 8 bits: --activations int8".to_owned());
        }
        refused_cache(self.head_dim, self.kv_dtype)
    }
}

/// Why no card keeps keys and values of such heads so; `None` where one does.
pub(crate) fn refused_cache(head_dim: usize, dtype: KvDtype) -> Option<String> {
    if !HEAD_DIMS.contains(&head_dim) {
        return Some(format!(
            "attention on a card is for heads of {HEAD_DIMS:?} dimensions, and these have {head_dim}"
        ));
    }
    (dtype == KvDtype::F32)
        .then(|| "keys and values on a card are in bf16 or in 8 bits: --kv-dtype bf16 or int8".to_owned())
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
    fn a_card_takes_weights_of_up_to_16_bits_and_says_why_it_takes_no_others() {
        for format in Format::ALL {
            let floating = format == Format::F32;
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
        let numbers = [Format::Bf16, Format::F16];
        assert_eq!(exact.refused(numbers), None, "they meet no whole numbers");
        let kept_in = |kv_dtype| why(CardNeeds { kv_dtype, ..NEEDS });
        assert_eq!(kept_in(KvDtype::Int8), "");
        assert!(kept_in(KvDtype::F32).ends_with("--kv-dtype bf16 or int8"));
    }
}
