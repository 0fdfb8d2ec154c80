//! Compiles the CUDA kernels, for the generation of cards that `CUDA_COMPUTE_CAP` names.

#![expect(
    clippy::disallowed_methods,
    reason = "cargo and the toolkit tell a build script things in the environment"
)]

use std::{env, error::Error, path::Path, process::Command};

/// The oldest generation whose tensor cores and copies the kernels use.
const OLDEST: &str = "80";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=cuda");
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        device()?;
    }
    Ok(())
}

/// Machine code for one generation and, for younger ones, the instructions that a driver compiles.
fn device() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| OLDEST.to_owned());
    let nvcc = match env::var_os("CUDA_HOME") {
        Some(home) if Path::new(&home).join("bin/nvcc").exists() => Path::new(&home).join("bin/nvcc"),
        _ => "nvcc".into(),
    };
    let out = Path::new(&env::var("OUT_DIR")?).join("kernels.fatbin");
    let status = Command::new(&nvcc)
        .args(include_str!("cuda/nvcc.flags").split_whitespace())
        .arg(format!(
            "-gencode=arch=compute_{capability},code=[sm_{capability},compute_{capability}]"
        ))
        .arg("-o")
        .args([&out, Path::new("cuda/all.cu")])
        .status()
        .map_err(|error| format!("{}: {error}; set CUDA_HOME to a CUDA toolkit", nvcc.display()))?;
    if !status.success() {
        return Err(format!("{} failed: {status}", nvcc.display()).into());
    }
    Ok(())
}
