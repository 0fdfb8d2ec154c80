"""NVIDIA's compiler from pinned PyPI wheels, checked by SHA-256: a toolkit in a folder, without root and without a driver.

A whole binary wants more: cuBLAS, cuRAND and NVRTC, and at link time a libcuda, which is part of a driver and in no wheel. One
is made here of the names in cuda.h, whose every call fails as that of a machine without a driver. It is never shipped, and it
must not be on the library path of a machine that has a card.
"""
import pathlib
import platform
import re
import shutil
import subprocess
import sys

# That of the list's packages.
VERSION = "13.0.2"
LIST = pathlib.Path(__file__).with_name("cuda_requirements.txt")
LINE = "# ---\n"
# CUDA_ERROR_STUB_LIBRARY.
STUB_ERROR = 34
STUB_SAYS = "a stub of libcuda: there is no NVIDIA driver on this machine"


class Unsupported(Exception):
    """Why there is no toolkit for this machine."""


class ToolkitError(Exception):
    """What failed, for the terminal."""


def requirements(whole):
    """The text of the list, up to the line where only the compiler is wanted."""
    text = LIST.read_text(encoding="utf-8")
    return text if whole else text.split(LINE)[0]


def call(command, **more):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          check=False, **more)
    if done.returncode != 0:
        raise ToolkitError(f"`{' '.join(map(str, command[:4]))} ...` failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def install(folder, whole=False):
    """The toolkit in `folder`, `whole` with what a binary links. Does nothing where it is there. Returns CUDA_HOME."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unsupported("the pinned compiler is for x86-64 Linux")
    home, stamp = folder / "nvidia" / "cu13", folder / ".installed"
    done = stamp.read_text(encoding="utf-8") if stamp.is_file() else ""
    if done in (requirements(whole), requirements(True)):
        return home
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = folder / "requirements.txt"
    wanted.write_text(requirements(whole), encoding="utf-8")
    call([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
          "--require-hashes", "--only-binary", ":all:", "--root-user-action", "ignore", "--target", folder, "-r", wanted])
    name_libraries(home)
    if whole:
        make_stub(home)
    release = call([home / "bin" / "nvcc", "--version"])
    if "release 13.0" not in release:
        raise ToolkitError(f"unexpected compiler: {release}")
    stamp.write_text(requirements(whole), encoding="utf-8")
    return home


def name_libraries(home):
    """What a linker looks for: wheels have the names with a version alone."""
    (home / "lib64").symlink_to("lib")
    for library in sorted((home / "lib").glob("lib*.so.*")):
        plain = home / "lib" / f"{library.name.split('.so.')[0]}.so"
        if ".alt." not in library.name and not plain.exists():
            plain.symlink_to(library.name)


def driver_calls(include):
    """The names of all functions of libcuda: those that cuda.h declares, and what its macros make of them."""
    declared = call(["cc", "-E", "-P", "-x", "c", "-I", include, "-include", include / "cuda.h", "/dev/null"])
    raw = (include / "cuda.h").read_text(encoding="utf-8")
    names = set(re.findall(r"\bCUresult\s+(cu[A-Z]\w*)\s*\(", declared))
    names |= set(re.findall(r"\b(cu[A-Z]\w*_(?:v[0-9]+(?:_ptsz|_ptds)?|ptsz|ptds))\b", raw))
    names |= set(re.findall(r"#define\s+(cu[A-Z]\w*)\s+(?:__CUDA_API_PT|cu[A-Z])", raw))
    return sorted(names)


def make_stub(home):
    """lib/stubs/libcuda.so and, for the loader, libcuda.so.1."""
    stubs = home / "lib" / "stubs"
    stubs.mkdir()
    source = stubs / "cuda.c"
    lines = []
    for name in driver_calls(home / "include"):
        if name in ("cuGetErrorName", "cuGetErrorString"):
            lines.append(f'int {name}(int error, const char **text) {{ (void)error; *text = "{STUB_SAYS}"; return 0; }}')
        else:
            lines.append(f"int {name}(void) {{ return {STUB_ERROR}; }}")
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    call(["cc", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o", stubs / "libcuda.so", source])
    (stubs / "libcuda.so.1").symlink_to("libcuda.so")
