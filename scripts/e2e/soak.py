#!/usr/bin/env python3
"""Many clients for minutes, some of which hang up in the middle: nothing may fail, leak or stay behind.

    python3 scripts/e2e/soak.py --clients 64 --seconds 300 --cancel 0.3

Prints requests, cancels, failures, tokens a second and resident memory; the exit status is 1 unless there are no
failures, the gauges (running, waiting, KV cache) return to 0, and memory stays flat after the warm-up.
"""
import argparse
import asyncio
import dataclasses
import pathlib
import random
import statistics
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import models  # noqa: E402
from lib import server, stream  # noqa: E402

WORDS = "river lamp paper stone garden window letter market engine winter bridge copper salt meadow violin harbour".split()
# The key-value cache takes its memory as it is written: one that is full before the warm-up ends.
CACHE_MIB = 256
# The share of the time that is warm-up: caches fill, the allocator finds its size.
WARM_UP = 0.3
# How much the end may lie above the end of the warm-up.
GROWTH_RELATIVE, GROWTH_BYTES = 1.03, 16 << 20


@dataclasses.dataclass
class Outcome:
    seconds: float
    finished: int = 0
    cancelled: int = 0
    tokens: int = 0
    failures: list = dataclasses.field(default_factory=list)
    memory: list = dataclasses.field(default_factory=list)
    gauges: dict = dataclasses.field(default_factory=dict)

    def plateaus(self):
        """Median resident bytes of the first and of the last quarter after the warm-up."""
        steady = self.memory[int(len(self.memory) * WARM_UP):]
        quarter = max(1, len(steady) // 4)
        return statistics.median(steady[:quarter]), statistics.median(steady[-quarter:])

    @property
    def is_flat(self):
        first, last = self.plateaus()
        return last <= first * GROWTH_RELATIVE + GROWTH_BYTES

    @property
    def is_idle(self):
        return bool(self.gauges) and all(value == 0 for value in self.gauges.values())

    def __str__(self):
        first, last = self.plateaus()
        return (f"{self.finished + self.cancelled} requests in {self.seconds:.0f} s ({self.cancelled} cancelled), "
                f"{len(self.failures)} failures, {self.tokens / self.seconds:.1f} tokens/s received; resident "
                f"{first / 1e6:.1f} MB after warm-up, {last / 1e6:.1f} MB at the end, {max(self.memory) / 1e6:.1f} MB "
                f"at most; afterwards {self.gauges}")


def request(rng, name):
    """A prompt of its own length, sometimes with a beginning that others share."""
    start = "You are a careful assistant who answers in one sentence. " * rng.choice((0, 0, 1, 4))
    prompt = start + " ".join(rng.choices(WORDS, k=rng.randint(3, 120)))
    return {"model": name, "prompt": prompt, "max_tokens": rng.randint(4, 48), "temperature": rng.choice((0.0, 0.8)),
            "seed": rng.randrange(1 << 30), "ignore_eos": True}


async def client(port, name, rng, cancel_share, deadline, outcome):
    while time.monotonic() < deadline:
        body = request(rng, name)
        cancel_after = rng.randint(1, body["max_tokens"]) if rng.random() < cancel_share else None
        try:
            answer = await asyncio.wait_for(
                stream.stream(port, "/v1/completions", body, cancel_after=cancel_after), 280)
        except (stream.StreamError, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
            outcome.failures.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.2)
            continue
        outcome.tokens += len(answer.pieces)
        outcome.cancelled += answer.cancelled
        outcome.finished += not answer.cancelled


async def watch(running, deadline, outcome):
    while time.monotonic() < deadline:
        outcome.memory.append(running.resident_bytes())
        await asyncio.sleep(0.5)


async def load(running, clients, seconds, cancel_share, seed):
    outcome = Outcome(seconds)
    name = running.model_name()
    began = time.monotonic()
    deadline = began + seconds
    await asyncio.gather(
        watch(running, deadline, outcome),
        *(client(running.port, name, random.Random(f"{seed}/{number}"), cancel_share, deadline, outcome)
          for number in range(clients)))
    outcome.seconds = time.monotonic() - began
    return outcome


def soak(running, clients=64, seconds=300, cancel_share=0.3, seed=1):
    """The whole run, with the gauges after it."""
    outcome = asyncio.run(load(running, clients, seconds, cancel_share, seed))
    outcome.gauges = running.wait_idle()
    return outcome


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", choices=sorted(models.MODELS))
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--cancel", type=float, default=0.3, help="share of requests that are given up half-way")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    path = models.fetch(arguments.model, models.default_directory())
    log = server.REPO / ".cache" / "e2e" / "soak.log"
    with server.Server(path, log, arguments=["--kv-cache-mib", CACHE_MIB]) as running:
        running.wait_ready(300)
        outcome = soak(running, arguments.clients, arguments.seconds, arguments.cancel, arguments.seed)
    print(outcome)
    for failure in outcome.failures[:10]:
        print(f"  {failure}")
    return 0 if not outcome.failures and outcome.is_flat and outcome.is_idle else 1


if __name__ == "__main__":
    server.end_on_sigterm()
    try:
        sys.exit(main())
    except (models.FetchError, server.ServerError) as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
