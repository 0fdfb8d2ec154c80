//! Cargo wants a library in each package; all there is, is in the benchmarks.
