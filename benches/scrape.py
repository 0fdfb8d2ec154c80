#!/usr/bin/env python3
"""How long a scrape of /metrics takes where 100 projects have asked 5 models, and whether strangers' names make it longer.

    python3 benches/scrape.py MODEL.gguf [--projects 100] [--models 5] [--scrapes 200]

Starts a server of its own on loopback with so many copies of a model, a database in a temporary folder, and series by project.
Each project asks each model once; then names that are in no list are asked, in two rounds: models, keys, paths and methods, short, long, and of
bytes that mean something in JSON, in HTTP or on the page. Routes, methods and statuses that come for the first time add series,
as many as there are; names may add none, and stand nowhere on the page. Standard library only.

Exit status 0: every bar is met; 1: one is not; 3: none is missed, but there were fewer projects or models than the bar is for.
"""
import argparse
import http.client
import json
import pathlib
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

REPO = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "scripts"))
from lib.reliability import figures  # noqa: E402
from lib.server import Server, binary  # noqa: E402

SCRAPE_MS_MAX = 20
# The size that the bar is for.
PROJECTS, MODELS = 100, 5
STRANGERS = 400
# Begins each name of a stranger, and is nowhere else on the page.
MARK = b"stranger"
# What such names are made of: digits, and what follows them.
SHAPES = (b"", 500 * b"long-name-", b'",model_name="m0', b"\\\n\r\x00{}#", "\u202e\ufb00\U0001f980".encode(), b"\xff\xfe\xc0\x80")
# Series of routes, methods and statuses, and of the project whose key strangers have. A way to ask is one route and one method: a
# histogram of 17 series, and a few statuses.
EXPECTED = (b"http_request", b"rempart_project_")
PER_WAY_MAX = 17 + 5
# A running server notices new keys by then.
NOTICED_S = 3


def rempart(*arguments):
    done = subprocess.run([binary(), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def scrape(connection, key):
    began = time.perf_counter()
    connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {key}"})
    answer = connection.getresponse()
    page = answer.read()
    if answer.status != 200:
        raise SystemExit(f"/metrics: {answer.status}")
    return time.perf_counter() - began, page


def series(page):
    """Names with their labels."""
    return {line.rpartition(b" ")[0] for line in page.split(b"\n") if line and not line.startswith(b"#")}


def ask(port, key, model):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = f'{{"model": "{model}", "prompt": "Hi", "max_tokens": 1}}'
    connection.request("POST", "/v1/completions", body, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def send(port, key, method=b"POST", path=b"/v1/completions", model=b"m0"):
    """Bytes that no client library would send. Whether they are answered, or the connection is closed, is not asked here."""
    # Bytes that are no UTF-8 become halves of surrogate pairs, which JSON can write and no string may hold.
    body = json.dumps({"model": model.decode(errors="surrogateescape"), "prompt": "Hi", "max_tokens": 1}).encode()
    head = (b"%b %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
            b"Authorization: Bearer %b\r\n\r\n" % (method, path, len(body), key))
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        try:
            connection.sendall(head + body)
            while connection.recv(1 << 16):
                pass
        except ConnectionError:
            pass


# How a name is asked for.
WAYS = (
    lambda port, key, name: send(port, key, model=name),
    lambda port, key, name: send(port, key[:-1] + name),
    lambda port, key, name: send(port, name),
    lambda port, key, name: send(port, key, path=b"/v1/" + name),
    lambda port, key, name: send(port, key, method=b"GET", path=b"/v1/models/" + urllib.parse.quote(name).encode()),
    lambda port, key, name: send(port, key, method=name),
)


def strangers(port, key, rng):
    """Names that are in no list of the server's."""
    for at in range(STRANGERS):
        name = b"%b%012d%b" % (MARK, rng.randrange(10**12), SHAPES[at % len(SHAPES)])
        for way in WAYS:
            way(port, key.encode(), name)


def bounded(pages, key):
    """Figures of what names have added: of the pages before strangers came, after their first names, and after other ones."""
    before, first, other = map(series, pages)
    added = first - before
    return [
        figures.told("series, bytes", f"{len(before)}, {len(pages[0])}"),
        figures.at_most(f"series that {len(WAYS) * STRANGERS} requests of strangers add", len(added), len(WAYS) * PER_WAY_MAX),
        figures.exactly("of them not of routes, statuses and the project", sum(not one.startswith(EXPECTED) for one in added), 0),
        figures.exactly("series that as many others add", len(other - first), 0),
        figures.exactly("names of strangers on the page, and keys", sum(page.count(MARK) + page.count(key) for page in pages), 0),
    ]


def measure(server, owner, keys, models, scrapes):
    for key in keys:
        for model in models:
            status = ask(server.port, key, model)
            if status != 200:
                raise SystemExit(f"{model}: {status}")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    # Of those two the second knows that there was a first.
    pages = [[scrape(connection, owner)[1] for _ in range(2)][1]]
    for seed in range(2):
        strangers(server.port, owner, random.Random(seed))
        pages.append(scrape(connection, owner)[1])
    took_ms = [1000 * scrape(connection, owner)[0] for _ in range(scrapes)]
    p99 = figures.at_most("scrape, p99", figures.percentile(took_ms, 99), SCRAPE_MS_MAX, " ms")
    # A smaller server can miss the bar, but not meet it.
    enough = not p99.met or len(keys) >= PROJECTS and len(models) >= MODELS
    return [*bounded(pages, owner.encode()), figures.told("scrape, median", f"{statistics.median(took_ms):.2f} ms"),
            figures.decided(p99, enough)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--projects", type=int, default=PROJECTS)
    parser.add_argument("--models", type=int, default=MODELS)
    parser.add_argument("--scrapes", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        copies = [folder / f"m{at}.gguf" for at in range(arguments.models)]
        for copy in copies:
            copy.symlink_to(arguments.model.resolve())
        database = ["--database", folder / "rempart.db"]
        more = [*copies[1:], *database, "--kv-cache-mib", "64", "--project-metrics"]
        with Server(copies[0], folder / "log", arguments=more) as server:
            server.wait_ready()
            owner = next(line for line in server.log.read_text().splitlines() if re.fullmatch(r"\S{20,}", line))
            keys = []
            for at in range(arguments.projects):
                rempart("project", "create", *database, f"p{at}")
                keys.append(rempart("key", "create", *database, "--project", f"p{at}", "bench"))
            time.sleep(NOTICED_S)
            found = measure(server, owner, keys, [copy.stem for copy in copies], arguments.scrapes)
    print(figures.table(f"{arguments.projects} projects, {arguments.models} models", found), flush=True)
    return figures.status(found)


if __name__ == "__main__":
    sys.exit(main())
