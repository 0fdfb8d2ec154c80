//! Compiles the kernels and what runs them, with the machine's C++ compiler.

fn main() {
    println!("cargo::rerun-if-changed=../cuda");
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
