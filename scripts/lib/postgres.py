"""A PostgreSQL server in a folder of its own, on a socket there, and on a port of loopback only where one is given."""
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import time

PACKAGE = "postgresql"
# Debian has its programs here, and in no PATH.
DEBIAN = pathlib.Path("/usr/lib/postgresql")


class PostgresError(Exception):
    """It is missing and can't be installed, or does not start."""


def programs():
    """The folder of the server's programs; None without one."""
    folders = [*sorted(DEBIAN.glob("*/bin")), *map(pathlib.Path, os.environ["PATH"].split(os.pathsep))]
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


def install():
    """The package, where there is none; what it would run by itself is not made."""
    if programs():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PostgresError(f"PostgreSQL is missing: install it (Debian, Ubuntu: apt-get install {PACKAGE})")
    settings = pathlib.Path("/etc/postgresql-common/createcluster.conf")
    if not settings.exists():
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text("create_main_cluster = false\n", encoding="utf-8")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-yqq", "--no-install-recommends", PACKAGE]):
        if subprocess.run(command, env=quiet, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode:
            raise PostgresError(f"`{' '.join(command)}` failed")
    if programs() is None:
        raise PostgresError(f"the package {PACKAGE} has no server")


class Cluster:
    """Use it as a context manager."""

    def __init__(self, port=None):
        """`port`: one of loopback, by which it can be reached beside its socket."""
        self.programs = programs()
        if self.programs is None:
            raise PostgresError("PostgreSQL is missing: scripts/test installs it")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rempart-pg-"))
        # As root it does not run.
        self.user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        if self.user:
            os.chown(self.folder, pwd.getpwnam("postgres").pw_uid, -1)
        self.process = None
        # The file of a socket is named by a port anyhow.
        self.port = str(port or 5432)
        self.listen = ["-c", f"listen_addresses={'127.0.0.1' if port else ''}", "-c", f"port={self.port}"]
        self.url = f"postgres://postgres@localhost:{self.port}/postgres?host={self.folder}"
        self.tcp_url = f"postgres://postgres@localhost:{port}/postgres" if port else None

    def call(self, program, *arguments):
        done = subprocess.run([self.programs / program, *arguments], cwd=self.folder, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False, **self.user)
        if done.returncode:
            raise PostgresError(f"{program}: {done.stderr.strip()}")
        return done.stdout

    def start(self):
        command = [self.programs / "postgres", "-D", "data", *self.listen, "-k", self.folder]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True, **self.user)
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.call("pg_isready", "-qh", self.folder, "-p", self.port)
            except PostgresError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise PostgresError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def __enter__(self):
        self.call("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        self.start()
        return self

    def __exit__(self, *_):
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self, how=signal.SIGINT):
        """Ends it: by default as it is meant to be ended."""
        self.process.send_signal(how)
        self.process.wait(60)

    def halt(self, halted):
        """Has all its processes stand still, or go on: a machine that is gone without a word."""
        told = signal.SIGSTOP if halted else signal.SIGCONT
        # The parent of all first: it then starts no others.
        os.kill(self.process.pid, told)
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for process in map(int, children):
            os.kill(process, told)

    def rows(self, query):
        """What a query gives, all of it as text."""
        out = self.call("psql", "-h", self.folder, "-p", self.port, "-U", "postgres", "-AtF", "\t", "-c", query)
        return [tuple(line.split("\t")) for line in out.splitlines()]
