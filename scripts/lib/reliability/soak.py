"""R9: all endpoints that generate, for a long time, with clients that go away. Nothing may fail, and nothing may grow."""
import asyncio
import collections
import dataclasses
import math
import random
import statistics
import time

from lib import server, talk
from lib.reliability import figures, trend
from lib.reliability.disconnects import Scrape
from lib.reliability.programs import LOGS, MIB, Hollow, sample

STEP_MS = 5
CLIENTS = 8
SLOPE_MIB_PER_H_MAX = 1
WARM_UP = 0.2
# What is bounded and still fills looks like a leak to a shorter run.
TELLS_S_MIN = 600
SAMPLE_S = 1.0
SCRAPE_EVERY = 5
# Threads that wait for blocking work end after 10 s without any.
QUIET_S_MAX = 30
# Few, so that the prefix cache knows them all when the warm-up ends.
PROMPTS = 64
HANG_UP_STREAM, HANG_UP_WHOLE = 0.25, 0.1
TOKENS_MAX = 48
REQUEST_S_MAX = 120
WORDS = "river lamp paper stone garden window letter market engine winter bridge copper salt meadow violin harbour".split()
# What fills up over time fills up within the warm-up: answers that are kept, and on a real model the cache.
KEPT = ["--responses-bytes-max", MIB, "--queue-requests-max", 4 * CLIENTS]
REAL = ["--kv-cache-mib", 64]


@dataclasses.dataclass
class Soaked:
    """What clients met, by endpoint and kind, and what the process held meanwhile."""

    asked: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    errors: list = dataclasses.field(default_factory=list)
    times: list = dataclasses.field(default_factory=list)
    samples: list = dataclasses.field(default_factory=list)


async def once(port, name, rng, soaked):
    """One request, read to its end or given up on the way."""
    path, stream = rng.choice(talk.ENDPOINTS), rng.random() < 0.5
    leaves = rng.random() < (HANG_UP_STREAM if stream else HANG_UP_WHOLE)
    text = " ".join(random.Random(rng.randrange(PROMPTS)).choices(WORDS, k=24))
    exchange = None
    body = talk.asked(path, name, text, rng.randint(4, TOKENS_MAX), stream)
    soaked.asked[path, "given up" if leaves else "streamed" if stream else "whole"] += 1
    if leaves and not stream:
        try:
            async with asyncio.timeout(rng.uniform(0.005, 0.1)):
                exchange = await talk.Exchange.begin(port, path, body)
        except TimeoutError:
            return
    exchange = exchange or await talk.Exchange.begin(port, path, body)
    try:
        if exchange.status != 200:
            raise talk.TalkError(f"{path}: {exchange.status}: {await exchange.document()}")
        if not stream:
            await exchange.document()
            return
        seen, last = 0, rng.randint(1, 12) if leaves else math.inf
        async for _ in exchange.pieces():
            seen += 1
            if seen >= last:
                return
        if not exchange.whole:
            raise talk.TalkError(f"{path}: a stream without its end")
    finally:
        exchange.hang_up()


async def client(port, name, rng, end, soaked):
    while time.monotonic() < end:
        try:
            async with asyncio.timeout(REQUEST_S_MAX):
                await once(port, name, rng, soaked)
        except (OSError, EOFError, ValueError, TimeoutError, talk.TalkError) as error:
            soaked.errors.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.2)
        await asyncio.sleep(rng.uniform(0, 0.05))


async def watch(running, end, soaked):
    """Samples the process, and reads its metrics as Prometheus would, which is when histograms are emptied."""
    scrape, began = Scrape(running.port), time.monotonic()
    while time.monotonic() < end:
        if len(soaked.samples) % SCRAPE_EVERY == 0:
            scrape()
        soaked.times.append((time.monotonic() - began) / 3600)
        soaked.samples.append(sample(running))
        await asyncio.sleep(SAMPLE_S)


async def load(running, seconds, soaked):
    name, end = running.model_name(), time.monotonic() + seconds
    await asyncio.gather(watch(running, end, soaked),
                         *(client(running.port, name, random.Random(number), end, soaked) for number in range(CLIENTS)))


def idle(running, least=None):
    """A sample of a server whose clients have gone: the first that is no more than `least`, or what is there at last."""
    deadline = time.monotonic() + QUIET_S_MAX
    while True:
        one = sample(running)
        few = one.files <= least.files and one.threads <= least.threads if least else time.monotonic() > deadline - QUIET_S_MAX / 2
        if few or time.monotonic() > deadline:
            return one
        time.sleep(0.2)


def quarters(values):
    """Medians of the first and the last quarter."""
    part = max(1, len(values) // 4)
    return statistics.median(values[:part]), statistics.median(values[-part:])


def growth(soaked, seconds):
    """Figures of what may not grow, under load, after the warm-up."""
    skip = int(WARM_UP * len(soaked.samples))
    times, steady = soaked.times[skip:], soaked.samples[skip:]
    slope = trend.slope(times, [one.resident_bytes / MIB for one in steady])
    met = slope.at_most(SLOPE_MIB_PER_H_MAX) if seconds >= TELLS_S_MIN else None
    found = [figures.Figure("resident memory, slope", f"{slope.rate:+.2f} +/- {slope.half_width:.2f} MiB/h",
                            f"<= {SLOPE_MIB_PER_H_MAX} MiB/h", met, slope.rate),
             figures.told("resident memory, first and last quarter",
                          " and ".join(f"{value / MIB:.1f}" for value in quarters([s.resident_bytes for s in steady])) + " MiB")]
    for name, values in (("open files", [s.files for s in steady]), ("threads", [s.threads for s in steady])):
        first, last = quarters(values)
        found.append(figures.at_most(f"{name} under load, last quarter less first", last - first, 1))
    return found


def started(programs):
    """The hollow server, or one of a real model where there is one."""
    if programs.model is None:
        return Hollow(programs.hollow, STEP_MS, "soak.log", KEPT)
    return server.Server(programs.model, LOGS / "soak.log", arguments=[*KEPT, *REAL], executable=programs.rempart)


def check(programs, seconds=1800):
    """Figures of R9."""
    with started(programs) as running:
        running.wait_ready(300)
        # Once of each kind: what a first request starts is there before the counting.
        asyncio.run(load(running, 3, Soaked()))
        before, soaked = idle(running), Soaked()
        asyncio.run(load(running, seconds, soaked))
        gauges, after = running.wait_idle(), idle(running, before)
    kinds = collections.Counter()
    for (_, kind), count in soaked.asked.items():
        kinds[kind] += count
    fewest = min(soaked.asked[path, kind] for path in talk.ENDPOINTS for kind in kinds) if soaked.asked else 0
    return [
        figures.told("requests", ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
                     + f"; of each kind and endpoint {fewest} or more"),
        figures.exactly("errors", len(soaked.errors), 0),
        *growth(soaked, seconds),
        figures.at_most("open files, idle, more than before", after.files - before.files, 0),
        figures.at_most("threads, idle, more than before", after.threads - before.threads, 0),
        figures.exactly("gauges that are not 0 afterwards", sum(value != 0 for value in gauges.values()), 0),
        *(figures.told("error", cause) for cause in sorted(set(soaked.errors))[:5]),
    ]
