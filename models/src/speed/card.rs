//! Cards by their datasheets.

use rempart_kernels::Format;

use super::{FormatRates, Product, Rates, Work};

/// A card, as its maker's datasheet has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// What it is called here: lower case, as one types it.
    pub name: &'static str,
    /// Memory, GiB.
    pub memory_gib: u64,
    /// Read from memory, 10^9 bytes a second.
    pub bandwidth_gbps: f64,
    /// Dense 8-bit integer operations of the tensor cores, 10^12 a second; a multiplication with an addition is two.
    pub int8_tops: f64,
    /// Dense bf16 operations with sums in 32 bits, likewise.
    pub bf16_tflops: f64,
}

const fn card(
    name: &'static str,
    memory_gib: u64,
    bandwidth_gbps: f64,
    int8_tops: f64,
    bf16_tflops: f64,
) -> Card {
    Card {
        name,
        memory_gib,
        bandwidth_gbps,
        int8_tops,
        bf16_tflops,
    }
}

/// Cards of the generations that the kernels are built for, from NVIDIA's datasheets; where those count sparse matrices, half.
pub const CARDS: &[Card] = &[
    card("a10", 24, 600.0, 250.0, 125.0),
    card("a30", 24, 933.0, 330.0, 165.0),
    card("a40", 48, 696.0, 299.3, 149.7),
    card("a100-40gb", 40, 1555.0, 624.0, 312.0),
    card("a100-80gb", 80, 2039.0, 624.0, 312.0),
    card("l4", 24, 300.0, 242.0, 121.0),
    card("l40s", 48, 864.0, 733.0, 362.0),
    card("rtx-4090", 24, 1008.0, 660.6, 165.2),
    card("rtx-5090", 32, 1792.0, 838.0, 209.5),
    card("rtx-6000-ada", 48, 960.0, 728.5, 364.2),
    card("h100-pcie", 80, 2000.0, 1513.0, 756.0),
    card("h100-sxm", 80, 3350.0, 1979.0, 989.0),
    card("h200", 141, 4800.0, 1979.0, 989.0),
    card("b200", 180, 8000.0, 4500.0, 2250.0),
];

/// What our kernels reach of a card's bandwidth with few rows, and of its operations with more: measured on an H200 with the
/// integer matrices of a model of 8 billion weights, docs/performance.md. With weights of 16 bits, which take less arithmetic,
/// nothing has been measured yet: the same is expected.
const BANDWIDTH_SHARE: f64 = 0.30;
const OPERATIONS_SHARES: [(usize, f64); 7] = [
    (1, 1.0),
    (8, 1.0),
    (32, 0.036),
    (64, 0.045),
    (128, 0.056),
    (512, 0.061),
    (2048, 0.074),
];
/// Of attention, likewise: of bandwidth as sequences decode, and of the operations of a prompt.
const KV_SHARE: f64 = 0.45;
const ATTENTION_SHARE: f64 = 0.06;
/// Seconds that an operation of a recorded step takes beside its work.
const START: f64 = 4e-6;
/// Seconds for each logit of a token that is sampled: it goes to the processor, which chooses.
const LOGIT: f64 = 6e-10;

impl Card {
    /// The card of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CARDS.iter().find(|card| card.name == name)
    }

    /// Memory, bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_gib << 30
    }

    /// What it does in a second, as far as our kernels let it: an expectation, measured on one card and carried over to
    /// the others by their datasheets.
    pub fn rates(&self, work: &Work) -> Rates {
        let byte = 1.0 / (self.bandwidth_gbps * 1e9);
        let mut formats: Vec<FormatRates> = Vec::new();
        for product in &work.products {
            if formats.iter().all(|known| known.format != product.format) {
                let tops = match product.format {
                    Format::Bf16 | Format::F16 => self.bf16_tflops,
                    _ => self.int8_tops,
                };
                let multiplication = 2.0 / (tops * 1e12);
                let read = bytes_of_weight(product) * byte / BANDWIDTH_SHARE;
                let point = |(n, share): (usize, f64)| (n, read.max(multiplication * n as f64 / share));
                formats.push(FormatRates {
                    format: product.format,
                    points: OPERATIONS_SHARES.map(point).to_vec(),
                });
            }
        }
        Rates {
            formats,
            kv_byte: byte / KV_SHARE,
            attention: 2.0 / (self.bf16_tflops * 1e12) / ATTENTION_SHARE,
            // Read and written once, 4 bytes each.
            element: 8.0 * byte,
            logit: LOGIT,
            start: START,
        }
    }
}

fn bytes_of_weight(product: &Product) -> f64 {
    let one = Product { count: 1, ..*product };
    one.bytes() as f64 / one.weights()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvDtype, ModelConfig, config::tests::tiny, speed::Step};

    /// docs/performance.md: milliseconds a token of 1, 8 and 32 clients with prompts of 32 tokens and answers of 64, and the time to the
    /// first token of a prompt of 512.
    #[test]
    fn what_was_measured_on_an_h200_is_predicted() {
        let config = ModelConfig {
            vocab_size: 128_256,
            hidden_size: 4096,
            intermediate_size: 14_336,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            windows: vec![None; 32],
            tied_head: false,
            ..tiny()
        };
        let work = Work::of_shape(&config, Format::Q4K, KvDtype::Bf16);
        let rates = Card::named("h200").unwrap().rates(&work);
        for (sequences, measured) in [(1, 3.8e-3), (8, 4.9e-3), (32, 10.3e-3)] {
            let step = Step {
                sequences,
                tokens: 1,
                context: 64,
                sampled: true,
            };
            let seconds = rates.seconds(&work, &step);
            assert!((seconds / measured - 1.0).abs() < 0.15, "{sequences}: {seconds}");
        }
        let first = rates.prefill(&work, 512, 512);
        assert!((first / 67e-3 - 1.0).abs() < 0.15, "{first}");
    }
}
