"""A Debian root in which systemd runs as on a machine of its own: for `scripts/newcomer`.

It has namespaces of its own for mounts, processes, names, control groups and the network, in which there is loopback alone. The kernel
is the host's, whose settings it can't write. Needs root, and a kernel that lets root make namespaces and mount control groups.
"""
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import time

from lib import roots

# What every Debian that serves something has: an init, and what asks it something.
PACKAGES = ("systemd-sysv", "curl", "ca-certificates")
BOOT_S = 60
END_S = 30
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# In mounts of its own: a control group for all that the root has. The host's tree of them is mounted twice, and so seen by this alone.
ENTER = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1/sys"
mkdir "$1/sys/groups"
mount -t cgroup2 cgroup2 "$1/sys/groups"
mkdir "$1/sys/groups/$2"
echo $$ > "$1/sys/groups/$2/cgroup.procs"
umount "$1/sys/groups" "$1/sys"
exec unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child sh -c "$3" sh "$1"
"""
# The first process: what a container's runtime would mount, then systemd in its place.
BOOT = """
set -e
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=0755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
for device in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 0666 "dev/${device%:*}" c 1 "${device#*:}"
done
mknod -m 0666 dev/tty c 5 0
ip link set lo up
hostname newcomer
pivot_root . mnt
exec chroot . /bin/sh -c 'umount -l /mnt && exec env -i container=other PATH="$1" /lib/systemd/systemd' sh "$2"
"""
LEAVE = """
mount -t tmpfs tmpfs "$1/sys"
mkdir "$1/sys/groups"
mount -t cgroup2 cgroup2 "$1/sys/groups"
find "$1/sys/groups/$2" -depth -type d -exec rmdir {} +
"""


class MachineError(Exception):
    """It does not start, or something in it fails."""


def base():
    """A Debian with systemd, made once."""
    made = roots.CACHE / f"{roots.RELEASE}-systemd"
    if made.is_dir():
        return made
    making = made.with_suffix(".part")
    shutil.rmtree(making, ignore_errors=True)
    roots.run(["cp", "--archive", roots.base(), making])
    shutil.copy("/etc/resolv.conf", making / "etc/resolv.conf")
    print(f"$ apt-get install {' '.join(PACKAGES)}", flush=True)
    # Nothing is started while packages are installed.
    quiet = ["env", "-i", f"PATH={PATH}", "DEBIAN_FRONTEND=noninteractive"]
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-yqq", "--no-install-recommends", *PACKAGES], ["apt-get", "clean"]):
        roots.run(["chroot", making, *quiet, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    making.rename(made)
    return made


class Machine:
    """It runs while this is open; use it as a context manager."""

    def __init__(self, folder):
        """`folder`: where its files are; they are made anew, and stay for who wants to look."""
        self.root = pathlib.Path(folder)
        self.group = f"rempart-{secrets.token_hex(4)}"
        self.process, self.first = None, None
        made = base()
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.parent.mkdir(parents=True, exist_ok=True)
        roots.run(["cp", "--archive", made, self.root])

    def __enter__(self):
        command = ["unshare", "--mount", "sh", "-c", ENTER, "sh", self.root, self.group, BOOT.replace('"$2"', f"'{PATH}'")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self):
        deadline = time.monotonic() + BOOT_S
        told = ""
        while told not in ("running", "degraded"):
            if self.process.poll() is not None:
                raise MachineError(f"no root can be started here: {self.process.stderr.read().strip()}")
            if time.monotonic() > deadline:
                raise MachineError(f"systemd does not start within {BOOT_S} s ({told})")
            time.sleep(0.1)
            children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii").split()
            if children and pathlib.Path(f"/proc/{children[0]}/comm").read_text(encoding="ascii") == "systemd\n":
                self.first = children[0]
                told = self.run(["systemctl", "is-system-running"]).stdout.strip()

    def __exit__(self, *_):
        if self.process.poll() is None:
            # The end of the first process is that of all in it; who waits for that one ends then.
            os.kill(int(self.first or self.process.pid), signal.SIGKILL)
            try:
                self.process.communicate(timeout=END_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()
        subprocess.run(["unshare", "--mount", "sh", "-c", LEAVE, "sh", self.root, self.group], stdin=subprocess.DEVNULL,
                       capture_output=True, check=False)

    def enter(self, command, more=()):
        """The command line that runs a command in it, as root in root's folder, with `more` in its environment."""
        settings = ["env", "-i", "-C", "/root", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", *(f"{key}={value}" for key, value in dict(more).items())]
        return ["nsenter", "--target", self.first, "--all", "--root", "--", *settings, *command]

    def run(self, command):
        return subprocess.run(self.enter(command), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)

    def must(self, command):
        """What a command says; an error where it fails."""
        done = self.run(command)
        if done.returncode:
            raise MachineError(f"`{' '.join(command)}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def beside(self, command):
        """The command line that runs a program of the host in its network."""
        return ["nsenter", "--target", self.first, "--net", "--", *command]
