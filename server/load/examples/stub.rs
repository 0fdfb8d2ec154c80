//! A server that answers on a known schedule, to measure `rempart bench` by.
//!
//! ```text
//! cargo run --release -p rempart-load --example stub -- 127.0.0.1:8001 100 50
//! ```
//! The address, milliseconds to the first token, and milliseconds between tokens. It serves until it is ended.

use std::io::Write as _;
use std::time::Duration;

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../tests/load/stub.rs"]
mod stub;

use stub::{Behaviour, Pace, Stub};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let address = arguments.first().map_or("127.0.0.1:8001", String::as_str);
    let ms = |index: usize, default: u64| {
        let ms = arguments.get(index).and_then(|text| text.parse().ok());
        Duration::from_millis(ms.unwrap_or(default))
    };
    let pace = Pace {
        ttft: ms(1, 100),
        itl: ms(2, 50),
    };
    let stub = Stub::with(Behaviour::Steady, pace, None, address);
    let _ = writeln!(std::io::stderr().lock(), "{} tokens as {pace:?}", stub.url());
    loop {
        std::thread::park();
    }
}
