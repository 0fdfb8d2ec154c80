"""What a server with keys records of each request, and what it allows, as official clients and an operator meet it."""
import collections
import concurrent.futures
import csv
import io
import itertools
import os
import re
import sqlite3
import subprocess
import threading
import time

import openai
import pytest
from lib.known import when_all_is_known, when_it_is_known
from lib.postgres import Cluster
from lib.server import binary

KILLS = int(os.environ.get("REMPART_E2E_KILLS", "8"))
CLIENTS = 6
# Read to their end before each kill, on average, within a time that no machine needs.
ANSWERS, ROUND_S = 5, 30
PRICE = "0.2,0.6,0.05"
# All rows, chained or not yet.
USED = " UNION ALL ".join(f"SELECT id, outcome, input, output FROM {table}" for table in ("usage_event", "usage_unchained"))
USED = f"({USED}) AS used"


def rempart(*arguments):
    done = subprocess.run([binary(), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def client_of(server, key, **options):
    return openai.OpenAI(base_url=f"{server.root}/v1", api_key=key, admin_api_key=key, **({"max_retries": 0} | options))


class File:
    """An SQLite file."""

    def __init__(self, path):
        self.place = str(path)

    def rows(self, query):
        with sqlite3.connect(self.place) as direct:
            rows = direct.execute(query).fetchall()
        direct.close()
        return [tuple(map(str, row)) for row in rows]


class Server:
    """A PostgreSQL server."""

    def __init__(self, cluster):
        self.place, self.rows, self.halt = cluster.url, cluster.rows, cluster.halt


@pytest.fixture(params=["sqlite", "postgres"])
def store(request, tmp_path):
    """A database of either kind."""
    if request.param == "sqlite":
        yield File(tmp_path / "rempart.db")
        return
    with Cluster() as cluster:
        yield Server(cluster)


@pytest.fixture
def governed(own_server, store):
    """A server, the place of its database and its first key; called again, another one on the same database."""
    database = store.place
    arguments = ["--database", database, "--served-model-name", "m", "--price", f"m={PRICE}"]

    def start(log):
        server = own_server("smollm2", log, arguments)
        first = re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)
        return server, database, first and first[0]
    return start


def chat(client, **options):
    return client.chat.completions.create(model="m", max_tokens=6, messages=[{"role": "user", "content": "Hi"}], **options)


def refusal(client):
    """The next of its requests that is over a limit."""
    for _ in range(30):
        try:
            chat(client)
        except openai.RateLimitError as error:
            return error
    raise AssertionError("no request is over a limit")


def read(client, at):
    """Prompt and answer tokens of an answer that was read to its end; every second one is streamed."""
    if at % 2:
        usage = chat(client).usage
    else:
        usage = [chunk.usage for chunk in chat(client, stream=True, stream_options={"include_usage": True})][-1]
    return usage.prompt_tokens, usage.completion_tokens


def test_no_answer_is_without_its_row_whenever_the_process_dies(governed, store):
    """Of answers that were read to their end and acknowledged changes none is missing, while others read the database."""
    server, database, key = governed("first.log")
    client, got, lock, stop = client_of(server, key, timeout=20), [], threading.Lock(), threading.Event()
    changed, numbers, starts = [], itertools.count(), []

    def ask(at):
        while not stop.is_set():
            try:
                used = read(client, at)
            except openai.APIError:
                time.sleep(0.02)
                continue
            with lock:
                got.append(used)

    def change():
        while not stop.is_set():
            # A name is given once: it may be one that was not acknowledged.
            name = f"project {next(numbers)}"
            try:
                changed.append(client.admin.organization.projects.create(name=name).id)
            except openai.APIError:
                pass
            time.sleep(0.02)

    def look():
        # Whoever opens and closes the file must take nothing from the server.
        while not stop.is_set():
            store.rows(f"SELECT COUNT(*) FROM {USED}")
            time.sleep(0.05)
    for round_ in range(KILLS):
        stop.clear()
        with concurrent.futures.ThreadPoolExecutor(CLIENTS + 2) as pool:
            work = [pool.submit(ask, at) for at in range(CLIENTS)] + [pool.submit(change), pool.submit(look)]
            time.sleep(0.4 + 0.05 * (round_ % 7))
            # However slow the machine is, there is something to lose.
            until = time.monotonic() + ROUND_S
            while (len(got) <= ANSWERS * (round_ + 1) or len(changed) <= round_) and time.monotonic() < until:
                time.sleep(0.02)
            server.process.kill()
            server.process.wait()
            stop.set()
            for one in work:
                one.result()
        began = time.monotonic()
        server, _, _ = governed(f"after-{round_}.log")
        starts.append(time.monotonic() - began)
        client = client_of(server, key, timeout=20)
        written = store.rows(f"SELECT id, input, output FROM {USED} WHERE outcome = 'completed'")
        assert len({row[0] for row in written}) == len(written), "a request has one row"
        counted = collections.Counter(row[1:] for row in written)
        missing = collections.Counter((str(used[0]), str(used[1])) for used in got) - counted
        assert not missing, (round_, len(got), len(written))
        recorded = {row[0] for row in store.rows("SELECT object FROM audit_event WHERE action = 'project.created'")}
        assert set(changed) <= recorded, (round_, len(changed), len(recorded))
        # Whatever the process before has left, this one chains at once.
        until = time.monotonic() + 30
        while store.rows("SELECT COUNT(*) FROM usage_unchained") != [("0",)]:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert "and each is what was written" in rempart("audit", "verify", "--database", database)
    print(f"{KILLS} kills, {len(got)} answers read to their end, {len(written)} rows; {len(changed)} changes, {len(recorded)}")
    assert len(got) > ANSWERS * KILLS and len(changed) >= KILLS
    # The machine itself may stop in one.
    assert sum(took >= 5 for took in starts) <= 1, f"one waits for what the process before held: {starts}"


def test_usage_and_costs_as_the_official_client_reads_them(governed, tmp_path):
    server, database, first = governed("usage.log")
    rempart("project", "create", "--database", database, "sales")
    sales = rempart("key", "create", "--database", database, "--project", "sales", "laptop").strip()
    when_it_is_known(client_of(server, sales).models.list)
    began = int(time.time())
    used = [read(client_of(server, key), at) for key in (first, sales, sales) for at in (0, 1)]
    usage = client_of(server, first).admin.organization.usage
    (result,) = usage.completions(start_time=began, limit=1).data[0].results
    assert (result.input_tokens, result.output_tokens) == tuple(map(sum, zip(*used, strict=True)))
    assert result.num_model_requests == len(used)
    by_key = usage.completions(start_time=began, limit=1, group_by=["api_key_id", "project_id"]).data[0].results
    assert sorted(one.num_model_requests for one in by_key) == [2, 4]
    # A file has its secret beside it.
    place = ["--database", database, *(["--secret", tmp_path / "secret"] if database.startswith("postgres") else [])]
    anna = rempart("user", "add", *place, "anna@example.org", "--name", "Anna").split()[0]
    rempart("user", "join", *place, "--project", "sales", anna)
    hers = rempart("key", "create", *place, "--project", "sales", "--user", anna, "x").strip()
    when_it_is_known(client_of(server, hers).models.list)
    read(client_of(server, hers), 0)
    (own,) = usage.completions(start_time=began, limit=1, user_ids=[anna], group_by=["user_id"]).data[0].results
    assert (own.user_id, own.num_model_requests) == (anna, 1)
    used_by = usage.completions(start_time=began, limit=1, group_by=["user_id"]).data[0].results
    assert {one.user_id: one.num_model_requests for one in used_by} == {anna: 1, None: len(used)}
    (cost,) = usage.costs(start_time=began, limit=1).data[0].results
    assert cost.amount.currency == "eur" and cost.amount.value > 0
    with pytest.raises(openai.PermissionDeniedError):
        client_of(server, sales).admin.organization.usage.costs(start_time=began)
    rows = list(csv.DictReader(io.StringIO(rempart("usage", "report", "--database", database, "--format", "csv"))))
    assert {row["project"]: int(row["requests"]) for row in rows} == {"default": 2, "sales": 5}
    assert sum(float(row["cost"]) for row in rows) == pytest.approx(cost.amount.value, abs=1e-5)
    page = rempart("usage", "report", "--database", database, "--format", "html")
    assert page.count("<svg") == 2 and "sales" in page


def test_limits_as_the_official_client_meets_them(governed):
    server, database, first = governed("limits.log")
    key = rempart("key", "create", "--database", database, "limited").strip()
    rempart("limit", "set", "--database", database, "--key", key.split("-")[2], "requests-per-minute=30", "tokens-per-day=400")
    when_all_is_known([server], "--database", database)
    client = client_of(server, key)
    answer = client.chat.completions.with_raw_response.create(
        model="m", max_tokens=6, messages=[{"role": "user", "content": "Hi"}])
    assert answer.headers["x-ratelimit-limit-requests"] == "30"
    with pytest.raises(openai.RateLimitError) as caught:
        for _ in range(30):
            chat(client)
    error = caught.value
    assert error.code == "rate_limit_exceeded" and "tokens per day" in str(error)
    # The day is long: the client is told not to try again by itself. (What is leased may end a second early.)
    for _ in range(10):
        if error.response.headers["x-should-retry"] == "false":
            break
        time.sleep(1)
        error = refusal(client)
    assert error.response.headers["x-should-retry"] == "false"
    statuses = []
    counting = openai.DefaultHttpxClient(event_hooks={"response": [lambda response: statuses.append(response.status_code)]})
    with client_of(server, key, max_retries=3, http_client=counting) as retrying, pytest.raises(openai.RateLimitError):
        chat(retrying)
    assert statuses.count(429) == 1, statuses
    assert chat(client_of(server, first)).choices
    assert "tokens-per-day=400" in rempart("limit", "list", "--database", database)
    rempart("limit", "set", "--database", database, "--key", key.split("-")[2], "tokens-per-day=none")
    assert when_it_is_known(lambda: chat(client)).choices


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_server_ends_while_its_database_is_silent(governed, store):
    """Nothing is left to write: it waits for what it leased, and for nothing else."""
    server, _, key = governed("silent-end.log")
    assert chat(client_of(server, key)).choices
    store.halt(True)
    try:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 15
    finally:
        store.halt(False)
    assert "and each is what was written" in rempart("audit", "verify", "--database", store.place)


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_database_that_is_gone_without_a_word_is_missed_at_once_and_found_again(governed, store):
    server, _, key = governed("silent.log")
    client = client_of(server, key, timeout=60)
    assert chat(client).choices
    store.halt(True)
    try:
        # The row of the first waits, and from then on none begins.
        with pytest.raises(openai.APIStatusError) as caught:
            for _ in range(4):
                chat(client)
        assert caught.value.status_code == 503
    finally:
        store.halt(False)
    deadline = time.monotonic() + 30
    while True:
        try:
            assert chat(client).choices
            break
        except openai.APIStatusError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    began = len(store.rows(f"SELECT id FROM {USED} WHERE outcome = 'completed'"))
    assert began >= 3
    assert "and each is what was written" in rempart("audit", "verify", "--database", store.place)
