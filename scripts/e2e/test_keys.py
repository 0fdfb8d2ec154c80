"""A server with a database of keys, as an operator and the official clients meet it."""
import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess
import time
import urllib.error
import urllib.request

import anthropic
import openai
import pytest
from lib.known import when_it_is_known
from lib.server import binary, free_port

MESSAGES = [{"role": "user", "content": "Hi"}]
# For what takes moments, on a machine that stops for seconds.
SOON_S = 30


def rempart(*arguments):
    """Runs a command beside the server; what it said."""
    done = subprocess.run([binary(), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclasses.dataclass
class Governed:
    """A server that asks for keys, the place of its database, its first key and its model."""

    server: object
    database: str
    first: str
    model: str


@pytest.fixture
def governed(own_server, tmp_path):
    database = str(tmp_path / "rempart.db")
    server = own_server("smollm2", "keys.log", ["--database", database, "--log-level", "trace"])
    first = re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)[0]
    client = openai.OpenAI(base_url=f"{server.root}/v1", api_key=first, max_retries=0)
    return Governed(server, database, first, client.models.list().data[0].id)


def with_key(governed, key):
    return openai.OpenAI(base_url=f"{governed.server.root}/v1", api_key=key, max_retries=0)


def chat(client, model):
    return client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4)


def refused(client, model):
    """Whether the client's key is refused soon."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        try:
            chat(client, model)
        except openai.AuthenticationError as error:
            # The answer that was being made just then ends with the key.
            assert error.code in ("invalid_api_key", "key_ended")
            return True
        time.sleep(0.1)
    return False


def test_keys_come_and_go_beside_a_running_server(governed):
    database, first = governed.database, governed.first
    with pytest.raises(openai.AuthenticationError):
        chat(with_key(governed, "sk-anything"), governed.model)
    assert chat(with_key(governed, first), governed.model).usage.completion_tokens > 0
    rempart("project", "create", "--database", database, "--model", governed.model, "sales")
    key = rempart("key", "create", "--database", database, "--project", "sales", "laptop").strip()
    client = with_key(governed, key)
    assert when_it_is_known(lambda: chat(client, governed.model)).choices
    assert [model.id for model in client.models.list()] == [governed.model]
    message = anthropic.Anthropic(base_url=governed.server.root, api_key=key, max_retries=0).messages.create(
        model=governed.model, messages=MESSAGES, max_tokens=4)
    assert message.usage.output_tokens > 0
    identifier = key.removeprefix("sk-rempart-").split("-")[0]
    assert "laptop" in rempart("key", "list", "--database", database)
    rempart("key", "revoke", "--database", database, identifier)
    assert refused(client, governed.model)
    # The chain tells all of it, without a secret.
    rows = rempart("audit", "tail", "--database", database)
    for action in ("server.started", "project.created", "api_key.created", "api_key.deleted"):
        assert action in rows, rows
    proof = rempart("audit", "verify", "--database", database)
    noted = re.search(r"^last: (\S+)$", proof, re.MULTILINE)[1]
    assert rempart("audit", "verify", "--database", database, "--contains", noted) == proof
    secret = key.rsplit("-", 1)[1][:20]
    assert secret not in rows


def long_stream(client, model):
    """A stream that goes on for much longer than a change may take to be noticed."""
    return client.chat.completions.create(model=model, messages=MESSAGES, stream=True, max_tokens=1500,
                                          extra_body={"ignore_eos": True, "min_tokens": 1500})


def test_an_answer_that_runs_ends_with_its_key(governed):
    database = governed.database
    rempart("project", "create", "--database", database, "sales")
    keys = [rempart("key", "create", "--database", database, "--project", "sales", f"laptop{at}").strip() for at in range(2)]
    ended, other = (with_key(governed, key) for key in keys)
    for client in ended, other:
        when_it_is_known(client.models.list)
    streams = [long_stream(client, governed.model) for client in (ended, other)]
    for stream in streams:
        next(stream)
    rempart("key", "revoke", "--database", database, keys[0].removeprefix("sk-rempart-").split("-")[0])
    began = time.monotonic()
    with pytest.raises(openai.APIError) as cut:
        for _ in streams[0]:
            pass
    noticed = [time.monotonic() - began]
    assert cut.value.code == "key_ended"
    assert next(streams[1]).choices, "another's goes on"
    rempart("project", "archive", "--database", database, "sales")
    began = time.monotonic()
    with pytest.raises(openai.APIError) as cut:
        for _ in streams[1]:
            pass
    noticed.append(time.monotonic() - began)
    assert cut.value.code == "key_ended"
    # Two seconds, and a little more on a busy machine, which may stop in one of them.
    assert min(noticed) < 4 and max(noticed) < 14, noticed
    assert "key_ended" not in rempart("audit", "tail", "--database", database)


def test_a_secret_is_found_nowhere(governed):
    database, first = governed.database, governed.first
    assert chat(with_key(governed, first), governed.model).choices
    with pytest.raises(openai.AuthenticationError) as caught:
        chat(with_key(governed, first[:-1] + ("a" if first[-1] != "a" else "b")), governed.model)
    secret = first.rsplit("-", 1)[1][:20]
    assert secret not in f"{caught.value} {caught.value.response.text}"
    metrics = urllib.request.Request(f"{governed.server.root}/metrics", headers={"Authorization": f"Bearer {first}"})
    with urllib.request.urlopen(metrics, timeout=10) as answer:
        page = answer.read().decode()
    assert "rempart_access_denied_total" in page and secret not in page
    assert governed.server.log.read_text().count(secret) == 1, "once, when it was made"
    for file in pathlib.Path(database).parent.glob("rempart.db*"):
        assert secret.encode() not in file.read_bytes(), file


def test_a_log_that_cannot_be_written_ends_nothing(own_server):
    """The disk of the log is full: every write to it fails."""
    server = own_server("smollm2", "/dev/full")
    client = openai.OpenAI(base_url=f"{server.root}/v1", api_key="any", max_retries=0)
    model = client.models.list().data[0].id
    for _ in range(3):
        assert chat(client, model).choices
    assert server.process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
def test_a_full_disk_is_got_over(own_server, tmp_path):
    """Nothing is done that can't be recorded, and once there is space again all is as before."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("no small file system can be mounted here")
    try:
        port = free_port()
        database = str(disk / "rempart.db")
        server = own_server("smollm2", "full.log", ["--database", database, "--admin-bind", f"127.0.0.1:{port}"])
        first = re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)[0]
        model = openai.OpenAI(base_url=f"{server.root}/v1", api_key=first).models.list().data[0].id

        def ask():
            request = urllib.request.Request(f"http://127.0.0.1:{port}/admin/models/{model}/load", b"",
                                             {"Authorization": f"Bearer {first}"})
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return answer.status
            except urllib.error.HTTPError as error:
                return error.code
        assert ask() == 200
        with open(disk / "fill", "wb", buffering=0) as fill, contextlib.suppress(OSError):
            while True:
                fill.write(bytes(1024))
        statuses = [ask() for _ in range(12)]
        assert 503 in statuses, statuses
        # Answers that are made already wait for their rows at most two seconds; from then on none begins.
        client = openai.OpenAI(base_url=f"{server.root}/v1", api_key=first, max_retries=0, timeout=30)
        refusals = []
        for _ in range(40):
            began = time.monotonic()
            try:
                chat(client, model)
            except openai.APIStatusError as error:
                assert error.status_code == 503
                refusals.append(time.monotonic() - began)
            if len(refusals) == 3:
                break
        else:
            pytest.fail("a full disk took the rows")
        # The machine itself may stop in one.
        assert sorted(refusals)[1] < 2 and max(refusals) < 12, refusals
        assert "and each is what was written" in rempart("audit", "verify", "--database", database)
        (disk / "fill").unlink()
        assert [ask() for _ in range(4)] == [200] * 4
        deadline = time.monotonic() + SOON_S
        while True:
            try:
                assert chat(client, model).choices
                break
            except openai.APIStatusError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        server.stop()
        assert "and each is what was written" in rempart("audit", "verify", "--database", database)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
