//! How fast a model will be, from what a step reads and computes and what a device does in a second: the roofline of
//! Williams, Waterman and Patterson (<https://doi.org/10.1145/1498765.1498785>), with rates that were measured or that a
//! datasheet states.

mod card;
mod measure;
mod rates;
mod work;

pub use card::{CARDS, Card};
pub use rates::{FormatRates, Parts, Rates};
pub use work::{Product, Step, Work};
