"""The programs that are checked, and what Linux tells of a process."""
import dataclasses
import os
import pathlib
import re
import subprocess

from lib import server

LOGS = server.REPO / ".cache" / "reliability"
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Programs:
    """`rempart` itself; the server over a model that computes nothing; and a file with a real model."""

    rempart: pathlib.Path
    hollow: pathlib.Path
    model: pathlib.Path | None = None


def built():
    """Builds both programs, as they are released, and says where they are."""
    command = ["cargo", "build", "--release", "--locked", "--package", "rempart", "--bins", "--example", "hollow"]
    if subprocess.run(command, cwd=server.REPO, check=False).returncode != 0:
        raise server.ServerError(f"{' '.join(command)} failed")
    return Programs(server.release_folder() / "rempart", server.release_folder() / "examples" / "hollow")


class Hollow(server.Server):
    """`server/examples/hollow.rs`: a step takes a set time, and each answer is as long as was asked."""

    def __init__(self, executable, step_ms, log, arguments=()):
        self.step_ms = step_ms
        super().__init__("hollow", LOGS / log, arguments=arguments, executable=executable)

    def options(self, model):
        return [self.step_ms, "--bind", f"127.0.0.1:{self.port}"]


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a process holds at one time."""

    resident_bytes: int
    files: int
    threads: int


def sample(running):
    """A sample of a server that runs."""
    try:
        with open(f"/proc/{running.pid}/status", encoding="ascii", errors="replace") as file:
            text = file.read()
        resident, threads = (int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]) for name in ("VmRSS", "Threads"))
        return Sample(resident * 1024, len(os.listdir(f"/proc/{running.pid}/fd")), threads)
    except (OSError, TypeError):
        raise server.ServerError(f"the server has ended:\n{running.log_tail()}") from None
