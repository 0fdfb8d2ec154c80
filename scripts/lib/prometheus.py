"""A Prometheus server in a folder of its own, on a port of loopback, and what is asked of it. Debian's package is unpacked and
not installed, so that no service begins to run."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

from .server import REPO, free_port

PACKAGE = "prometheus"
UNPACKED = REPO / ".cache" / "prometheus"
READY_S = 30
# What stands in an expression where a metric could, and is none.
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


class PrometheusError(Exception):
    """It is missing and can't be installed, does not start, or refuses what it is asked."""


def program(name):
    """The path of `prometheus` or `promtool`; None without one."""
    unpacked = UNPACKED / "usr" / "bin" / name
    return unpacked if unpacked.is_file() else shutil.which(name)


def install():
    """Unpacks the package, where there is none. Only root can bring apt's lists up to date."""
    if program("prometheus") and program("promtool"):
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise PrometheusError(f"Prometheus is missing: install it, with promtool (Debian, Ubuntu: apt-get install {PACKAGE})")
    UNPACKED.mkdir(parents=True, exist_ok=True)
    # As apt's own user it could not write there.
    download = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", PACKAGE]
    for command in ([["apt-get", "update", "-qq"]] if os.geteuid() == 0 else []) + [download]:
        if subprocess.run(command, cwd=UNPACKED, stdin=subprocess.DEVNULL, check=False).returncode:
            raise PrometheusError(f"`{' '.join(command)}` failed")
    package = max(UNPACKED.glob("*.deb"), key=os.path.getmtime)
    if subprocess.run(["dpkg-deb", "-x", package, UNPACKED], check=False).returncode or not program("prometheus"):
        raise PrometheusError(f"the package {package.name} can't be unpacked")
    package.unlink()


def promtool(*arguments):
    """What it says; an error where it finds one."""
    done = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise PrometheusError(f"promtool {' '.join(map(str, arguments))}: {done.stdout}{done.stderr}")
    return done.stdout


def selectors(expression):
    """The metrics that an expression reads, each with its matchers: without functions, ranges and offsets."""
    bare = re.sub(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expression)
    bare = re.sub(r"\boffset\s+\w+", " ", bare)
    found = re.findall(r'([a-zA-Z_:][\w:]*)(?![\w:])\s*(\{(?:[^"}]|"[^"]*")*\})?(?!\s*\()|"[^"]*"|\[[^\]]*\]|[\d.]+\w*', bare)
    return sorted({name + matchers for name, matchers in found if name and name.lower() not in WORDS})


class Prometheus:
    """Runs with a configuration; use it as a context manager."""

    def __init__(self, configuration):
        """`configuration`: the text of a prometheus.yml whose paths are absolute."""
        if program("prometheus") is None:
            raise PrometheusError("Prometheus is missing: scripts/test installs it")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="rempart-prometheus-"))
        self.file = self.folder / "prometheus.yml"
        self.file.write_text(configuration, encoding="utf-8")
        self.port = free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.process = None

    def __enter__(self):
        command = [program("prometheus"), f"--config.file={self.file}", f"--storage.tsdb.path={self.folder / 'data'}",
                   f"--web.listen-address=127.0.0.1:{self.port}"]
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            start_new_session=True)
        deadline = time.monotonic() + READY_S
        while True:
            try:
                with urllib.request.urlopen(self.root + "/-/ready", timeout=5):
                    return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    log = (self.folder / "log").read_text(encoding="utf-8")
                    self.__exit__()
                    raise PrometheusError(log) from None
                time.sleep(0.05)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)
        shutil.rmtree(self.folder, ignore_errors=True)

    def get(self, path, **query):
        """The data of an answer of its API."""
        try:
            with urllib.request.urlopen(f"{self.root}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{query}: {json.load(error)['error']}") from None

    def series(self, expression):
        """What an expression gives now: labels and value of each series that is a number."""
        result = self.get("query", query=expression)["result"]
        found = [(one["metric"], float(one["value"][1])) for one in result]
        return [(labels, value) for labels, value in found if value == value]

    def wait_for(self, expression, timeout_s=READY_S):
        """Returns once an expression gives something."""
        deadline = time.monotonic() + timeout_s
        while not self.series(expression):
            if time.monotonic() > deadline:
                errors = [target["lastError"] for target in self.get("targets")["activeTargets"]]
                raise PrometheusError(f"{expression} gives nothing after {timeout_s} s; targets say {errors}")
            time.sleep(0.1)

    def rules(self):
        """All rules, of all groups, as they were evaluated last."""
        return [rule for group in self.get("rules")["groups"] for rule in group["rules"]]
