"""R7: clients that hang up in the middle of a stream. Nothing of theirs may stay behind, and their answers stop at once."""
import asyncio
import http.client
import re
import statistics
import time

from lib import server, talk
from lib.reliability import figures
from lib.reliability.programs import MIB, Hollow, sample

STEP_MS = 10
STOP_MS_MAX = STEP_MS + 100
GROWTH_MIB_MAX = 5
DISCONNECTS = 1000
# So many hang up in one moment: the last of them to stop is timed, and none of the others can have taken longer.
ROUND = 20
WARM_UP = 400
# Longer than any client here stays.
TOKENS = 3000
STOP_S_MAX = 20.0


class Scrape:
    """The metrics of a server, over one connection that stays open."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def __call__(self, *names):
        self.connection.request("GET", "/metrics")
        page = self.connection.getresponse().read().decode()
        return [sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", page, re.MULTILINE))
                for name in names]


async def streaming(port, number):
    """A stream that has brought two pieces."""
    path = talk.ENDPOINTS[number % len(talk.ENDPOINTS)]
    exchange = await talk.Exchange.begin(port, path, talk.asked(path, "hollow", f"Tell me of {number}.", TOKENS, stream=True))
    pieces = exchange.pieces()
    for _ in range(2):
        await anext(pieces)
    return exchange, pieces


async def one_round(running, scrape, numbers):
    """Seconds from the first of these clients to hang up until the engine runs nothing."""
    held = await asyncio.gather(*(streaming(running.port, number) for number in numbers))
    began = time.perf_counter()
    for exchange, _ in held:
        exchange.hang_up()
    # Sockets are closed by the loop.
    await asyncio.sleep(0)
    while any(scrape("vllm:num_requests_running", "vllm:num_requests_waiting")):
        if time.perf_counter() - began > STOP_S_MAX:
            raise server.ServerError(f"answers still run {STOP_S_MAX:.0f} s after their clients have gone")
        await asyncio.sleep(0.001)
    took = time.perf_counter() - began
    for _, pieces in held:
        await pieces.aclose()
    return took


async def disconnect(running, scrape, count):
    return [await one_round(running, scrape, range(at, at + ROUND)) for at in range(0, count, ROUND)]


def settled(running):
    """Resident bytes, the median of a second in which nobody asks anything."""
    found = []
    for _ in range(10):
        found.append(sample(running).resident_bytes)
        time.sleep(0.1)
    return statistics.median(found)


def check(programs, disconnects=DISCONNECTS, warm_up=WARM_UP):
    """Figures of R7, over all endpoints that stream, by turns."""
    used, aborted = "rempart_kv_blocks_used", "vllm:request_success_total{model_name=\"hollow\",engine=\"0\",finished_reason=\"abort\"}"
    with Hollow(programs.hollow, STEP_MS, "disconnects.log") as running:
        running.wait_ready()
        scrape = Scrape(running.port)
        before, = scrape(used)
        asyncio.run(disconnect(running, scrape, warm_up))
        aborted_before, = scrape(aborted)
        resident = settled(running)
        took = asyncio.run(disconnect(running, scrape, disconnects))
        growth = settled(running) - resident
        after, aborted_after = scrape(used, aborted)
    return [
        figures.exactly("answers that were given up", int(aborted_after - aborted_before), disconnects),
        figures.exactly("KV blocks in use afterwards", int(after), int(before)),
        figures.told("a round's last answer stops after, median", f"{1e3 * statistics.median(took):.0f} ms"),
        figures.at_most("the same, at most", 1e3 * max(took), STOP_MS_MAX, " ms"),
        figures.at_most("resident memory grows", growth / MIB, GROWTH_MIB_MAX, " MiB"),
    ]
