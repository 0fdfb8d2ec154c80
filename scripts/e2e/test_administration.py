"""Administration as the official client and an operator meet it, on either kind of database."""
import concurrent.futures
import contextlib
import functools
import inspect
import json
import pathlib
import re
import sqlite3
import subprocess
import time

import openai
import pytest
from lib.known import when_it_is_known
from lib.postgres import Cluster
from lib.server import binary

API = pathlib.Path(__file__).parents[2] / "docs" / "api.md"


def rempart(*arguments, fails=False):
    done = subprocess.run([binary(), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode != 0) == fails, done.stderr + done.stdout
    return done.stderr if fails else done.stdout


@pytest.fixture(params=["sqlite", "postgres"])
def governed(request, own_server, tmp_path):
    """A server, what names its database for commands, and a client with its first key."""
    def start(place):
        checkpoints = tmp_path / "checkpoints"
        database = ["--database", place, "--secret", str(tmp_path / "secret")]
        server = own_server("smollm2", f"administration-{request.param}.log", [
            *database, "--served-model-name", "m", "--audit-checkpoints", str(checkpoints), "--audit-checkpoint-interval-s", "1"])
        key = re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)[0]
        return server, database, client_of(server, key), checkpoints
    if request.param == "sqlite":
        yield start(str(tmp_path / "rempart.db"))
        return
    with Cluster() as cluster:
        yield start(cluster.url)


def client_of(server, key):
    return openai.OpenAI(base_url=f"{server.root}/v1", api_key=key, admin_api_key=key, max_retries=0, timeout=60)


def chat(client):
    return client.chat.completions.create(model="m", max_tokens=4, messages=[{"role": "user", "content": "Hi"}])


def test_everything_that_the_official_client_administers(governed):
    server, _, owner, _ = governed
    organization = owner.admin.organization
    projects = organization.projects
    sales = projects.create(name="sales")
    assert projects.retrieve(sales.id).name == "sales"
    assert projects.update(sales.id, name="Vertrieb").name == "Vertrieb"
    assert {one.name for one in projects.list(limit=1)} == {"default", "Vertrieb"}, "page by page"

    account = projects.service_accounts.create(sales.id, name="crm")
    crm = client_of(server, account.api_key.value)
    assert chat(crm).choices
    assert [one.id for one in projects.service_accounts.list(sales.id)] == [account.id]
    assert projects.service_accounts.retrieve(account.id, project_id=sales.id).name == "crm"
    assert projects.service_accounts.update(account.id, project_id=sales.id, name="erp").name == "erp"
    second = projects.service_accounts.api_keys.create(account.id, project_id=sales.id, expires_in_seconds=600)
    assert chat(client_of(server, second.value)).choices
    key, = [one for one in projects.api_keys.list(sales.id) if one.id == second.id]
    assert key.owner.service_account.id == account.id and key.expires_at == second.expires_at
    assert projects.api_keys.retrieve(key.id, project_id=sales.id).redacted_value.startswith("sk-rempart-")
    assert projects.api_keys.update(key.id, project_id=sales.id, expires_in_seconds=9_000).expires_at > key.expires_at
    assert projects.api_keys.delete(key.id, project_id=sales.id).deleted
    with pytest.raises(openai.AuthenticationError):
        chat(client_of(server, second.value))

    assert projects.model_permissions.retrieve(sales.id).mode == "deny_list"
    allowed = projects.model_permissions.update(sales.id, mode="allow_list", model_ids=["other"])
    assert allowed.api_model_ids == ["other"]
    with pytest.raises(openai.NotFoundError):
        chat(crm)
    assert projects.model_permissions.delete(sales.id).deleted
    limit, = projects.rate_limits.list_rate_limits(sales.id)
    set_ = projects.rate_limits.update_rate_limit(limit.id, project_id=sales.id, max_tokens_per_1_minute=100_000)
    assert set_.max_tokens_per_1_minute == 100_000 and chat(crm).choices

    assert projects.service_accounts.delete(account.id, project_id=sales.id).deleted
    with pytest.raises(openai.AuthenticationError):
        chat(crm)
    assert projects.archive(sales.id).status == "archived"
    assert sales.id in {one.id for one in projects.list(include_archived=True)}


def calls(node, *path):
    """Every call below a part of the official client: its name and itself."""
    for name in dir(type(node)):
        found = inspect.getattr_static(type(node), name)
        if name.startswith(("_", "with_")):
            continue
        if isinstance(found, functools.cached_property):
            yield from calls(getattr(node, name), *path, name)
        elif inspect.isfunction(found):
            yield ".".join((*path, name)), getattr(node, name)


# Calls that can be made in several ways: what one of these needs beside that.
ONE_OF_SEVERAL = {"external_keys.create": {"key_name": "x", "tenant_id": "x", "vault_uri": "x"}}


def made_up(call):
    """Something for each argument that a call must have."""
    def value(annotation):
        if literal := re.search(r"Literal\['(\w+)'", annotation):
            return literal[1]
        kinds = {"str": "x", "int": int(time.time()), "SequenceNotStr[str]": ["x"]}
        return kinds.get(annotation, {})
    arguments = inspect.signature(call).parameters.items()
    return {name: value(str(one.annotation)) for name, one in arguments if one.default is inspect.Parameter.empty}


def test_every_call_of_the_official_client_is_answered(governed):
    """Of what there is not, with what there is instead."""
    _, _, owner, _ = governed
    all_, absent = 0, {}
    for name, call in calls(owner.admin.organization):
        all_ += 1
        try:
            call(**made_up(call), **ONE_OF_SEVERAL.get(name, {}))
        except openai.APIStatusError as error:
            assert error.status_code in (400, 404), (name, error)
            if error.code == "unknown_url":
                absent[name] = str(error)
    assert not [name for name, message in absent.items() if "Unknown request URL" in message]
    told = re.search(r"Of the (\d+) calls .* has, (\d+) are served\. The other (\d+),", API.read_text(encoding="utf-8"))
    assert [int(number) for number in told.groups()] == [all_, all_ - len(absent), len(absent)]


def test_a_checkpoint_of_what_is_chained_beside_what_can_not_be(own_server, tmp_path):
    place, kept = tmp_path / "rempart.db", tmp_path / "kept.jsonl"
    database = ["--database", str(place)]
    server = own_server("smollm2", "checkpoint.log", [*database, "--served-model-name", "m"])
    key = re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)[0]
    chat(client_of(server, key))
    server.stop()
    assert "1 rows of usage" in rempart("audit", "verify", *database), "chained, however slow the end was"
    # A row whose request has one: no program of ours writes that.
    with contextlib.closing(sqlite3.connect(place)) as connection, connection:
        names = [column[1] for column in connection.execute("PRAGMA table_info(usage_unchained)")]
        names = ", ".join(name for name in names if name != "content")
        connection.execute(f"INSERT INTO usage_unchained ({names}, content) SELECT {names}, '' FROM usage_event")
    done = subprocess.run([binary(), "audit", "checkpoint", *database], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "does not cover the last rows of usage" in done.stderr and "usage_unchained" in done.stderr
    kept.write_text(done.stdout)
    assert json.loads(done.stdout)["usage"], "what is chained is covered"
    with contextlib.closing(sqlite3.connect(place)) as connection, connection:
        connection.execute("DELETE FROM usage_unchained")
    public_key = rempart("audit", "public-key", *database).strip()
    verified = rempart("audit", "verify", *database, "--checkpoints", str(kept), "--public-key", public_key)
    assert "1 checkpoints, each signed" in verified


def test_people_and_administrators_as_the_official_client_has_them(governed):
    server, database, owner, _ = governed
    organization = owner.admin.organization
    anna = rempart("user", "add", *database, "Anna@Example.org", "--name", "Anna Example").split()[0]
    users = organization.users
    assert users.retrieve(anna).email == "anna@example.org"
    assert [one.name for one in users.list(emails=["anna@example.org"])] == ["Anna Example"]
    assert users.update(anna, role="auditor").role == "auditor"
    default, = organization.projects.list()
    members = organization.projects.users
    assert members.create(default.id, email="anna@example.org", role="member").id == anna
    assert members.retrieve(anna, project_id=default.id).name == "Anna Example"
    assert members.update(anna, project_id=default.id, role="member").id == anna
    assert [one.id for one in members.list(default.id)] == [anna]
    value = rempart("key", "create", *database, "--user", "anna@example.org", "--role", "auditor", "laptop").strip()
    auditor = client_of(server, value)
    rows = list(when_it_is_known(lambda: auditor.admin.organization.audit_logs.list(limit=3)))
    assert [row.id for row in rows][-1] == "audit_log-1" and rows[0].type == "api_key.created"
    assert not list(auditor.admin.organization.audit_logs.list(actor_emails=["anna@example.org"]))
    recent = auditor.admin.organization.audit_logs.list(effective_at={"gte": int(time.time()) - 600}, event_types=["user.added"])
    assert [row.type for row in recent] == ["user.added"]
    with pytest.raises(openai.PermissionDeniedError):
        auditor.admin.organization.projects.create(name="x")
    with pytest.raises(openai.PermissionDeniedError):
        chat(auditor)
    admin_keys = organization.admin_api_keys
    made = admin_keys.create(name="ops")
    ops = client_of(server, made.value)
    assert made.id in {one.id for one in admin_keys.list()} and admin_keys.retrieve(made.id).name == "ops"
    with pytest.raises(openai.PermissionDeniedError):
        ops.admin.organization.audit_logs.list()
    with pytest.raises(openai.PermissionDeniedError):
        ops.admin.organization.users.delete(anna)
    assert admin_keys.delete(made.id).deleted
    assert members.delete(anna, project_id=default.id).deleted
    with pytest.raises(openai.AuthenticationError):
        auditor.admin.organization.audit_logs.list()
    assert users.delete(anna).deleted and not list(users.list())


def test_who_is_erased_is_nobody_and_checkpoints_hold(governed):
    server, database, owner, checkpoints = governed
    rempart("user", "add", *database, "anna@example.org", "--name", "Anna Example")
    rempart("user", "join", *database, "anna@example.org", "--project", "default")
    value = rempart("key", "create", *database, "--user", "anna@example.org", "laptop").strip()
    assert when_it_is_known(lambda: chat(client_of(server, value))).choices
    told = json.loads(rempart("gdpr", "export", *database, "anna@example.org"))
    assert told["person"]["email"] == "anna@example.org" and len(told["requests"]) == 1
    assert [key["name"] for key in told["keys"]] == ["laptop"]
    assert {row["action"] for row in told["record"]} >= {"user.added", "user.exported"}
    before = checkpoints.with_name("before.jsonl")
    rempart("backup", *database, str(before))
    rempart("gdpr", "erase", *database, "anna@example.org")
    assert "no such person" in rempart("gdpr", "export", *database, "anna@example.org", fails=True)
    time.sleep(2)
    public_key = rempart("audit", "public-key", *database).strip()
    verify = ["audit", "verify", *database, "--checkpoints", str(checkpoints), "--public-key", public_key]
    assert "checkpoints, each signed" in rempart(*verify)
    chain = rempart("audit", "export", *database)
    assert "anna" not in chain.lower() and len(chain.splitlines()) > 5
    place = pathlib.Path(database[1])
    copy = checkpoints.with_name("copy.jsonl")
    rempart("backup", *database, str(copy))
    written = [copy, checkpoints, server.log, *(place.parent.glob(f"{place.name}*") if place.is_file() else ())]
    names = (b"anna@example.org", b"anna example")
    assert not [path for path in written if any(name in path.read_bytes().lower() for name in names)], "a name of theirs is left"
    # One that somebody else has signed is refused, and one that is changed.
    lines = checkpoints.read_text().splitlines()
    checkpoints.write_text(lines[-1].replace('"seq":', '"seq":1') + "\n")
    assert "signature" in rempart(*verify, fails=True)
    checkpoints.write_text("\n".join(lines) + "\n")
    assert "another key" in rempart(*verify[:-1], "0" * 64, fails=True)
    assert chat(owner).choices


def test_a_copy_of_a_server_at_work_is_a_database_of_either_kind(governed, own_server, tmp_path):
    server, database, owner, _ = governed
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(chat, owner) for _ in range(24)]
        copy = tmp_path / "copy.jsonl"
        assert "rows are in" in rempart("backup", *database, str(copy))
        for one in asked:
            assert one.result().choices
    assert copy.stat().st_mode & 0o777 == 0o600
    assert "is there already" in rempart("backup", *database, str(copy), fails=True)
    secret = database[2:]
    with Cluster() as cluster:
        for place in (str(tmp_path / "restored.db"), cluster.url):
            told = rempart("restore", "--database", place, *secret, str(copy))
            assert "and each is what was written, as are their sums" in told
            assert "in use" in rempart("restore", "--database", place, *secret, str(copy), fails=True)
            restored = own_server("smollm2", "restored.log", ["--database", place, *secret, "--served-model-name", "m"])
            assert chat(client_of(restored, owner.api_key)).choices
            restored.stop()
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(copy.read_bytes()[:-200])
    assert "no whole copy" in rempart("restore", "--database", str(tmp_path / "third.db"), *secret, str(cut), fails=True)
