"""What stands in for the base images of our Dockerfiles, each on a Debian of debootstrap: for `scripts/image`, which says so.

An image is: its variables, the folders that are mounted into it while steps run, what a container's runtime would mount when it is
run, and what is replaced in its steps since it can't be done here.
"""
import dataclasses
import pathlib
import shutil
import subprocess

from lib import cuda_binary, cuda_toolkit

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Where the image `rust` has them.
CARGO_HOME = "/usr/local/cargo"
RUST_TOOLCHAIN = "/usr/local/rustup/toolchains/stable"
CUDA = "/usr/local/cuda"
# What of the toolkit's libraries a program loads.
RUN_TIME = ("cublas", "cublasLt", "cudart", "curand", "nvblas", "nvrtc", "nvrtc-builtins")
# Where NVIDIA's container toolkit mounts the host's driver.
DRIVER = "/usr/lib/x86_64-linux-gnu/libcuda.so.1"
RUSTUP = "https://sh.rustup.rs"


class BaseError(Exception):
    """There is nothing that stands in for an image, or for a step."""


@dataclasses.dataclass
class Base:
    """What stands in for an image. `mounted` while steps run, `added` when it is run; `says` is what its server must say."""

    told: str
    variables: dict
    mounted: dict = dataclasses.field(default_factory=dict)
    added: dict = dataclasses.field(default_factory=dict)
    says: tuple = ()


def toolchain():
    """This machine's Rust toolchain, and its version."""
    told = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True, cwd=REPO).stdout
    version = subprocess.run(["rustc", "-V"], capture_output=True, text=True, check=True, cwd=REPO).stdout
    return pathlib.Path(told.strip()), version.split()[1]


def toolkit(image):
    """CUDA_HOME of the toolkit of the wheels, which must be the one that an image has."""
    version = image.partition(":")[2].partition("-")[0]
    if version != cuda_toolkit.VERSION:
        raise BaseError(f"{image}: the toolkit of scripts/cuda-toolkit is {cuda_toolkit.VERSION}")
    try:
        return cuda_toolkit.install(REPO / ".cache" / "cuda" / "toolkit", whole=True)
    except (cuda_toolkit.Unsupported, cuda_toolkit.ToolkitError) as error:
        raise BaseError(str(error)) from error


def run_time_libraries(home, root):
    """The libraries that programs of CUDA load, into a root, where its loader finds them; none to link with, and no driver's."""
    target = root / CUDA.lstrip("/") / "lib64"
    target.mkdir(parents=True)
    for library in sorted((home / "lib").glob("lib*.so.*")):
        if library.name.removeprefix("lib").split(".so.")[0] in RUN_TIME:
            shutil.copy2(library, target)
    (root / "etc" / "ld.so.conf.d" / "cuda.conf").write_text(f"{CUDA}/lib64\n", encoding="utf-8")
    if subprocess.run(["chroot", root, "/sbin/ldconfig"], check=False).returncode:
        raise BaseError("ldconfig failed")


def of(image, root):
    """What stands in for an image, in a root that is a plain Debian."""
    name, _, tag = image.partition(":")
    plain = {"PATH": PATH, "HOME": "/root"}
    if name == "debian":
        return Base("as it is", plain)
    if name == "rust":
        return Base("with this machine's Rust toolchain", plain | {"CARGO_HOME": CARGO_HOME, "PATH": f"{RUST_TOOLCHAIN}/bin:{PATH}"},
                    {RUST_TOOLCHAIN: toolchain()[0]})
    if name == "nvidia/cuda" and "-devel-" in tag:
        return Base(f"with the toolkit of scripts/cuda-toolkit --all at {CUDA}", plain | {"PATH": f"{CUDA}/bin:{PATH}"},
                    {CUDA: toolkit(image)})
    if name == "nvidia/cuda" and "-runtime-" in tag:
        home = toolkit(image)
        run_time_libraries(home, root)
        return Base(f"with the libraries of scripts/cuda-toolkit --all at {CUDA}, and when it is run a driver that says that there is none",
                    plain, added={DRIVER: home / "lib" / "stubs" / "libcuda.so.1"}, says=(cuda_binary.WARNING,))
    raise BaseError(f"nothing stands in for {image}")


def rustup(root, variables):
    """In place of the step that asks sh.rustup.rs, which only the internet has: this machine's toolchain where that step puts
    one, and links where it puts rustup's. Returns what is mounted from then on, and what was done."""
    path, version = toolchain()
    if version != variables["RUST_VERSION"]:
        raise BaseError(f"this machine's Rust is {version}, and the image's {variables['RUST_VERSION']}")
    target = f"{variables['RUSTUP_HOME']}/toolchains/{version}"
    programs = root / variables["CARGO_HOME"].lstrip("/") / "bin"
    programs.mkdir(parents=True)
    for program in ("cargo", "rustc", "rustdoc"):
        (programs / program).symlink_to(f"{target}/bin/{program}")
    return {target: path}, f"{RUSTUP} is not asked: this machine's Rust {version} is mounted at {target}"
