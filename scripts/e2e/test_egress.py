"""Zero egress: what the kernel refuses, that the server does all it did before, and that it never tries to get out."""
import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request

import models
import openai
import pytest
from conftest import LOGS, READY_S
from lib import server as servers
from lib.postgres import Cluster
from test_tls import Authority

MESSAGES = [{"role": "user", "content": "Hi"}]
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "size": {"type": "integer"}},
          "required": ["colour", "size"], "additionalProperties": False}
PLACES = ("nothing", "file", "socket", "port")
# Of all processors; linux/seccomp.h and linux/prctl.h for what follows.
LANDLOCK_CREATE_RULESET = 444
# The lower the better, from 0 to 10; systemd calls it OK up to 4.9.
EXPOSURE_MAX = 1.5


def rempart(*arguments, **options):
    """Runs a command to its end."""
    return subprocess.run([servers.binary(), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False,
                          **options)


@contextlib.contextmanager
def database(place, folder):
    """The options of a server whose database is there."""
    if place == "nothing":
        yield []
    elif place == "file":
        yield ["--database", folder / "rempart.db"]
    else:
        with Cluster(servers.free_port()) as cluster:
            yield ["--database", cluster.url if place == "socket" else cluster.tcp_url]


@dataclasses.dataclass
class Confined:
    """A server that was started with --zero-egress, and what speaks to it."""

    server: servers.Server
    client: openai.OpenAI
    admin: str
    key: str
    options: list

    def administer(self, model, action):
        """The status, once it is done."""
        request = urllib.request.Request(f"http://{self.admin}/admin/models/{model}/{action}", b"",
                                         {"Authorization": f"Bearer {self.key}"})
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


def first_key(server):
    """The key that a new database is opened with; a placeholder without one."""
    found = re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)
    return found[0] if found else "none"


@pytest.fixture
def confined(own_server, tmp_path):
    with contextlib.ExitStack() as stack:
        def begin(place):
            options = stack.enter_context(database(place, tmp_path))
            admin = f"127.0.0.1:{servers.free_port()}"
            store = tmp_path / "store" / "encoder"
            shutil.copytree(models.fetch("minilm", models.default_directory()), store)
            server = own_server("smollm2", f"egress-{place}.log", [
                "--zero-egress", "--admin-bind", admin, "--models-dir", store.parent, *options])
            key = first_key(server)
            client = openai.OpenAI(base_url=f"{server.root}/v1", api_key=key, max_retries=0, timeout=120)
            return Confined(server, client, admin, key, options)
        yield begin


@pytest.mark.parametrize("place", PLACES)
def test_it_serves_as_before(confined, place):
    """Chats, streams, formats that are tried in a child, models that come and go, keys, and its own figures."""
    running = confined(place)
    client = running.client
    model = client.models.list().data[0].id
    assert client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4).usage.completion_tokens
    pieces = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, stream=True)
    assert list(pieces)[-1].choices[0].finish_reason
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=256, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}})
    assert json.loads(answer.choices[0].message.content)["colour"] in ("red", "blue")
    assert running.administer("encoder", "load") == 200
    assert client.embeddings.create(model="encoder", input="text").data[0].embedding
    assert running.administer("encoder", "unload") == 200
    assert json.loads(running.server.get("/readyz")) == {"status": "ready", "zero_egress": True}
    if place != "nothing":
        made = rempart("key", "create", *running.options, "laptop")
        assert made.returncode == 0, made.stderr
        with_it = client.with_options(api_key=made.stdout.strip())
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(openai.AuthenticationError):
                assert with_it.chat.completions.create(model=model, messages=MESSAGES, max_tokens=2)
                break
            assert time.monotonic() < deadline
            time.sleep(0.2)
        rows = rempart("audit", "tail", *running.options).stdout
        assert "server.started" in rows and "server.confined" in rows and "seccomp" in rows, rows
    page = client.with_options(base_url=running.server.root).get("/metrics", cast_to=str)
    assert re.search(r"^rempart_zero_egress 1$", page, re.MULTILINE)
    assert "the kernel refuses this process every connection to elsewhere" in running.server.log.read_text()
    proof = rempart("doctor", "--egress", "--pid", running.server.pid, *running.options)
    assert proof.returncode == 0, proof.stdout + proof.stderr
    counts = re.search(rf"^process {running.server.pid}: (\d+) of (\d+) threads", proof.stdout, re.MULTILINE)
    assert counts[1] == counts[2] != "1", proof.stdout
    assert running.server.stop() == 0


@pytest.mark.parametrize("place", PLACES)
def test_the_doctor_finds_every_way_out_shut(place):
    """One line for each attempt, and what stopped it."""
    url = {"nothing": [], "file": ["rempart.db"], "socket": ["postgres://a@localhost/a?host=/run"],
           "port": ["postgres://a@localhost:6543/a"]}[place]
    done = rempart("doctor", "--egress", *(f"--database={one}" for one in url))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "NOT STOPPED" not in done.stdout
    stopped = re.findall(r"^stopped by (\w+).*: (.*)$", done.stdout, re.MULTILINE)
    assert f"all {len(stopped)} attempts were stopped" in done.stdout and len(stopped) > 20
    for wall, attempt in (("Landlock", "TCP to 192.0.2.1:443, without seccomp"),
                          ("Landlock" if place in ("port",) else "seccomp", "TCP to 192.0.2.1:443 "),
                          ("seccomp", "UDP over IPv4"), ("seccomp", "io_uring"), ("seccomp", "raw IPv4")):
        assert any(by == wall and what.startswith(attempt) for by, what in stopped), (wall, attempt, done.stdout)


def test_a_process_that_is_free_is_told():
    done = rempart("doctor", "--egress", "--pid", os.getpid())
    assert done.returncode != 0
    assert re.search(rf"^process {os.getpid()}: 0 of \d+ threads", done.stdout, re.MULTILINE)


def without_landlock():
    """For a child: a filter that answers as a kernel does that has no Landlock."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Load the number of the call; is it this one; ENOSYS, or go on.
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, LANDLOCK_CREATE_RULESET), (0x06, 0, 0, 0x00050000 | errno.ENOSYS),
            (0x06, 0, 0, 0x7FFF0000)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(filters)))
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0


@pytest.mark.parametrize("database", ["postgres://a@127.0.0.1:6543/a", "postgres://a@localhost/a?host=/run"])
def test_a_kernel_without_landlock_ends_the_start_where_connections_must_be_told_apart(tmp_path, database):
    done = rempart("serve", tmp_path / "model", "--zero-egress", "--bind", "127.0.0.1:0", "--database", database,
                   preexec_fn=without_landlock)
    assert done.returncode != 0
    assert "--zero-egress: the kernel can't hold TCP to ports: it takes Linux 6.7 or newer" in done.stderr
    proof = rempart("doctor", "--egress", "--database", database, preexec_fn=without_landlock)
    assert proof.returncode != 0 and "all " not in proof.stdout


def test_a_kernel_without_landlock_confines_who_connects_to_nobody(tmp_path):
    """As Debian 12's does, where the package is installed."""
    proof = rempart("doctor", "--egress", preexec_fn=without_landlock)
    assert proof.returncode == 0, proof.stdout + proof.stderr
    assert "confined by seccomp alone" in proof.stdout
    stopped = re.findall(r"^stopped by seccomp.*: (.*)$", proof.stdout, re.MULTILINE)
    assert len(stopped) > 15 and not re.search("NOT STOPPED|by Landlock", proof.stdout)
    done = rempart("serve", tmp_path / "model", "--zero-egress", "--bind", "127.0.0.1:0", preexec_fn=without_landlock)
    assert "by=seccomp alone" in done.stderr and "model: No such file" in done.stderr, done.stderr


def test_a_database_without_an_address_ends_the_start(tmp_path):
    done = rempart("serve", tmp_path / "model", "--zero-egress", "--bind", "127.0.0.1:0",
                   "--database", "postgres://a:hunter2@db.invalid/a")
    assert done.returncode != 0
    assert "db.invalid has no address without DNS" in done.stderr and "hunter2" not in done.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_certificates_are_read_again(own_server, tmp_path):
    authority = Authority(tmp_path)
    authority.sign("server")
    model = models.fetch("smollm2", models.default_directory())
    arguments = ["--zero-egress", "--tls-certificate", tmp_path / "server.pem", "--tls-key", tmp_path / "server-key.pem"]
    with servers.Server(model, LOGS / "egress-tls.log", arguments=arguments, authority=tmp_path / "ca.pem") as server:
        server.wait_ready(READY_S)
        authority.sign("server")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while "the certificate that was read again" not in server.log.read_text():
            assert time.monotonic() < deadline, server.log_tail()
            time.sleep(0.05)
        assert json.loads(server.get("/readyz"))["zero_egress"] is True


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="a network of one's own needs root")
@pytest.mark.parametrize("options", [[], ["--zero-egress"]], ids=["open", "confined"])
def test_a_machine_without_a_network(current, options):
    current.close()
    if subprocess.run(["unshare", "-n", "true"], check=False).returncode != 0:
        pytest.skip("no network of one's own can be made here")
    model, log = models.fetch("smollm2", models.default_directory()), LOGS / "alone.log"
    environment = os.environ | {"REMPART_BINARY": str(servers.binary())}
    done = subprocess.run(["unshare", "-n", sys.executable, pathlib.Path(__file__).with_name("alone.py"), model, log, *options],
                          capture_output=True, text=True, timeout=READY_S, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["answer"]["usage"]["completion_tokens"] > 0
    assert said["ready"].get("zero_egress", False) == bool(options)


class Traced(servers.Server):
    """A server whose calls of the network are written down; its tracer is not its parent, so that signals reach it."""

    def options(self, model):
        return ["-D", "-f", "-qq", "-e", "trace=%network", "-o", self.log.with_suffix(".strace"),
                servers.binary(), *super().options(model)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_tried_even_unconfined(current, tmp_path, place):
    """Without --zero-egress: what the server would do if it could."""
    current.close()
    model = models.fetch("smollm2", models.default_directory())
    log = LOGS / f"egress-traced-{place}.log"
    with database(place, tmp_path) as options, Traced(model, log, arguments=options, executable="strace") as server:
        server.wait_ready(READY_S)
        client = openai.OpenAI(base_url=f"{server.root}/v1", api_key=first_key(server), max_retries=0)
        name = client.models.list().data[0].id
        client.chat.completions.create(
            model=name, messages=MESSAGES, max_tokens=16, response_format={"type": "json_object"})
        server.stop()
        calls = log.with_suffix(".strace").read_text()
    assert re.search(r"^\d+ +accept4\(", calls, re.MULTILINE), "the tracer saw nothing"
    for line in calls.splitlines():
        for address in re.findall(r'(?:inet_addr\(|inet_pton\(AF_INET6, )"([^"]+)"', line):
            assert address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"), line
        kinds = re.match(r"\d+ +socket\((\w+), (\w+)", line)
        assert not kinds or (kinds[1] == "AF_UNIX" or kinds[2] == "SOCK_STREAM" or place == "port"), line
    connected = re.findall(r"^\d+ +connect\(\d+, \{sa_family=(\w+)", calls, re.MULTILINE)
    allowed = {"nothing": set(), "file": set(), "socket": {"AF_UNIX"}, "port": {"AF_INET", "AF_INET6", "AF_UNIX"}}[place]
    assert set(connected) <= allowed, sorted(set(connected))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_of_systemd_is_tight():
    unit = servers.REPO / "deploy" / "rempart.service"
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", unit], capture_output=True, text=True,
                          timeout=60, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd can't judge a unit that is not installed")
    score = re.search(r"Overall exposure level for rempart\.service: ([\d.]+)", done.stdout)
    assert score and float(score[1]) <= EXPOSURE_MAX, done.stdout + done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="one platform's tree is enough")
def test_one_crate_alone_has_an_http_client():
    """What is built for the server has none but that of `rempart pull`."""
    for package in ("reqwest", "ureq", "hf-hub"):
        done = subprocess.run(["cargo", "tree", "--offline", "--invert", package, "--package", "rempart", "--edges", "normal",
                               "--prefix", "none"], cwd=servers.REPO, capture_output=True, text=True, timeout=60, check=False)
        own = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("rempart")}
        assert own <= {"rempart-hub", "rempart"}, done.stdout
        assert not own or "rempart-hub" in own
