//! Has the linker name each binary by what is in it, as `/version` tells: GCC as distributions configure it does so unasked, other
//! compilers don't.

#![expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script things in the environment"
)]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-link-arg=-Wl,--build-id");
    }
}
