"""`rempart support-bundle`: what who is to help gets of a server that is used, and that nothing confidential is among it."""
import hashlib
import json
import re
import secrets
import sqlite3
import subprocess
import tarfile
import urllib.request

import models
import pytest
from conftest import LOGS, READY_S
from lib import server
from lib.authority import Authority
from lib.known import when_it_is_known
from lib.postgres import Cluster

ANSWERED = {"server/version.json", "server/readyz.json", "server/models.json", "server/metrics.txt"}
ALWAYS = {"manifest.json", "config.toml", "doctor.jsonl", "models.json", "machine.json"}


def rempart(*arguments, status=0, **more):
    done = subprocess.run([server.binary(), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False, **more)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def unpacked(archive):
    """Files of an archive by their names below its one folder."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        folders = {member.name.split("/")[0] for member in members}
        assert len(folders) == 1 and folders.pop().startswith("rempart-support-")
        assert all(member.isfile() and member.mode == 0o600 for member in members)
        return {member.name.split("/", 1)[1]: tar.extractfile(member).read() for member in members}


def has_none(contents, sought):
    """None of the texts is in what was written under any name."""
    for name, content in contents.items():
        for text in sought:
            assert text not in content, f"{text} is in {name}"


@pytest.fixture
def used(current, tmp_path):
    """A server with TLS, keys, people and a record of content that somebody has used; and all that is nobody else's business."""
    current.close()
    authority = Authority(tmp_path)
    authority.sign("server")
    database, weights = tmp_path / "rempart.db", models.fetch("smollm2", models.default_directory())
    config = tmp_path / "rempart.toml"
    config.write_text(f'models = ["{weights}"]\ntls-certificate = "{tmp_path}/server.pem"\ntls-key = "{tmp_path}/server-key.pem"\n'
                      f'database = "{database}"\nlog-level = "trace"\nserved-model-name = "m"\n', encoding="utf-8")
    with server.Server(weights, LOGS / "support-bundle.log", authority=tmp_path / "ca.pem", arguments=["--config", config]) as running:
        running.wait_ready(READY_S)
        first = re.search(r"^sk-rempart-\S+$", running.log.read_text(), re.MULTILINE)[0]
        unique = {name: f"{name}{secrets.token_hex(6)}" for name in ("prompt", "name", "address", "project", "request", "label")}
        address = f"{unique['address']}@example.org"
        rempart("project", "create", "--database", database, unique["project"])
        person = rempart("user", "add", address, "--name", unique["name"], "--database", database).split()[0]
        rempart("user", "join", "--database", database, "--project", unique["project"], person)
        reader = rempart("content", "keygen", tmp_path / "reader.key").strip()
        rempart("content", "record", "--database", database, "--project", unique["project"], "--reader", reader)
        # Last of all: whoever lets this key in knows the rest.
        key = rempart("key", "create", "--database", database, "--project", unique["project"], "--user", address, unique["label"]).strip()
        running.key = key
        when_it_is_known(running.model_name)
        body = {"model": "m", "max_tokens": 24, "messages": [{"role": "user", "content": f"Who is {unique['prompt']}?"}], "user": address}
        request = urllib.request.Request(f"{running.root}/v1/chat/completions", json.dumps(body).encode(), {
            "Content-Type": "application/json", "Authorization": f"Bearer {key}", "x-request-id": unique["request"]})
        with urllib.request.urlopen(request, timeout=60, context=running.trust) as answer:
            said = json.load(answer)["choices"][0]["message"]["content"]
        assert unique["request"] in running.log.read_text()
        sought = [*unique.values(), first, first.split("-")[-1], key, key.split("-")[-1], said.strip()[:40]]
        sought += [row[0] for row in sqlite3.connect(database).execute("SELECT hash FROM api_key")]
        for file in ("server-key.pem", "ca-key.pem", "reader.key", "rempart.db.secret"):
            sought += [line for line in (tmp_path / file).read_bytes().decode(errors="replace").splitlines() if len(line) > 20]
        yield running, config, first, [text if isinstance(text, bytes) else text.encode() for text in sought if len(text) >= 8]


def test_a_bundle_has_what_helps_and_nothing_confidential(used, tmp_path):
    running, config, first, sought = used
    archive = tmp_path / "bundle.tar.gz"
    told = rempart("support-bundle", "--config", config, "--output", archive, "--base-url", f"{running.root}/v1",
                   "--ca-file", tmp_path / "ca.pem", "--log-file", running.log, "--pid", running.pid,
                   env={"OPENAI_API_KEY": first, "HF_TOKEN": "hf_verysecrettoken", "HOME": str(tmp_path)})
    assert archive.stat().st_mode & 0o777 == 0o600
    files = unpacked(archive)
    assert set(files) == ALWAYS | ANSWERED | {"database.json", "log.txt"}, told
    assert len(sought) > 14
    sought.append(b"hf_verysecrettoken")
    has_none({**files, "what is told": told.encode()}, sought)
    manifest = json.loads(files["manifest.json"])
    assert manifest["left_out"] == [] and manifest["rempart"]["version"] and len(manifest["rempart"]["sha256"]) == 64
    assert {file["name"]: (file["bytes"], file["sha256"]) for file in manifest["files"]} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items() if name != "manifest.json"}
    for name in files:
        assert re.search(rf"^{re.escape(name)} +\d+ bytes  \w", told, re.MULTILINE), told
    assert "Look through it before you send it" in told
    assert "# database is set, and not shown  # file" in files["config.toml"].decode()
    looked_at = {json.loads(line)["what"] for line in files["doctor.jsonl"].splitlines()}
    assert {"memory", "processor", "certificate", "configuration"} <= looked_at
    assert json.loads(files["machine.json"])["process"]["memory"]["VmRSS"]
    assert json.loads(files["models.json"])["served"][0]["bytes"] > 10**7
    rows = json.loads(files["database.json"])["rows"]
    assert (rows["api_key"], rows["person"], rows["content"]) == (2, 1, 1), rows
    assert json.loads(files["server/readyz.json"])["status"] == "ready"
    assert b'vllm:generation_tokens_total{model_name="m",' in files["server/metrics.txt"]
    log = files["log.txt"].decode()
    assert "generation ended" in log and "[client's]" in log and "2 others were left out" in log.splitlines()[0], log[:2000]


def test_a_bundle_is_made_of_a_server_that_does_not_start(tmp_path):
    config = tmp_path / "rempart.toml"
    config.write_text('models = ["no/such/model"]\ndatabase = "postgres://rempart:hunter2hunter2@127.0.0.1:9/rempart"\n'
                      'oidc-issuer = "https://anna:hunter3@login.example"\n', encoding="utf-8")
    archive = tmp_path / "bundle.tar.gz"
    asked = ("support-bundle", "--config", config, "--output", archive, "--base-url", "http://127.0.0.1:9/v1", "--log-file", "-")
    line = '{"timestamp":"2026-11-28T09:55:59.1Z","level":"ERROR","message":"no model","target":"rempart"}\n'
    told = rempart(*asked, input=f"Bearer abcdefgh\n{line}", cwd=tmp_path)
    files = unpacked(archive)
    assert set(files) == ALWAYS | {"log.txt"}
    left_out = {entry["name"]: entry["why"] for entry in json.loads(files["manifest.json"])["left_out"]}
    assert set(left_out) == {"database.json", *ANSWERED}
    assert "is --base-url right?" in left_out["server/metrics.txt"] and "127.0.0.1:9/rempart" in left_out["database.json"]
    assert files["log.txt"].decode().splitlines()[1:] == [line.strip()]
    has_none({**files, "what is told": told.encode()}, [b"hunter2", b"hunter3", b"anna", b"abcdefgh"])
    # A file that is wrong is told of, and all else with it.
    assert "is there already: name another file with --output" in rempart(*asked, status=1, input="", cwd=tmp_path)
    archive.unlink()
    config.write_text('passwort = "hunter2"\n', encoding="utf-8")
    told = rempart(*asked, input="", cwd=tmp_path)
    assert re.search(r"^config.toml +left out +.*passwort is no option", told, re.MULTILINE), told
    assert set(unpacked(archive)) == ALWAYS - {"config.toml"} | {"log.txt"}


def test_a_bundle_counts_the_rows_of_postgresql(own_server, tmp_path):
    project, name, role = (f"{word}{secrets.token_hex(6)}" for word in ("project", "name", "role"))
    with Cluster() as cluster:
        database = ["--database", cluster.url, "--secret", str(tmp_path / "secret")]
        running = own_server("smollm2", "support-bundle-postgresql.log", database)
        rempart("project", "create", *database, project)
        rempart("user", "add", f"{name}@example.org", "--name", name, *database)
        # Who makes the bundle may be a user that reads not all.
        cluster.rows(f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}; "
                     f"REVOKE ALL ON api_key FROM {role}")
        archive = tmp_path / "bundle.tar.gz"
        reading = cluster.url.replace("//postgres@", f"//{role}@")
        told = rempart("support-bundle", "--output", archive, "--", "--database", reading)
        running.stop()
    files = unpacked(archive)
    assert "database.json" in files, told
    counted = json.loads(files["database.json"])
    assert re.fullmatch(r"PostgreSQL \d+.*", counted["program"])
    assert counted["version"] == counted["version_of_this_program"]
    rows = counted["rows"]
    assert (rows["project"], rows["person"]) == (2, 1), rows
    assert [table for table, count in rows.items() if count is None] == ["api_key"], rows
    has_none({**files, "what is told": told.encode()}, [project.encode(), name.encode(), role.encode()])


@pytest.mark.parametrize(("options", "why"), [
    (["--base-url", "localhost"], "--base-url"), (["--log-lines", "5"], "--log-file <FILE>"), (["--outptu", "x"], "--outptu"),
    (["--timeout-s", "0"], "--timeout-s 0: must be more than 0"), (["--output", "no/such/folder/x"], "--output")])
def test_wrong_options_are_refused(options, why, tmp_path):
    done = subprocess.run([server.binary(), "support-bundle", *options], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode and why in done.stderr
    assert not list(tmp_path.iterdir())
