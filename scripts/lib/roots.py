"""Debian roots made by debootstrap, and what runs in them: for `scripts/image`."""
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile

from lib import bases, dockerfile

REPO = pathlib.Path(__file__).resolve().parent.parent.parent
CACHE = REPO / ".cache" / "image"
RELEASE = "bookworm"
MIRROR = "http://deb.debian.org/debian"


class RootError(Exception):
    """A root can't be made, or a step in it failed."""


def run(command, **options):
    if subprocess.run(command, check=False, stdin=subprocess.DEVNULL, **options).returncode:
        raise RootError(f"`{' '.join(map(str, command))}` failed")


def base():
    """A Debian of the packages that every other needs, made once."""
    if shutil.which("debootstrap") is None:
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-yqq", "--no-install-recommends", "debootstrap"]):
            run(command, env=quiet, stdout=subprocess.DEVNULL)
    made = CACHE / RELEASE
    if not made.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        making = CACHE / f"{RELEASE}.part"
        shutil.rmtree(making, ignore_errors=True)
        print(f"$ debootstrap {RELEASE}", flush=True)
        run(["debootstrap", "--variant=minbase", RELEASE, making, MIRROR], stdout=subprocess.DEVNULL)
        making.rename(made)
    return made


def wanted(pattern):
    """The files of the build's folder that .dockerignore lets through and `pattern` names; ours refuses all but what it names."""
    ignored = (REPO / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", pattern], cwd=REPO,
                            capture_output=True, text=True, check=True).stdout.splitlines()
    return [path for path in listed if any(path == name or path.startswith(f"{name}/") for name in let_through)
            and (REPO / path).is_file()]


class Stage:
    """One FROM: a root, and what its steps have set."""

    def __init__(self, name, image, made):
        self.root = CACHE / "stages" / name
        self.name, self.shell = name, ["/bin/sh", "-c"]
        self.folder, self.user = "/", None
        self.entry, self.health = [], []
        if self.root.exists():
            shutil.rmtree(self.root)
        self.root.parent.mkdir(parents=True, exist_ok=True)
        run(["cp", "--archive", made, self.root])
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        self.base = bases.of(image, self.root)
        self.variables, self.mounted = dict(self.base.variables), dict(self.base.mounted)
        # What was not done as the Dockerfile says.
        self.replaced = [f"{image}: a Debian {RELEASE} of debootstrap {self.base.told}"]
        print(f"== {name}: in place of {self.replaced[0]}", flush=True)

    def set(self, step):
        """A step that only says how others run."""
        name, text = step.name, step.text
        if name in ("ENV", "ARG"):
            for pair in text.split():
                key, _, value = pair.partition("=")
                self.variables[key] = dockerfile.expand(value, self.variables)
        elif name == "WORKDIR":
            self.folder = text
            (self.root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "USER":
            self.user = text
        elif name == "SHELL":
            self.shell = dockerfile.words(text)
        elif name == "ENTRYPOINT":
            self.entry = dockerfile.words(text)
        elif name == "HEALTHCHECK":
            self.health = dockerfile.health(text)

    def run(self, step):
        """A RUN, its caches kept beside the roots."""
        if bases.RUSTUP in step.text:
            mounts, done = bases.rustup(self.root, self.variables)
            self.mounted |= mounts
            self.replaced.append(f"RUN {step.text}: {done}")
            print(f"NOT RUN {step.text}\n  {done}", flush=True)
            return
        print(f"RUN {step.text}", flush=True)
        self.inside([*self.shell, step.text], self.mounted | {target: self.kept(target) for target in dockerfile.mounts(step)})

    def kept(self, target):
        """The folder of a cache: cargo's registry is that of this machine, so that nothing is fetched twice."""
        if target == f"{self.variables.get('CARGO_HOME')}/registry":
            folder = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo")) / "registry"
        else:
            folder = CACHE / "kept" / target.strip("/").replace("/", "-")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def inside(self, command, binds):
        """Runs a command in the root, with mounts that go with it."""
        mounts = ["mount --make-rprivate /", f"mount --bind {self.root} {self.root}", f"mount -t proc proc {self.root}/proc",
                  f"mount --rbind /dev {self.root}/dev"]
        for target, source in binds.items():
            place = self.root / target.lstrip("/")
            place.mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {source} {place}")
        variables = [f"{key}={value}" for key, value in self.variables.items()]
        script = " && ".join([*mounts, f'exec chroot {self.root} env -i -C {self.folder} "$@"'])
        run(["unshare", "--mount", "sh", "-c", script, "sh", *variables, *command])

    def copy(self, origin, words):
        """A COPY from another stage, or from the build's folder."""
        print(f"COPY {' '.join(words)}", flush=True)
        *sources, target = words
        inside = self.root / (target if target.startswith("/") else f"{self.folder}/{target}").lstrip("/")
        for source in sources:
            if origin:
                inside.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin / source.lstrip("/"), inside)
                continue
            files = wanted(source)
            if not files:
                raise RootError(f"COPY {source}: nothing of that name passes .dockerignore")
            for path in files:
                place = inside / path if (REPO / source).is_dir() else inside
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPO / path, place)

    def start(self, arguments, binds):
        """Starts the ENTRYPOINT as the image's user, on a root that can't be written, in a network of its own."""
        for added in self.base.added:
            if (self.root / added.lstrip("/")).exists():
                raise RootError(f"{added} is in the image, which a container's runtime must bring")
        return Running(self, arguments, self.base.added | binds)


class Running:
    """A stage's program while it runs."""

    def __init__(self, stage, arguments, binds):
        self.stage = stage
        # Removed with this object: what it says is read after the end, too.
        self.log = tempfile.NamedTemporaryFile("w+", prefix="image-", suffix=".log")  # noqa: SIM115
        mounts = ["mount --make-rprivate /", f"mount --bind {stage.root} {stage.root}", f"mount -t proc proc {stage.root}/proc"]
        for target, source in binds.items():
            place = stage.root / target.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
            mounts.append(f"mount --bind -o ro {source} {place}")
        mounts += [f"mount -t tmpfs tmpfs {stage.root}/tmp", f"mount --bind {stage.root}/var/lib/rempart {stage.root}/var/lib/rempart",
                   f"mount -o remount,bind,ro {stage.root}", "ip link set lo up"]
        variables = [f"{key}={value}" for key, value in stage.variables.items()]
        who = f"--userspec={stage.user}:{stage.user}" if stage.user else ""
        script = " && ".join([*mounts, f'exec chroot {who} {stage.root} env -i -C {stage.folder} "$@"'])
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--net", "sh", "-c", script, "sh", *variables, *stage.entry, *arguments],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT)

    def inside(self, command):
        """Runs a command where the program runs."""
        enter = ["nsenter", f"--target={self.process.pid}", "--mount", "--net", "chroot", self.stage.root, *command]
        return subprocess.run(enter, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    def ended(self):
        return self.process.poll() is not None

    def told(self):
        return pathlib.Path(self.log.name).read_text(encoding="utf-8", errors="replace")[-4000:]

    def stop(self, seconds):
        """SIGTERM, and the status with which it ends."""
        if not self.ended():
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
