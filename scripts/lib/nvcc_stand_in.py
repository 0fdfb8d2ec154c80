#!/usr/bin/env python3
"""Stands where build scripts look for nvcc, and writes the files that they ask for, empty: enough to check CUDA code.

cudaforge, which runs it for Candle's kernels, keeps beside them what it has compiled, and for which generation. It writes that
down when all are compiled: had the last run been a real one, and were this one ended halfway, the next real one would take the
empty files for its own. So that list goes before any file does.
"""
import pathlib
import sys

VERSION = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n"
ARCHIVE = b"!<arch>\n"
# `CACHE_FILENAME` of cudaforge 0.1.6, src/hash.rs, in the folder of what it compiles.
COMPILED = ".cudaforge_cache.json"


def after(arguments, option):
    """The argument that follows an option."""
    return arguments[arguments.index(option) + 1] if option in arguments else None


def write(file, content):
    """Writes what stands for a compiled file, after nothing says any more that it is one."""
    (file.parent / COMPILED).unlink(missing_ok=True)
    file.write_bytes(content)


def main(arguments):
    if "--version" in arguments:
        sys.stdout.write(VERSION)
        return
    if "--list-gpu-code" in arguments:
        sys.stdout.write("sm_80\n")
        return
    folder = after(arguments, "--output-directory")
    if folder and {"-ptx", "--ptx"} & set(arguments):
        for source in arguments:
            if source.endswith(".cu"):
                write(pathlib.Path(folder) / pathlib.Path(source).with_suffix(".ptx").name, b"")
    if out := after(arguments, "-o"):
        write(pathlib.Path(out), ARCHIVE if out.endswith(".a") else b"")


if __name__ == "__main__":
    main(sys.argv[1:])
