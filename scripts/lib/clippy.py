"""Clippy over all code, with the feature `cuda` too, on a machine without a CUDA toolkit."""
import os
import pathlib
import shutil

STAND_IN = pathlib.Path(__file__).resolve().parent / "nvcc_stand_in.py"
# One that no card is of: cargo and cudaforge know that what it has left is not for any real one, and compile all again.
NO_GENERATION = "99"
FEATURES = "rempart-kernels/cuda,rempart/cuda,rempart-models/nccl"
COMMON, STRICT = ("cargo", "clippy", "--release", "--locked"), ("--", "-D", "warnings")
# All code with the feature, and then the crates that have code for it as they are without it, where some may be unused.
WHOLE = (*COMMON, "--workspace", "--all-targets", "--features", FEATURES, *STRICT)
WITHOUT = (*COMMON, "--package", "rempart-kernels", "--package", "rempart-models", "--package", "rempart", *STRICT)


def settings(folder, path):
    """The environment in which the feature compiles: something in nvcc's place, left in `folder`, writes empty files."""
    folder.mkdir(parents=True, exist_ok=True)
    stand_in = folder / "nvcc"
    shutil.copy(STAND_IN, stand_in)
    stand_in.chmod(0o755)
    return {"PATH": os.pathsep.join([str(folder), path]), "CUDA_HOME": "", "CUDA_COMPUTE_CAP": NO_GENERATION,
            "CUDARC_CUDA_VERSION": "13000"}
