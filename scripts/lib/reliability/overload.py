"""R8: ten times as many requests as the server can answer. Who is let in is served, and who is not learns it at once."""
import asyncio
import dataclasses
import random
import statistics
import time

from lib import talk
from lib.reliability import figures
from lib.reliability.programs import MIB, Hollow, sample

STEP_MS, PLACES, QUEUE, TOKENS = 20, 8, 16, 25
TIMES = 10
ALONE = 20
TTFT_RATIO_MAX = 2
REFUSED_MS_MAX = 50
FLAT_PERCENT_MAX = 5
# The share of the time in which memory may still find its size.
WARM_UP = 0.25
SAMPLE_S = 0.5
BODY = {"max_tokens": TOKENS, "ignore_eos": True}


@dataclasses.dataclass
class Met:
    """What one request met: an answer, with its time to the first token and to its end, or a refusal, with its time. In seconds."""

    status: int = 0
    first_s: float = 0.0
    ended_s: float = 0.0
    retry_after: bool = False
    error: str = ""


async def ask(port, number):
    body = talk.asked(talk.CHAT, "hollow", f"{number} comes.", TOKENS, stream=True) | BODY
    try:
        exchange = await talk.Exchange.begin(port, talk.CHAT, body)
        met = Met(exchange.status, retry_after=exchange.headers.get("retry-after", "").isdigit())
        if exchange.status == 200:
            async for _ in exchange.pieces():
                met.first_s = met.first_s or time.perf_counter() - exchange.started
            met.error = "" if exchange.whole else "a stream without its end"
        else:
            await exchange.document()
        met.ended_s = time.perf_counter() - exchange.started
        exchange.hang_up()
        return met
    except (OSError, EOFError, ValueError, talk.TalkError) as error:
        return Met(error=f"{type(error).__name__}: {error}")


async def flood(running, rate, seconds):
    """Requests at random times, this many a second, whatever becomes of the others; and samples of the process."""
    rng, tasks, samples = random.Random(1), [], []
    began = due = time.perf_counter()
    sampled = began
    while due < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(running.port, len(tasks))))
        due += rng.expovariate(rate)
        if time.perf_counter() >= sampled:
            samples.append(sample(running))
            sampled += SAMPLE_S
    return await asyncio.gather(*tasks), samples


async def alone(port):
    return [await ask(port, -number) for number in range(1, ALONE + 1)]


def bound_s(quiet):
    """What an admitted request may wait on a server that keeps its pace: as long as a full queue takes to become an empty one, and
    then its own first token. From requests that were alone."""
    service_s = statistics.median(met.ended_s for met in quiet)
    return QUEUE / PLACES * service_s + figures.percentile([met.first_s for met in quiet], 99)


def memory(samples):
    """How far, in percent, memory was from its median after the warm-up."""
    steady = [one.resident_bytes for one in samples[int(WARM_UP * len(samples)):]]
    middle = statistics.median(steady)
    return 100 * max(abs(value - middle) for value in steady) / middle, middle


def check(programs, seconds=60):
    """Figures of R8."""
    arguments = ["--sequences-max", PLACES, "--queue-requests-max", QUEUE, "--speculative-tokens", 0]
    with Hollow(programs.hollow, STEP_MS, "overload.log", arguments) as running:
        running.wait_ready()
        quiet = asyncio.run(alone(running.port))
        rate = TIMES * PLACES / statistics.median(met.ended_s for met in quiet)
        met, samples = asyncio.run(flood(running, rate, seconds))
    bound = bound_s(quiet)
    admitted = [one for one in met if one.status == 200]
    refused = [one for one in met if one.status in (429, 503)]
    broken = [one for one in met if one.error or one not in admitted and one not in refused]
    first = figures.percentile([one.first_s for one in admitted], 99)
    took = [1e3 * one.ended_s for one in refused]
    percent, middle = memory(samples)
    return [
        figures.told("asked, answered, refused", f"{len(met)} ({rate:.0f}/s), {len(admitted)}, {len(refused)}"),
        figures.exactly("neither answered nor refused", len(broken), 0),
        figures.told("alone: first token p99, whole answer", f"{1e3 * figures.percentile([m.first_s for m in quiet], 99):.0f} ms, "
                     f"{1e3 * statistics.median(m.ended_s for m in quiet):.0f} ms"),
        figures.at_most("admitted: first token p99, to the bound", first / bound, TTFT_RATIO_MAX,
                        more=f" ({first:.2f} s; bound {bound:.2f} s)"),
        figures.exactly("refused without Retry-After", sum(not one.retry_after for one in refused), 0),
        figures.at_most("refused after, p99", figures.percentile(took, 99), REFUSED_MS_MAX, " ms"),
        figures.told("refused after, median and slowest", f"{statistics.median(took):.1f} ms, {max(took):.0f} ms"),
        figures.at_most("resident memory, off its median", percent, FLAT_PERCENT_MAX, " %", f" of {middle / MIB:.1f} MiB"),
        *(figures.told("error", cause) for cause in sorted({one.error for one in broken})[:3]),
    ]
