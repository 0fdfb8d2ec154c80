"""R6: clients that are slow on purpose. They may make normal requests no slower, and are closed in time."""
import asyncio
import contextlib
import pathlib
import ssl
import statistics
import tempfile
import time

from lib import server, talk
from lib.authority import Authority
from lib.reliability import figures
from lib.reliability.programs import LOGS

CONNECTIONS = 200
DRIP_S = 1.0
RATIO_MAX = 1.5
CLOSED_S_MAX = 35
WAIT_S_MAX = 90
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


def half_of_a_hello():
    """The first half of what a TLS client says first."""
    arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(arriving, leaving, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = leaving.read()
    return hello[:len(hello) // 2]


class Slow:
    """One slow connection: what it says at first, whether a byte follows now and then, and whether TLS is below."""

    def __init__(self, first, drips, protected):
        self.first, self.drips, self.protected = first, drips, protected
        self.reader = self.writer = self.began = None

    async def open(self, port, trust):
        self.began = time.monotonic()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust if self.protected else None)
        self.writer.write(self.first)

    async def _drip(self):
        while True:
            await asyncio.sleep(DRIP_S)
            self.writer.write(b"a")

    async def until_closed(self):
        """Seconds from its beginning until the server closes it; infinite where that does not happen."""
        dripping = asyncio.create_task(self._drip()) if self.drips else None
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                # Reset counts as closed, too.
                with contextlib.suppress(OSError):
                    while await self.reader.read(4096):
                        pass
            return time.monotonic() - self.began
        except TimeoutError:
            return float("inf")
        finally:
            if dripping:
                dripping.cancel()
            self.writer.transport.abort()


KINDS = {
    "header drip": lambda: Slow(HEAD + b"X-Slow: ", drips=True, protected=True),
    "body drip": lambda: Slow(HEAD + b"Content-Length: 4096\r\n\r\n{", drips=True, protected=True),
    "silent": lambda: Slow(b"", drips=False, protected=False),
    "half a handshake": lambda: Slow(half_of_a_hello(), drips=False, protected=False),
}


async def beset(port, trust):
    """Slow connections, as many of each kind, all open. Returns for each its kind and the task that waits for its end."""
    made = [(kind, make()) for kind, make in KINDS.items() for _ in range(CONNECTIONS // len(KINDS))]
    await asyncio.gather(*(one.open(port, trust) for _, one in made))
    return [(kind, asyncio.create_task(one.until_closed())) for kind, one in made]


async def normal(running, name, requests):
    """The 99th percentile, in seconds, of whole answers of two tokens, one after another, each on a connection of its own."""
    took = []
    for number in range(requests):
        body = talk.asked(talk.CHAT, name, f"Say {number}.", 2)
        exchange = await talk.Exchange.begin(running.port, talk.CHAT, body, running.trust)
        answer = await exchange.document()
        if exchange.status != 200:
            raise server.ServerError(f"{exchange.status}: {answer}")
        took.append(time.perf_counter() - exchange.started)
    return figures.percentile(took, 99)


async def by_turns(running, turns, requests):
    """Percentiles without and with slow connections, by turns, and when those of the last turn were closed."""
    name = running.model_name()
    calm, slowed, waiting = [], [], []
    await normal(running, name, requests // 4)
    for turn in range(turns):
        calm.append(await normal(running, name, requests))
        waiting = await beset(running.port, running.trust)
        slowed.append(await normal(running, name, requests))
        if turn + 1 < turns:
            for _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)
    closed = {}
    for kind, task in waiting:
        closed[kind] = max(closed.get(kind, 0.0), await task)
    return calm, slowed, closed


def check(programs, turns=5, requests=200, arguments=(), closed_s_max=CLOSED_S_MAX):
    """Figures of R6, with a real model and TLS: `arguments` are further ones of the server."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        Authority(folder).sign("server")
        tls = ["--tls-certificate", folder / "server.pem", "--tls-key", folder / "server-key.pem"]
        with server.Server(programs.model, LOGS / "slow-clients.log", authority=folder / "ca.pem", executable=programs.rempart,
                           arguments=[*tls, *arguments]) as running:
            running.wait_ready(300)
            calm, slowed, closed = asyncio.run(by_turns(running, turns, requests))
    before, during = statistics.median(calm), statistics.median(slowed)
    return [
        figures.told("p99 of normal requests, each turn", " ".join(f"{1e3 * value:.0f}" for value in calm) + " ms"),
        figures.told(f"beside {CONNECTIONS} slow connections", " ".join(f"{1e3 * value:.0f}" for value in slowed) + " ms"),
        figures.at_most("ratio of the medians", during / before, RATIO_MAX),
        *(figures.at_most(f"the last is closed: {kind}", seconds, closed_s_max, " s") for kind, seconds in closed.items()),
    ]
