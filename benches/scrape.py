#!/usr/bin/env python3
"""How long a scrape of /metrics takes where 100 projects have asked 5 models, and whether strangers' names make it longer.

    python3 benches/scrape.py MODEL.gguf [--projects 100] [--models 5] [--scrapes 200]

Starts a server of its own on loopback with so many copies of a model, and a database in a temporary folder. Each project asks each
model once; then names that are in no list are asked: models, keys, paths and methods. Prints the series and bytes of the page
before and after, and the scrape's median and 99th percentile. Standard library only.
"""
import argparse
import http.client
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
from lib.server import Server, binary  # noqa: E402

STRANGERS = 500
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
    return sum(1 for line in page.splitlines() if line and not line.startswith(b"#"))


def ask(port, key, model, path="/v1/completions", method="POST"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = f'{{"model": "{model}", "prompt": "Hi", "max_tokens": 1}}'
    connection.request(method, path, body, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    status = connection.getresponse().status
    connection.close()
    return status


def strangers(port, key, rng):
    """Names that are in no list of the server's."""
    for _ in range(STRANGERS):
        name = f"{rng.randrange(10**12)}"
        ask(port, key, name)
        ask(port, f"{key[:-1]}{name[-1]}", "m0")
        ask(port, key, "m0", path=f"/v1/{name}")
        ask(port, key, "m0", method=f"X{name}")


def measure(server, owner, keys, models, scrapes):
    for key in keys:
        for model in models:
            status = ask(server.port, key, model)
            if status != 200:
                raise SystemExit(f"{model}: {status}")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    _, before = scrape(connection, owner)
    rounds = []
    for seed in range(2):
        strangers(server.port, owner, random.Random(seed))
        rounds.append(series(scrape(connection, owner)[1]))
    taken = sorted(scrape(connection, owner)[0] for _ in range(scrapes))
    print(f"{len(keys)} projects, {len(models)} models: {series(before)} series, {len(before)} bytes; after {4 * STRANGERS} requests of "
          f"strangers {rounds[0]} series, after as many others {rounds[1]}")
    print(f"scrape: median {1000 * statistics.median(taken):.2f} ms, p99 {1000 * taken[int(0.99 * (len(taken) - 1))]:.2f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--projects", type=int, default=100)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--scrapes", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        copies = [folder / f"m{at}.gguf" for at in range(arguments.models)]
        for copy in copies:
            copy.symlink_to(arguments.model.resolve())
        database = ["--database", folder / "rempart.db"]
        more = [*copies[1:], *database, "--kv-cache-mib", "64"]
        with Server(copies[0], folder / "log", arguments=more) as server:
            server.wait_ready()
            owner = next(line for line in server.log.read_text().splitlines() if re.fullmatch(r"\S{20,}", line))
            keys = []
            for at in range(arguments.projects):
                rempart("project", "create", *database, f"p{at}")
                keys.append(rempart("key", "create", *database, "--project", f"p{at}", "bench"))
            time.sleep(NOTICED_S)
            measure(server, owner, keys, [copy.stem for copy in copies], arguments.scrapes)


if __name__ == "__main__":
    main()
