//! Compiles the kernels and what runs them, with the machine's C++ compiler.

#![expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script things in the environment"
)]

fn main() {
    println!("cargo::rerun-if-changed=../cuda");
    // Elsewhere no test asks for it, and a compiler for C++ may be missing.
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        // Multiplications and additions are fused where the kernels say so, as on a card.
        .flag("-ffp-contract=off")
        .flag("-fno-strict-aliasing")
        .flag("-Wno-unknown-pragmas")
        .define("REMPART_SHIM", None)
        .file("../cuda/shim/host.cpp")
        .compile("rempart_simt");
}
