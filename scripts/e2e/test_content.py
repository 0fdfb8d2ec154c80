"""What a project has recorded of what it asks and is answered: who can read it, who is told, and what proves it."""
import base64
import contextlib
import gzip
import json
import re
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request

import openai
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from lib.server import binary

CANARY = "The harvest of 1874 was good."
RECORDED = "x-rempart-recorded"


def run(*arguments, told=None, **options):
    done = subprocess.run([binary(), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False, input=told, **options)
    if done.returncode:
        raise AssertionError(done.stderr)
    return done.stdout


@pytest.fixture
def governed(own_server, tmp_path, request):
    """A server with a database, and its first key; a test adds options."""
    database = tmp_path / "rempart.db"
    more = getattr(request, "param", [])
    server = own_server("smollm2", "server.log", ["--database", str(database), "--served-model-name", "m", *more])
    key = re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)[0]
    return server, database, openai.OpenAI(base_url=f"{server.root}/v1", api_key=key, max_retries=0)


def ask(client, text, **options):
    """An answer with its headers."""
    raw = client.chat.completions.with_raw_response.create(
        model="m", max_tokens=8, messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}], **options)
    return raw.headers.get(RECORDED), raw.parse()


def until(client, told):
    """Asks until a running server knows what is recorded."""
    for _ in range(50):
        if ask(client, "Hello")[0] == told:
            return
        time.sleep(0.1)
    raise AssertionError(f"answers do not tell that {told} is recorded")


def begin(database, tmp_path, *options):
    key = tmp_path / "reader.key"
    public = run("content", "keygen", key).strip()
    run("content", "record", "--database", database, "--project", "default", "--reader", public, *options)
    return key


def opened(database, key, *options):
    sealed = run("content", "export", "--database", database, "--project", "default", *options)
    # Text of a model may hold other ends of lines (U+2028), which JSON leaves as they are.
    lines = run("content", "open", "--key", key, told=sealed).rstrip("\n").split("\n")
    return [json.loads(line) for line in lines if line]


def test_what_is_recorded_is_read_by_its_reader_alone(governed, tmp_path):
    server, database, client = governed
    assert ask(client, "before")[0] is None
    key = begin(database, tmp_path)
    until(client, "content")
    told, answer = ask(client, CANARY)
    assert told == "content"
    chunks = list(ask(client, CANARY + " streamed", stream=True)[1])
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    response = client.responses.create(model="m", input=CANARY + " response", max_output_tokens=4)
    with pytest.raises(openai.BadRequestError):
        ask(client, CANARY + " refused", temperature=99)
    records = {json.dumps(record["asked"]): record for record in opened(database, key)}
    found = [record for asked, record in records.items() if CANARY in asked]
    by_text = {record["asked"].get("input") or record["asked"]["messages"][-1]["content"]: record["answered"] for record in found}
    assert by_text[CANARY] == [{"content": answer.choices[0].message.content, "finish_reason": answer.choices[0].finish_reason}]
    assert by_text[CANARY + " streamed"][0]["content"] == streamed
    assert by_text[CANARY + " response"][0]["content"] == response.output_text
    assert by_text[CANARY + " refused"] == []
    assert not any("before" in asked for asked in records)
    # Neither the server's files nor its log have any of it, and another key opens nothing.
    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert CANARY.encode() not in file.read_bytes(), file
    assert CANARY not in server.log.read_text()
    other = tmp_path / "other.key"
    run("content", "keygen", other)
    with pytest.raises(AssertionError, match="are not sealed for this key"):
        opened(database, other)
    assert re.search(r"^\d+ records of what was asked", run("audit", "verify", "--database", database), re.MULTILINE)


@pytest.mark.parametrize(("governed", "tokens"), [([], 96), (["--drain-timeout-s", "1"], 8000)], indirect=["governed"])
def test_sigterm_loses_nothing_that_was_answered(governed, tokens, tmp_path):
    server, database, client = governed
    key = begin(database, tmp_path)
    until(client, "content")
    got, finish = [], None
    with contextlib.suppress(openai.APIError):
        chunks = client.completions.create(model="m", prompt=CANARY, max_tokens=tokens, stream=True, extra_body={"ignore_eos": True})
        for chunk in chunks:
            got.append(chunk.choices[0].text)
            finish = chunk.choices[0].finish_reason
            if len(got) == 4:
                server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    # Where the time for answers that run is over, what had been said of one is there.
    assert len(got) >= 4 and (finish == "length") == (tokens == 96)
    record = next(record for record in opened(database, key) if record["asked"].get("prompt") == CANARY)
    assert record["answered"][0]["content"].startswith("".join(got)) and record["answered"][0]["finish_reason"] == finish
    assert re.search(r"^\d+ records of what was asked", run("audit", "verify", "--database", database), re.MULTILINE)


def test_a_body_is_given_out_as_it_came(governed, tmp_path):
    server, database, client = governed
    key = begin(database, tmp_path)
    until(client, "content")
    headers = {"Authorization": f"Bearer {client.api_key}"}
    # Of names that come twice both are there, and a body that was not read is none.
    twice = '{"model": "m",\n "prompt": "x", "max_tokens": 1, "metadata": {"a": "first", "a": "second"}}'
    for kind in ("application/json", "text/plain"):
        request = urllib.request.Request(f"{server.root}/v1/completions", twice.encode(), headers | {"Content-Type": kind})
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=30).close()
    sealed = run("content", "export", "--database", database, "--project", "default")
    lines = run("content", "open", "--key", key, told=sealed).splitlines()
    assert f'"asked":{twice.replace(chr(10), " ")},"answered":' in lines[-2]
    assert json.loads(lines[-1])["asked"] is None


def test_records_are_opened_by_any_implementation_of_the_standard(governed, tmp_path):
    """RFC 9180, by somebody else's library."""
    _, database, client = governed
    key = begin(database, tmp_path)
    until(client, "content")
    _, answer = ask(client, CANARY)
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(key.read_text().split()[1]))
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
    lines = run("content", "export", "--database", database, "--project", "default").splitlines()
    record = json.loads(lines[-1])
    texts = []
    for part in ["asked", "answered"]:
        info = "\0".join(["rempart content 1", record["request"], part]).encode()
        texts.append(gzip.decompress(suite.decrypt(base64.b64decode(record[part]), private, info)))
    assert json.loads(texts[0])["messages"][1]["content"] == CANARY
    assert json.loads(texts[1])[0]["content"] == answer.choices[0].message.content


def test_a_prompt_is_found_by_its_fingerprint(governed, tmp_path):
    _, database, client = governed
    run("content", "record", "--database", database, "--project", "default", "--fingerprints", "--days", "3")
    until(client, "fingerprint")
    ask(client, CANARY)
    find = ["content", "find", "--database", database, "--project", "default"]
    assert len(run(*find, told=CANARY).splitlines()) == 2
    assert len(run(*find, told=CANARY + " ").splitlines()) == 1
    # What was asked is not there.
    with sqlite3.connect(database) as direct:
        rows = direct.execute("SELECT fingerprint, asked, answered FROM content").fetchall()
    direct.close()
    assert rows and all(len(fingerprint) == 64 and not asked and not answered for fingerprint, asked, answered in rows)


def test_a_recording_begins_and_ends_in_the_chain(governed, tmp_path):
    _, database, client = governed
    begin(database, tmp_path, "--fingerprints", "--days", "5", "--for", "10")
    until(client, "content, fingerprint")
    assert re.search(r"prompts, answers and fingerprints are recorded for 5 days each, until", run("content", "status", "--database", database))
    assert "prompts, answers and fingerprints are recorded for 5 days" in run("gdpr", "record", "--database", database)
    run("content", "stop", "--database", database, "--project", "default")
    until(client, None)
    assert "nothing is recorded" in run("content", "status", "--database", database)
    with pytest.raises(AssertionError, match="nothing of default is recorded"):
        run("content", "stop", "--database", database, "--project", "default")
    assert re.match(r"\d+ records of default are deleted", run("content", "delete", "--database", database, "--project", "default"))
    run("audit", "verify", "--database", database)
    tail = run("audit", "tail", "--database", database)
    for action in ["content.recording", "content.deleted"]:
        assert action in tail


def test_a_record_that_somebody_takes_out_is_missed(governed, tmp_path):
    _, database, client = governed
    begin(database, tmp_path)
    until(client, "content")
    with sqlite3.connect(database) as direct:
        direct.execute("DELETE FROM content")
    direct.close()
    with pytest.raises(AssertionError, match="is missing, and its time has not come"):
        run("audit", "verify", "--database", database)


@pytest.mark.parametrize(("options", "why"), [
    (["--reader", "00"], "64 hexadecimal digits"),
    # A point of low order: what is sealed for it anybody can open.
    (["--reader", "0" * 64], "64 hexadecimal digits"),
    (["--fingerprints", "--days", "367"], "367 is not in 1..=366"),
    (["--fingerprints", "--for", "0"], "0 is not in 1..=366"),
    ([], "--reader <KEY>"),
])
def test_a_wrong_recording_is_refused(governed, options, why):
    _, database, _ = governed
    with pytest.raises(AssertionError, match=re.escape(why)):
        run("content", "record", "--database", database, "--project", "default", *options)
