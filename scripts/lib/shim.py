"""The CUDA kernels as shared objects for the host, and the kernels' tests on them: with a sanitizer, or with faults in them.

The tests' program is the one that the step `nextest` has built: it takes the kernels of the object that REMPART_SIMT_LIBRARY
names, so that only C++ is compiled here.
"""
import concurrent.futures
import json
import os
import pathlib
import subprocess

# What kernels/simt/build.rs says of C++, and threads' own variables where a library that is loaded late may have them.
FLAGS = ("-std=c++17", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-ftls-model=initial-exec", "-DREMPART_SHIM")
SANITIZERS = ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# What a step that runs kernels depends on.
SOURCES = ("kernels/cuda", "kernels/simt", "kernels/src", "kernels/tests/common", "kernels/Cargo.toml", "Cargo.lock",
           "scripts/lib/shim.py")


class ShimError(Exception):
    """What could not be compiled or found."""


def call(command, **more):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", check=False, **more)


def compiler():
    return os.environ.get("CXX", "c++")


def compile_object(source, out, flags):
    done = call([compiler(), *FLAGS, *flags, "-x", "c++", "-c", source, "-o", out])
    if done.returncode != 0:
        raise ShimError(f"{source.name}:\n{done.stdout}")
    return out


def link(objects, out, flags):
    done = call([compiler(), *flags, "-shared", "-o", out, *objects])
    if done.returncode != 0:
        raise ShimError(done.stdout)
    return out


def test_program(repo, environment):
    """The program of the unit tests of the kernels' crate, built where it is not."""
    command = ["cargo", "nextest", "list", "--release", "--locked", "--workspace", "--list-type", "binaries-only",
               "--message-format", "json"]
    done = subprocess.run(command, cwd=repo, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                          check=False)
    if done.returncode != 0:
        raise ShimError("the tests could not be built")
    return pathlib.Path(json.loads(done.stdout)["rust-binaries"]["rempart-kernels"]["binary-path"])


def settings(library, sanitized):
    """What the environment tells tests that are to take the kernels of a shared object."""
    more = {"REMPART_SIMT_LIBRARY": str(library), "RUST_BACKTRACE": "0"}
    if sanitized:
        runtime = call([compiler(), "-print-file-name=libasan.so"]).stdout.strip()
        # The processor's allocator is the sanitizer's for the tests' own buffers too: it knows where each ends.
        more |= {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=0",
                 "UBSAN_OPTIONS": "print_stacktrace=1"}
    return more


def compile_sanitized(repo, folder, more=()):
    """All kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in parts that are compiled side by side; `more` flags."""
    folder.mkdir(parents=True, exist_ok=True)
    cuda = repo / "kernels" / "cuda"
    formats = ("Q4_0 Q4_1 Q5_0", "Q5_1 Q8_0 Q2K", "Q3K Q4K", "Q5K Q6K")
    parts = [(cuda / "product.cu", (f"-DFORMATS(X)={' '.join(f'X({one})' for one in some.split())}",)) for some in formats]
    parts += [(cuda / "attention.cu", (f"-DWIDTHS_OF_HEADS(X)=X({width})",)) for width in (64, 128, 256)]
    parts += [(cuda / name, ()) for name in ("dense.cu", "block.cu", "round.cu", "sample.cu", "shim/simt.cpp")]
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        objects = list(pool.map(lambda part: compile_object(part[1][0], folder / f"{part[0]}.o", (*SANITIZERS, *more, *part[1][1])),
                                enumerate(parts)))
    return link(objects, folder / "kernels.so", SANITIZERS)
