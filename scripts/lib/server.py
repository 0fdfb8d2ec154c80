"""Starts the built server on loopback, waits until it is ready, and ends it."""
import json
import os
import pathlib
import re
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request

REPO = pathlib.Path(__file__).resolve().parents[2]


class ServerError(Exception):
    """The server could not be built, did not start, or did not end."""


def end_on_sigterm():
    """Makes SIGTERM the same as Ctrl-C for this script, so that the server that it started is stopped too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def release_folder():
    """Where release builds are, wherever cargo is told to build."""
    command = ["cargo", "metadata", "--no-deps", "--format-version", "1", "--offline"]
    out = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    if out.returncode != 0:
        raise ServerError(f"cargo metadata failed: {out.stderr.strip()}")
    return pathlib.Path(json.loads(out.stdout)["target_directory"]) / "release"


def binary():
    """Path of the release binary, unless REMPART_BINARY names another."""
    found = os.environ.get("REMPART_BINARY")
    return pathlib.Path(found) if found else release_folder() / "rempart"


def free_port(preferred=0):
    """A port of 127.0.0.1 that nobody listens on: the preferred one if it is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ServerError("no free port on 127.0.0.1")


class Server:
    """One `rempart serve` process; use it as a context manager, so that it never outlives the caller."""

    ready_path = "/readyz"

    def __init__(self, model, log, port=0, arguments=(), executable=None, authority=None, more=None):
        """`authority` is the file of the certificate that has signed the server's own, where there is TLS; `more` adds to the
        environment."""
        self.port = free_port(port)
        self.trust = ssl.create_default_context(cafile=authority) if authority else None
        self.root = f"{'https' if authority else 'http'}://127.0.0.1:{self.port}"
        self.log = pathlib.Path(log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.command = [str(part) for part in (executable or binary(), *self.options(model), *arguments)]
        self.more = more or {}
        self.process, self.started = None, None
        # What `get` and `post` show, where keys are asked for.
        self.key = None

    def options(self, model):
        """What the executable needs to serve this model here."""
        return ["serve", model, "--bind", f"127.0.0.1:{self.port}"]

    def __enter__(self):
        # A session of its own: Ctrl-C in the terminal reaches the caller alone, who then asks the server to drain.
        with self.log.open("wb") as log:
            self.started = time.perf_counter()
            try:
                self.process = subprocess.Popen(self.command, env=os.environ | self.more, stdin=subprocess.DEVNULL, stdout=log,
                                                stderr=log, start_new_session=True)
            except OSError as error:
                raise ServerError(f"{self.command[0]} cannot be started ({error.strerror}); "
                                  "cargo build --release --package rempart makes it") from None
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def pid(self):
        return self.process.pid

    def wait_ready(self, timeout_s=120.0, waiting=lambda: None):
        """Returns once /readyz is green; calls `waiting` between two looks."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServerError(f"the server ended with status {self.process.returncode}:\n{self.log_tail()}")
            try:
                with urllib.request.urlopen(self.root + self.ready_path, timeout=5, context=self.trust) as answer:
                    if answer.status == 200:
                        return
            except (OSError, urllib.error.URLError):
                pass
            waiting()
            time.sleep(0.1)
        raise ServerError(f"the server was not ready after {timeout_s:.0f} s:\n{self.log_tail()}")

    def log_tail(self, lines=20):
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def shown(self):
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def get(self, path, timeout_s=10.0):
        """Body of a GET as text."""
        request = urllib.request.Request(self.root + path, headers=self.shown())
        with urllib.request.urlopen(request, timeout=timeout_s, context=self.trust) as answer:
            return answer.read().decode()

    def post(self, path, body, timeout_s=600.0):
        """JSON answer of a POST; an HTTP error raises with the server's own words."""
        request = urllib.request.Request(self.root + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"} | self.shown())
        try:
            with urllib.request.urlopen(request, timeout=timeout_s, context=self.trust) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ServerError(f"POST {path}: {error.code} {error.read().decode(errors='replace')}") from None

    def model_name(self):
        """The name that clients ask for."""
        return json.loads(self.get("/v1/models"))["data"][0]["id"]

    def metric(self, name):
        """Sum of a metric over its labels; None when there is no such metric."""
        pattern = re.compile(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", re.MULTILINE)
        values = [float(value) for value in pattern.findall(self.get("/metrics"))]
        return sum(values) if values else None

    def idle_gauges(self):
        """What must be 0 when nobody asks for anything: running, waiting, share of the KV cache in use."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return {name: self.metric(name) for name in names}

    def wait_idle(self, timeout_s=20.0):
        """Waits until the gauges are 0 and returns them; returns what they are when the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            gauges = self.idle_gauges()
            if all(value == 0 for value in gauges.values()) or time.monotonic() > deadline:
                return gauges
            time.sleep(0.1)

    def resident_bytes(self):
        """Memory that the process holds now."""
        with open(f"/proc/{self.pid}/status", encoding="ascii") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise ServerError("the process shows no resident memory")

    def stop(self, timeout_s=40.0):
        """SIGTERM, then SIGKILL for one that doesn't end; returns the exit status."""
        if self.process is None or self.process.poll() is not None:
            return None if self.process is None else self.process.returncode
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ServerError(f"the server did not end within {timeout_s:.0f} s of SIGTERM") from None
