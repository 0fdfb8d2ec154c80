#!/usr/bin/env python3
"""How projects share a machine, on a real model: token shares by weight, what a flood costs others, what keys cost at all,
and what a row of usage adds to a request.

    python3 benches/sharing.py MODEL [--seconds 40] [--turns 4] [--only sharing|flood|overhead|row]

Starts its own servers on loopback, with a database in a temporary folder.  Shares are those of the tokens that clients got,
after a warm-up, in each turn.  The time to the first token of two clients is measured alone, and in turns beside as many
clients of another project as run at once and beside four times as many, which flood the queue.  Throughput at 32 clients, and
what it takes of the processor, is measured with and without keys, in turns.  For the row MODEL may also be an encoder: what it
adds to answers, which take little time, is then measured, too.

Exit status 0: every bar is met; 1: one is not; 3: none is missed, and the run was too short to tell of one.  Values decide; the
intervals beside them tell how sure they are.  Standard library only.
"""
import argparse
import asyncio
import collections
import contextlib
import http.client
import json
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time

REPO = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "scripts"))
from lib import stream  # noqa: E402
from lib.reliability import figures  # noqa: E402
from lib.server import Server, binary  # noqa: E402

WEIGHTS = {"one": 1, "two": 2, "four": 4}
PLACES = 8
WORDS = "time year people way day man thing woman life child world school state family student group country".split()
RETRY_S = 0.05
# Of the clients beside a flood: one that asks for little at any moment, so that there are many answers, and one that always asks for as
# much as those that flood.
FLOOD_SHORT, FLOOD_TOKENS = (8, 16), (24, 72)
FLOOD_PAUSE_S = 0.1
# Clients of the other project.
COMPANIES = {"alone": 0, "beside": PLACES - 2, "flooded": 4 * PLACES}
# Refused, with a row like all others; and answered, with tokens that are reserved and settled.
REFUSED = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "temperature": -1})
ANSWERED = ("/v1/embeddings", {"input": "Hi"})
ROW_LIMITS = ["requests-per-minute=100000000", "tokens-per-minute=100000000", "tokens-per-day=100000000"]
ROW_REQUESTS = 2000
ROW_BLOCK = 50
# The bars.
SHARE_OFF_PERCENT_MAX = 10
FLOOD_RATIO_MAX = 1.2
KEYS_RATIO_MIN = 0.99
ROW_US_MAX = {50: 200, 99: 2000}
# What they hold over: steps of the engine in a turn, and answers in each company, of which fewer have no 95th percentile.
STEPS_MIN = 1000
FLOOD_ANSWERS_MIN = 20
STEPS = "rempart_step_duration_seconds_count"
NAME = "model"
NAMED = ["--served-model-name", NAME]


def rempart(*arguments):
    return subprocess.run([binary(), *arguments], check=True, capture_output=True, text=True).stdout


class Client:
    """Sends one request after another, and keeps what it got."""

    def __init__(self, server, key, rng):
        self.server, self.key, self.rng = server, key, rng
        self.tokens, self.first_s, self.refused = 0, [], 0

    async def once(self, max_tokens):
        prompt = f"{self.rng.randrange(10**9)} {' '.join(self.rng.choices(WORDS, k=30))}"
        body = {"model": NAME, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True}

        def count(_):
            self.tokens += 1
        try:
            answer = await stream.stream(self.server.port, "/v1/completions", body, on_piece=count, key=self.key)
            self.first_s.append(answer.first_token_s)
        except stream.StreamError as error:
            if not str(error).startswith("503:"):
                raise
            self.refused += 1
            await asyncio.sleep(RETRY_S)

    async def until(self, end, tokens=(48, 48), pause_s=0.0):
        """Answers of as many tokens as this, and pauses between them of up to so long."""
        while time.monotonic() < end:
            await self.once(self.rng.randint(*tokens))
            await asyncio.sleep(self.rng.uniform(0, pause_s))


async def for_seconds(clients, seconds):
    end = time.monotonic() + seconds
    await asyncio.gather(*(client.until(end) for client in clients))


def p95(values):
    return sorted(values)[int(0.95 * (len(values) - 1))]


async def shares(server, keys, seconds, turn):
    """The tokens that clients of each project got, all of them always waiting for some: what is farthest from due."""
    # No prompt comes twice, so that none is cached: what is found costs a project nothing.
    clients = {name: [Client(server, key, random.Random(f"{name}{turn}{at}")) for at in range(2 * PLACES)]
               for name, key in keys.items()}
    everyone = [client for group in clients.values() for client in group]
    end = time.monotonic() + 1.2 * seconds
    running = asyncio.gather(*(client.until(end) for client in everyone))
    await asyncio.sleep(0.1 * seconds)
    steps = await asyncio.to_thread(server.metric, STEPS)
    before = {name: sum(client.tokens for client in group) for name, group in clients.items()}
    await asyncio.sleep(seconds)
    steps = await asyncio.to_thread(server.metric, STEPS) - steps
    got = {name: sum(client.tokens for client in group) - before[name] for name, group in clients.items()}
    await running
    total = sum(got.values())
    off = {}
    for name, weight in WEIGHTS.items():
        due = weight / sum(WEIGHTS.values())
        off[weight] = 100 * (got[name] / total / due - 1)
        print(f"weight {weight}: {got[name]} tokens, {got[name] / total:.3f} of all, due {due:.3f}, {off[weight]:+.1f} %")
    weight = max(off, key=lambda weight: abs(off[weight]))
    farthest = figures.at_most(f"turn {turn}: share farthest from due", abs(off[weight]), SHARE_OFF_PERCENT_MAX, " %",
                               f" (weight {weight}, {steps:.0f} steps)")
    return figures.decided(farthest, steps >= STEPS_MIN)


async def company(server, keys, seconds, name, turn):
    """The times to the first token of two clients of one project, in a company of another. No prompt comes twice, so that none is
    cached; and answers differ in length, or else all would begin and end in the same steps, and a request always come at the same
    moment of them."""
    short, long = (Client(server, keys["two"], random.Random(f"{name}{turn}{kind}")) for kind in ("short", "long"))
    others = [Client(server, keys["one"], random.Random(f"{name}{turn}{at}")) for at in range(COMPANIES[name])]
    end = time.monotonic() + seconds
    await asyncio.gather(short.until(end, FLOOD_SHORT, FLOOD_PAUSE_S),
                         *(client.until(end, FLOOD_TOKENS) for client in (long, *others)))
    print(f"{name}: refused {short.refused + long.refused} times, the others {sum(c.refused for c in others)}")
    return {"short": short.first_s, "long": long.first_s}


def flood(server, keys, seconds, turns):
    """What a flood adds: companies by turns, each as often the first; of each all times of all turns, as a twentieth of one turn's is a
    handful."""
    times = collections.defaultdict(list)
    for turn in range(turns):
        names = [name for name in COMPANIES if name != "alone" or turn == 0]
        for name in names if turn % 2 == 0 else reversed(names):
            for kind, first_s in asyncio.run(company(server, keys, seconds, name, turn)).items():
                times[name, kind] += first_s
    found = []
    for kind in ("short", "long"):
        for name in COMPANIES:
            first_s = times[name, kind]
            middle, late = (1000 * of(first_s or [math.nan]) for of in (statistics.median, p95))
            print(f"{kind} answers, {name}: {len(first_s)}, TTFT median {middle:.0f} ms, p95 {late:.0f} ms")
        found.append(flooded_over_beside(kind, times["flooded", kind], times["beside", kind]))
    return found


def flooded_over_beside(kind, flooded, beside):
    name = f"{kind} answers, TTFT p95, flooded over beside"
    if min(len(flooded), len(beside)) < FLOOD_ANSWERS_MIN:
        return figures.Figure(name, f"{len(flooded)} over {len(beside)} answers", f"<= {figures.shown(FLOOD_RATIO_MAX)}")
    low, high = resampled_ratio(flooded, beside)
    return figures.at_most(name, p95(flooded) / p95(beside), FLOOD_RATIO_MAX, more=f" (95 % interval {low:.2f} to {high:.2f})")


def interval(draw, times=2000):
    """The bootstrap's 95 % interval (Efron 1979) of what is drawn."""
    rng = random.Random(0)
    drawn = sorted(draw(rng) for _ in range(times))
    return drawn[times // 40], drawn[-times // 40]


def resampled(values, statistic):
    return interval(lambda rng: statistic(rng.choices(values, k=len(values))))


def resampled_ratio(over, under):
    """That of a ratio of 95th percentiles."""
    return interval(lambda rng: p95(rng.choices(over, k=len(over))) / p95(rng.choices(under, k=len(under))))


def processor_s(server):
    """Seconds of the processor that a server has used."""
    ticks = pathlib.Path(f"/proc/{server.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def throughput(server, key, seconds):
    """Tokens a second, and seconds of the server's processor a token."""
    clients = [Client(server, key, random.Random(at)) for at in range(32)]
    began, used = time.monotonic(), processor_s(server)
    asyncio.run(for_seconds(clients, seconds))
    tokens = sum(client.tokens for client in clients)
    return tokens / (time.monotonic() - began), (processor_s(server) - used) / tokens


def with_keys(folder, arguments=()):
    database = pathlib.Path(folder) / "rempart.db"
    return database, ["--database", database, *NAMED, *arguments]


def owner_key(server):
    """The key that a server with a new database tells once."""
    return re.search(r"^sk-rempart-\S+$", server.log.read_text(encoding="utf-8"), re.MULTILINE)[0]


@contextlib.contextmanager
def projects(model, folder):
    """A server, and a key for each project."""
    database, arguments = with_keys(folder, ["--sequences-max", PLACES, "--queue-requests-max", 4 * PLACES])
    with Server(model, pathlib.Path(folder) / "sharing.log", arguments=arguments) as server:
        server.wait_ready()
        keys = {}
        for name, weight in WEIGHTS.items():
            rempart("project", "create", "--database", database, name)
            rempart("project", "weight", "--database", database, name, str(weight))
            keys[name] = rempart("key", "create", "--database", database, "--project", name, "client").strip()
        server.key = owner_key(server)
        time.sleep(2)
        yield server, keys


def sharing(model, folder, seconds, turns):
    with projects(model, folder) as (server, keys):
        return [asyncio.run(shares(server, keys, seconds, turn)) for turn in range(1, turns + 1)]


def flooding(model, folder, seconds, turns):
    with projects(model, folder) as (server, keys):
        return flood(server, keys, seconds, turns)


def overhead(model, folder, seconds, turns):
    folder = pathlib.Path(folder)
    database, arguments = with_keys(folder)
    found = {"open": [], "keys": []}
    with (Server(model, folder / "open.log", arguments=NAMED) as plain, Server(model, folder / "keys.log", arguments=arguments) as kept):
        plain.wait_ready()
        kept.wait_ready()
        key = owner_key(kept)
        sides = [("open", plain, None), ("keys", kept, key)]
        for turn in range(turns):
            # Whoever comes second finds a machine that has been busy: each does as often.
            for name, server, secret in sides if turn % 2 == 0 else reversed(sides):
                found[name].append(throughput(server, secret, seconds))
    rows = []
    for what, at, unit in (("output tokens/s", 0, 1), ("milliseconds of the processor a token", 1, 1000)):
        sides = {name: [values[at] for values in pairs] for name, pairs in found.items()}
        ratios = [keys / without for without, keys in zip(*sides.values(), strict=True)]
        told = {name: ", ".join(f"{unit * value:.3g}" for value in values) for name, values in sides.items()}
        print(f"32 clients, {what}: without keys {told['open']}; with keys {told['keys']}; ratio "
              f"{', '.join(f'{ratio:.3f}' for ratio in ratios)}")
        low, high = resampled(ratios, statistics.median)
        name, ratio = f"{what}, with keys over without", statistics.median(ratios)
        more = f" (95 % interval {low:.3f} to {high:.3f})"
        # The processor's time has no bar: it tells what a noisy ratio of throughputs can't.
        judged = figures.at_least(name, ratio, KEYS_RATIO_MIN, more=more) if at == 0 else figures.told(name, f"{ratio:.3f}{more}")
        rows.append(judged)
    return rows


def asked(connection, headers, path, body):
    """The status of an answer, and the microseconds that it took with its row, where there are keys."""
    began = time.perf_counter()
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    answer.read()
    return answer.status, 1e6 * (time.perf_counter() - began)


def added(sides, request, turns):
    """What the second side's requests take more than the first's, by percentile, microseconds of each turn."""
    expected = asked(*sides[0], *request)[0]
    more = {50: [], 99: []}
    for _ in range(turns):
        took = [[], []]
        # In short blocks by turns: a machine whose speed changes changes both.
        for _ in range(ROW_REQUESTS // ROW_BLOCK):
            for side, times in zip(sides, took, strict=True):
                for _ in range(ROW_BLOCK):
                    status, microseconds = asked(*side, *request)
                    assert status == expected, status
                    times.append(microseconds)
        took = [sorted(times) for times in took]
        for at, values in more.items():
            values.append(took[1][ROW_REQUESTS * at // 100] - took[0][ROW_REQUESTS * at // 100])
    return more


def row(model, folder, seconds, turns):
    """What key, limits and a row that is waited for add to a request."""
    folder = pathlib.Path(folder)
    # An encoder has no other name than its own.
    database = folder / "rempart.db"
    kept_by = ["--database", database]
    with (Server(model, folder / "open.log") as plain, Server(model, folder / "keys.log", arguments=kept_by) as kept):
        plain.wait_ready()
        kept.wait_ready()
        key = owner_key(kept)
        rempart("limit", "set", "--database", database, "--key", key.split("-")[2], *ROW_LIMITS)
        time.sleep(2)
        json_ = {"Content-Type": "application/json"}
        sides = [(http.client.HTTPConnection("127.0.0.1", plain.port), json_),
                 (http.client.HTTPConnection("127.0.0.1", kept.port), json_ | {"Authorization": f"Bearer {key}"})]
        of = {"model": plain.model_name()}
        refused, answered = ((path, body | of) for path, body in (REFUSED, ANSWERED))
        requests = [("a refused request", refused)]
        # An answer of a model that generates takes a hundred times as long as its row.
        if asked(*sides[0], *answered)[0] == 200:
            requests.append((f"an answer of {answered[0]}", answered))
        found = []
        for what, request in requests:
            for at, values in added(sides, request, turns).items():
                name = f"p{at} of {what}, more with key, limits and row"
                print(f"{name}: {', '.join(f'{value:.0f}' for value in values)} microseconds")
                found.append(figures.at_most(name, statistics.median(values), ROW_US_MAX[at], " us"))
        return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--only", choices=["sharing", "flood", "overhead", "row"])
    options = parser.parse_args()
    measures = {"sharing": sharing, "flood": flooding, "overhead": overhead, "row": row}
    found = []
    for name in [options.only] if options.only else measures:
        with tempfile.TemporaryDirectory() as folder:
            measured = measures[name](options.model, folder, options.seconds, options.turns)
        print(figures.table(name, measured), flush=True)
        found += measured
    return figures.status(found)


if __name__ == "__main__":
    sys.exit(main())
