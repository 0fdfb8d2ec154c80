#!/usr/bin/env python3
"""Stands where build scripts look for nvcc, and writes the files that they ask for, empty: enough to check CUDA code."""
import pathlib
import sys

VERSION = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n"
ARCHIVE = b"!<arch>\n"


def after(arguments, option):
    """The argument that follows an option."""
    return arguments[arguments.index(option) + 1] if option in arguments else None


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
                (pathlib.Path(folder) / pathlib.Path(source).with_suffix(".ptx").name).write_bytes(b"")
    if out := after(arguments, "-o"):
        pathlib.Path(out).write_bytes(ARCHIVE if out.endswith(".a") else b"")


if __name__ == "__main__":
    main(sys.argv[1:])
