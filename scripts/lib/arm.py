"""What builds and runs programs for 64-bit Arm on an x86-64 Debian: how NEON kernels are tested without such a machine.

A toolchain of rustup has no std for another target unless it can fetch one.  Debian's `rustc-web`, the compiler that its
browsers are built with, comes with std for both architectures in one version: it is unpacked, not installed, and cargo is
told to use it.  The linker and qemu's user emulation are ordinary packages.
"""
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess

TARGET = "aarch64-unknown-linux-gnu"
# The cross linker with its C library, the emulator, and what the compiler's LLVM loads.
PACKAGES = ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user-static", "libedit2", "libxml2", "libz3-4")
LIBRARIES = pathlib.Path("usr/lib/x86_64-linux-gnu")
TOOLS = ("rustc", "rustdoc")
# What the emulator imitates: everything that it knows, and a processor without dot products; and the best kernels of each.
PROCESSORS = {"max": "neon-dotprod", "cortex-a72": "neon"}


class Unsupported(Exception):
    """Why this is no machine for it at all."""


class ArmError(Exception):
    """What failed on a machine where it should work, and what to do about it."""


def call(command, log, **more):
    """Runs a step of the preparation with its output in a log; returns what it says."""
    with log.open("ab") as out:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out, check=False, **more)
        out.write(done.stdout)
    if done.returncode != 0:
        raise ArmError(f"`{' '.join(map(str, command[:3]))} ...` failed: see {log}; to begin anew delete its folder")
    return done.stdout.decode(errors="replace")


def is_debian():
    release = pathlib.Path("/etc/os-release")
    return release.is_file() and "ID=debian" in release.read_text(encoding="utf-8").splitlines()


def install(log):
    """Debian's packages, where they are missing."""
    known = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Status}\n", *PACKAGES], check=False,
                           capture_output=True, text=True).stdout
    missing = [package for package in PACKAGES if not re.search(rf"^{package} .* installed$", known, re.MULTILINE)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise Unsupported(f"install {' '.join(missing)}")
    call(["apt-get", "update", "-q"], log)
    call(["apt-get", "install", "-yq", "--no-install-recommends", *missing], log)


def apt_for_both(folder):
    """An environment in which apt reads lists of both architectures, in a folder of ours."""
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    config = folder / "apt.conf"
    config.write_text('APT::Architectures { "amd64"; "arm64"; };\n'
                      f'Dir::State::Lists "{folder}/lists";\nDir::Cache "{folder}/cache";\n'
                      'APT::Sandbox::User "root";\n', encoding="utf-8")
    # In English: what it says is read.
    return os.environ | {"APT_CONFIG": str(config), "LC_ALL": "C.UTF-8"}


def dependency(package, prefix, env, log):
    """The package that `package` depends on whose name begins so."""
    text = call(["apt-cache", "depends", "--no-recommends", package], log, env=env)
    found = re.search(rf"Depends: ({re.escape(prefix)}\S*)", text)
    if not found:
        raise ArmError(f"{package} is packaged in another way than this script knows")
    return found[1]


def unpack_compiler(cache, wanted, log):
    """The compiler and std for both architectures, unpacked below `cache`; `wanted` is the oldest version that will do."""
    work, root = cache / "apt", cache / "root"
    for folder in (work, root):
        shutil.rmtree(folder, ignore_errors=True)
    (work / "debs").mkdir(parents=True)
    env = apt_for_both(work)
    call(["apt-get", "update", "-q"], log, env=env)
    shown = call(["apt-cache", "show", "--no-all-versions", "rustc-web"], log, env=env)
    version = "".join(re.findall(r"^Version: (.*)$", shown, re.MULTILINE)[:1])
    if subprocess.run(["dpkg", "--compare-versions", version, "ge", wanted], check=False).returncode != 0:
        raise ArmError(f"rustc-web is {version}, Rust {wanted} is needed: are security updates among apt's sources?")
    std = dependency("libstd-rust-web-dev", "libstd-rust-web-", env, log)
    llvm = dependency(std, "libllvm", env, log)
    packages = [f"{name}={version}" for name in ("rustc-web", std, "libstd-rust-web-dev", "libstd-rust-web-dev:arm64")]
    call(["apt-get", "download", "-q", *packages, llvm], log, env=env, cwd=work / "debs")
    for package in sorted((work / "debs").iterdir()):
        call(["dpkg-deb", "-x", package, root], log)
    for tool in TOOLS:
        script = cache / tool
        program, libraries = shlex.quote(str(root / "usr" / "bin" / tool)), shlex.quote(str(root / LIBRARIES))
        script.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {program} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    shutil.rmtree(work)


def environments(cache, wanted):
    """For each of PROCESSORS what makes cargo build for Arm and run it there; prepares `cache` the first time."""
    if platform.machine() != "x86_64" or not is_debian():
        raise Unsupported("needs an x86-64 Debian; on Arm the ordinary tests run these kernels")
    cache.mkdir(parents=True, exist_ok=True)
    log, done = cache / "log", cache / "complete"
    if not done.is_file() or done.read_text(encoding="utf-8") != wanted:
        done.unlink(missing_ok=True)
        unpack_compiler(cache, wanted, log)
    install(log)
    call([cache / "rustc", "--version"], log)
    done.write_text(wanted, encoding="utf-8")
    settings = {"RUSTC": cache / "rustc", "RUSTDOC": cache / "rustdoc", "CARGO_TARGET_DIR": cache / "target",
                f"CARGO_TARGET_{TARGET.upper().replace('-', '_')}_LINKER": "aarch64-linux-gnu-gcc",
                f"CC_{TARGET.replace('-', '_')}": "aarch64-linux-gnu-gcc"}
    runner = f"CARGO_TARGET_{TARGET.upper().replace('-', '_')}_RUNNER"
    return {processor: {name: str(value) for name, value in settings.items()}
            | {runner: f"qemu-aarch64-static -cpu {processor} -L /usr/aarch64-linux-gnu", "REMPART_TEST_KERNELS": best}
            for processor, best in PROCESSORS.items()}
