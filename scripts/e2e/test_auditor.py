"""What docs/audit.md answers: every command of that page, as it stands there, on a server that has a history."""
import json
import os
import pathlib
import re
import shlex
import subprocess

import openai
import pytest
from lib.known import when_it_is_known
from lib.server import binary
from test_administration import chat, client_of, rempart

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "audit.md"
WORM = "/mnt/worm/checkpoints"


def commands():
    """The questions of the page, each with its commands."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {question: re.search(r"```sh\n(.*?)```", text, re.DOTALL)[1].splitlines()
            for question, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.fixture(scope="module")
def audited(tmp_path_factory, module_server):
    """A company's year in a few seconds: people come and leave, keys are refused, a copy is tried."""
    folder = tmp_path_factory.mktemp("audited")
    place, checkpoints = folder / "rempart.db", folder / "checkpoints"
    server = module_server("smollm2", "auditor.log", [
        "--database", str(place), "--served-model-name", "m", "--audit-checkpoints", str(checkpoints),
        "--audit-checkpoint-interval-s", "1", "--zero-egress"])
    database = ["--database", str(place)]
    owner = client_of(server, re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)[0])
    clients = {}
    told = {"checkpoints": str(checkpoints), "place": str(place)}
    for name in ("anna", "bert"):
        told[name] = rempart("user", "add", *database, f"{name}@example.org", "--name", name.title()).split()[0]
        rempart("user", "join", *database, "--project", "default", told[name])
        key = rempart("key", "create", *database, "--project", "default", "--user", told[name], "laptop").strip()
        told[f"{name}'s key"] = key.split("-")[2]
        clients[name] = client_of(server, key)
        when_it_is_known(lambda client=clients[name]: chat(client))
    rempart("user", "remove", *database, told["bert"])
    when_it_is_refused(clients["bert"])
    reader = rempart("content", "keygen", str(folder / "reader.key")).strip()
    rempart("content", "record", *database, "--project", "default", "--reader", reader)
    rempart("content", "stop", *database, "--project", "default")
    rempart("limit", "set", *database, "--project", "default", "parallel=64")
    rempart("retention", "set", *database, "people=30")
    rempart("user", "add", *database, "carl@example.org", "--name", "Carl")
    rempart("gdpr", "erase", *database, "carl@example.org")
    copy = folder / "copy.jsonl"
    rempart("backup", *database, str(copy))
    rempart("restore", "--test", *database, str(copy))
    assert chat(owner).choices
    server.stop()
    return told


def when_it_is_refused(client):
    """Until the key itself is: an answer that was being made when it ended says so otherwise."""
    for _ in range(200):
        try:
            chat(client)
        except openai.AuthenticationError as error:
            if error.code == "invalid_api_key":
                return
    raise AssertionError("the key of somebody who left still opens")


def run(audited, command):
    name, *arguments = shlex.split(command.replace(WORM, audited["checkpoints"]))
    assert name == "rempart"
    done = subprocess.run([binary(), *arguments], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "REMPART_DATABASE": audited["place"]})
    assert done.returncode == 0, (command, done.stderr, done.stdout)
    return done.stdout


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def rights(audited, keys, people):
    lines = {line.split()[0]: line for line in keys.splitlines()}
    assert "good" in lines[audited["anna's key"]] and "revoked" in lines[audited["bert's key"]]
    assert audited["anna"] in people and "anna@example.org" in people and audited["bert"] not in people


def administrators(audited, keys):
    assert [line.split()[1] for line in keys.splitlines()] == ["role", "owner"]
    assert audited["anna's key"] not in keys


def used(audited, report):
    header, *lines = report.splitlines()
    assert header.startswith("day,owner,key,model,")
    for name in ("anna", "bert"):
        own, = [line.split(",") for line in lines if audited[name] in line]
        assert own[2:4] == [audited[f"{name}'s key"], "m"] and int(own[4]) > 0


def version(audited, tail):
    loaded, = rows(tail)
    # A file that no pull has made has no manifest.
    assert loaded["object"] == "m" and loaded["detail"] == {"sha256": None, "signer": None}, tail


def leaver(audited, tail):
    left, = [row for row in rows(tail) if row["object"] == audited["bert"]]
    ended, = [row for row in rows(tail) if row["object"] == audited["bert's key"]]
    assert (left["action"], ended["action"]) == ("user.deleted", "api_key.deleted")
    assert abs(left["at_ms"] - ended["at_ms"]) < 1_000, "one change"


def refused(audited, tail):
    assert any(row["object"] == audited["bert's key"] for row in rows(tail)), tail


def kept(audited, status, tail):
    assert "nothing is recorded of what is asked and answered" in status
    assert [row["action"] for row in rows(tail)] == ["content.recording"] * 2


def altered(audited, told):
    assert "each is what was written" in told and re.search(r"^[1-9]\d* checkpoints, each signed$", told, re.MULTILINE)


def deleted(audited, status, tail):
    assert re.search(r"^usage +183 days", status, re.MULTILINE) and re.search(r"^people +30 days", status, re.MULTILINE)
    assert [row["action"] for row in rows(tail)] == ["user.erased"]


def processed(audited, record):
    assert "Example Ltd, 1 Example Street" in record and "privacy@example.org" in record
    assert "started with `--zero-egress`" in record and "no TLS of its own" in record
    assert "after they left: 30 days" in record and "Data protection officer: (to be filled in)" in record
    assert not re.search(r"test that a copy can be restored: never", record)


def egress(audited, told):
    assert re.search(r"^all \d+ attempts were stopped", told, re.MULTILINE)


def restored(audited, tail):
    row, = rows(tail)
    assert row["detail"]["rows"] > 0


def rules(audited, tail):
    actions = {row["action"] for row in rows(tail)}
    assert {"retention.updated", "rate_limit.updated"} <= actions, actions


CHECKS = {
    "Who has a right now, and since when?": rights,
    "Who are the administrators?": administrators,
    "Who used what model, and when?": used,
    "Which version of a model answered?": version,
    "Did somebody who left lose access on that day?": leaver,
    "Who was refused?": refused,
    "Is what people ask and are answered kept?": kept,
    "Was the record altered?": altered,
    "Is what has to be deleted deleted?": deleted,
    "What is processed, and for how long?": processed,
    "Where does data go?": egress,
    "When was it last tested that a copy can be restored?": restored,
    "Who changed the rules?": rules,
}


def test_every_answer_of_the_page_is_checked():
    assert list(commands()) == list(CHECKS)


@pytest.mark.parametrize("question", CHECKS)
def test_an_auditor_s_question_has_an_answer(audited, question):
    CHECKS[question](audited, *[run(audited, command) for command in commands()[question]])


def test_a_copy_of_another_database_is_no_copy_of_this_one(audited, tmp_path):
    other, copy = tmp_path / "other.db", tmp_path / "copy.jsonl"
    first = tmp_path / "first.jsonl"
    rempart("backup", "--database", audited["place"], str(first))
    rempart("restore", "--database", str(other), str(first))
    rempart("project", "create", "--database", str(other), "sales")
    rempart("backup", "--database", str(other), str(copy))
    assert "copy of another database" in rempart("restore", "--test", "--database", audited["place"], str(copy), fails=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(copy.read_bytes()[:-100])
    assert "no whole copy" in rempart("restore", "--test", "--database", audited["place"], str(cut), fails=True)
