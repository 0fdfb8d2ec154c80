"""Limits that two servers on one PostgreSQL database keep in total."""
import concurrent.futures
import contextlib
import re
import subprocess
import time

import openai
import pytest
from lib.known import when_all_is_known
from lib.postgres import Cluster
from lib.server import binary, free_port

# Clients of each server.
CLIENTS = 4
LEASE_MS = 5000
# A lease ends where its server stops for seconds: what that may break is tried so often.
TRIES = 3
# Until what a stop may delay is given up.
GIVEN_UP_S = 60


def rempart(*arguments):
    done = subprocess.run([binary(), *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Pair:
    """Two servers, their database, and keys that have limits."""

    def __init__(self, own_server, cluster):
        self.own_server, self.cluster, self.place = own_server, cluster, ["--database", cluster.url]
        self.servers = [self.begin(at) for at in range(2)]
        self.first = re.search(r"^sk-rempart-\S+$", self.servers[0].log.read_text(), re.MULTILINE)[0]

    def begin(self, at):
        arguments = [*self.place, "--served-model-name", "m", "--sequences-max", "16"]
        return self.own_server("smollm2", f"lease-{at}.log", arguments)

    def limited(self, *limits):
        key = rempart("key", "create", *self.place, "limited").strip()
        rempart("limit", "set", *self.place, "--key", key.split("-")[2], *limits)
        when_all_is_known(self.servers, *self.place)
        return key

    def client(self, at, key):
        return openai.OpenAI(base_url=f"{self.servers[at].root}/v1", api_key=key, max_retries=0, timeout=60)

    def tokens(self, key):
        query = f"SELECT COALESCE(SUM(input + output), 0) FROM usage_event WHERE api_key = '{key.split('-')[2]}'"
        return int(self.cluster.rows(query)[0][0])

    def is_held(self, key, tokens):
        """Whether one server has so many of a day's leased, and that has not ended by the database's clock."""
        query = (f"SELECT COUNT(*) FROM limit_lease WHERE id = '{key.split('-')[2]}' AND metric = 'tokens-per-day' "
                 f"AND held >= {tokens} AND until_ms - EXTRACT(EPOCH FROM clock_timestamp()) * 1000 BETWEEN 1 AND {LEASE_MS}")
        return self.cluster.rows(query) == [("1",)]


@pytest.fixture
def pair(own_server):
    with Cluster() as cluster:
        yield Pair(own_server, cluster)


def chat(client, **options):
    question = [{"role": "user", "content": "Hi"}]
    return client.chat.completions.create(model="m", messages=question, **({"max_tokens": 1} | options))


def answered(client, **options):
    """The same, again where the database was slow just then: such a request is refused, and uses nothing."""
    deadline = time.monotonic() + GIVEN_UP_S
    while True:
        try:
            return chat(client, **options)
        except openai.InternalServerError as error:
            if error.code != "server_not_ready" or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def hammer(pair, key, who, seconds):
    """Asks all of these servers for so long; the tokens of each answer, in the order of their servers."""
    end = time.monotonic() + seconds

    def ask(at):
        client, got = pair.client(at, key), []
        while time.monotonic() < end:
            try:
                got.append(chat(client).usage.total_tokens)
            except openai.APIStatusError as error:
                # Either is a turn without an answer; the second where the database was slow just then.
                assert error.code in ("rate_limit_exceeded", "server_not_ready"), error
                time.sleep(0.02)
        return got
    with concurrent.futures.ThreadPoolExecutor(CLIENTS * len(who)) as pool:
        asked = [(at, pool.submit(ask, at)) for at in who for _ in range(CLIENTS)]
        return [sum((one.result() for of, one in asked if of == at), []) for at in who]


def test_requests_of_a_minute_are_counted_together(pair):
    for who in ((0, 1), (1,)):
        # What a server had leased when it stopped is missing, and comes back by the minute.
        for seconds in (12, 24, 24):
            key = pair.limited("requests-per-minute=60")
            began = time.monotonic()
            got = hammer(pair, key, who, seconds)
            took, answers = time.monotonic() - began, sum(map(len, got))
            print(f"servers {who}: {[len(one) for one in got]} answers in {took:.1f} s")
            # A minute's worth, and one for each second that came back. One server that is asked alone gets all of it.
            assert answers <= 60 + took + 1
            enough = answers >= 48 + seconds
            if enough:
                break
        assert enough
    for _ in range(TRIES):
        key = pair.limited("requests-per-minute=1")
        answers = sum(map(len, hammer(pair, key, (0, 1), 3)))
        assert answers <= 1
        if answers:
            break
    assert answers == 1


def spent_until_a_server_dies(pair):
    """A key of 3,000 tokens a day, of which the first server held the most when it died; what the answers took before that, and in
    two seconds after it; and whether those were over before that lease was."""
    key = pair.limited("tokens-per-day=3000", "tokens-per-month=100000")
    before = [answered(pair.client(at % 2, key)).usage.total_tokens for at in range(10)]
    # What these may use is held: with them nearly nothing is left.
    held = [answered(pair.client(0, key), stream=True, max_tokens=900, extra_body={"ignore_eos": True}) for _ in range(2)]
    pair.servers[0].process.kill()
    during = sum(hammer(pair, key, (1,), 2), [])
    used = pair.tokens(key)
    in_time = pair.is_held(key, 2 * 900)
    assert not in_time or used <= 3000 - 2 * 900
    for stream in held:
        with contextlib.suppress(Exception):
            stream.close()
    return key, before, during, in_time


def test_tokens_of_a_day_are_counted_together_and_outlive_a_server(pair):
    one = answered(pair.client(0, pair.first)).usage.total_tokens
    for at in range(TRIES):
        if at:
            pair.servers[0] = pair.begin(0)
        key, before, during, in_time = spent_until_a_server_dies(pair)
        if in_time:
            break
    assert in_time, "what a server held when it died was not held any more"
    died, after = time.monotonic(), []
    # A row may be written after its answer, where the database is slow.
    while (used := pair.tokens(key)) <= 3000 - one or used < sum(before + during + after):
        assert time.monotonic() < died + 2 * GIVEN_UP_S, (used, one)
        after += sum(hammer(pair, key, (1,), 5), [])
    print(f"{used} of 3000 tokens, {one} each; {len(before)} answers before the death, {len(during)} in the 2 s after it, "
          f"{len(after)} in {time.monotonic() - died:.0f} s after that")
    # Those that died have used nothing, as they have no row.
    assert len(after) > 20 and used <= 3000
    with pytest.raises(openai.RateLimitError) as caught:
        answered(pair.client(1, key))
    assert "tokens per day" in str(caught.value)
    assert int(caught.value.response.headers["retry-after"]) > 1 or time.gmtime().tm_hour == 23


def test_places_are_counted_together_and_come_back_from_a_dead_server(pair):
    def open_all(key, who):
        """As many long answers as are let in, those of each server in turn."""
        streams = [[] for _ in pair.servers]
        for at in who * 4:
            with contextlib.suppress(openai.RateLimitError):
                stream = answered(pair.client(at, key), stream=True, max_tokens=1500, extra_body={"ignore_eos": True})
                next(iter(stream))
                streams[at].append(stream)
        return streams
    for _ in range(TRIES):
        key = pair.limited("parallel=4")
        streams = open_all(key, [0, 1])
        opened = [len(one) for one in streams]
        if opened == [2, 2]:
            break
        for stream in sum(streams, []):
            stream.close()
    assert opened == [2, 2]
    for stream in streams[1]:
        stream.close()
    pair.servers[0].process.kill()
    began, most = time.monotonic(), 0
    while most < 4:
        assert time.monotonic() - began < GIVEN_UP_S
        time.sleep(0.5)
        streams = open_all(key, [1])
        most = len(streams[1])
        for stream in streams[1]:
            stream.close()
    print(f"all places were back after {time.monotonic() - began:.1f} s")


def test_without_the_database_nothing_is_granted_and_it_recovers(pair):
    key = pair.limited("requests-per-minute=600")
    client = pair.client(0, key)
    assert answered(client).choices
    pair.cluster.halt(True)
    try:
        with pytest.raises(openai.APIStatusError) as caught:
            for _ in range(600):
                chat(client)
        assert caught.value.status_code == 503
    finally:
        pair.cluster.halt(False)
    deadline = time.monotonic() + GIVEN_UP_S
    while True:
        try:
            assert chat(client).choices
            break
        except openai.APIStatusError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_second_server_on_a_file_does_not_start(own_server, tmp_path):
    running = own_server("smollm2", "alone.log", ["--database", str(tmp_path / "rempart.db")])
    own = running.command.index("--bind") + 1
    command = [*running.command[:own], f"127.0.0.1:{free_port()}", *running.command[own + 1:]]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode != 0 and "another server serves from" in second.stderr + second.stdout
    running.process.kill()
    running.process.wait()
    # Nobody has it any more, although the file is there that was locked.
    third = own_server("smollm2", "alone-again.log", ["--database", str(tmp_path / "rempart.db")])
    assert third.process.poll() is None
