"""R10: what HTTP, JSON, templates and the scheduler cost, over a model that computes nothing."""
import json
import selectors
import socket
import subprocess
import tempfile
import time

from lib import server, talk
from lib.reliability import arrivals, figures
from lib.reliability.disconnects import Scrape
from lib.reliability.programs import Hollow

REQUESTS_PER_S_MIN = 2000
CLIENTS, TOKENS = 32, 1
STREAMS, STEP_MS, ADDED_MS_MAX = 500, 50, 5
PER_S = 1000 // STEP_MS
COUNTED = ("rempart_step_duration_seconds_sum", "rempart_step_duration_seconds_count", "process_cpu_seconds_total",
           "vllm:generation_tokens_total")


class Caller:
    """A connection that stays open, on which the same request is sent as soon as the one before is answered."""

    def __init__(self, port, request):
        self.request, self.held = request, b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(request)

    def read(self):
        """Takes what has come; returns whether that was the end of an answer, and asks again then."""
        got = self.socket.recv(1 << 16)
        self.held += got
        head, parted, body = self.held.partition(b"\r\n\r\n")
        if not got or parted and not head.startswith(b"HTTP/1.1 200 "):
            raise server.ServerError(f"a request was not answered: {self.held[:300]!r}")
        length = int(head.lower().rpartition(b"content-length: ")[2].split(b"\r\n")[0]) if parted else 0
        if not parted or len(body) < length:
            return False
        if b'"completion_tokens":%d,' % TOKENS not in body:
            raise server.ServerError(f"not the answer that was asked for: {body[:300]!r}")
        self.held = b""
        self.socket.sendall(self.request)
        return True


def whole_answers(port, seconds):
    """Requests a second, and the share of a core that asking took. Each request is the same bytes, so that asking is cheap: what is
    measured is the server and not this program."""
    request = talk.raw(port, talk.CHAT, talk.asked(talk.CHAT, "hollow", "Say a letter.", TOKENS))
    answered = 0
    with selectors.DefaultSelector() as ready:
        for _ in range(CLIENTS):
            caller = Caller(port, request)
            ready.register(caller.socket, selectors.EVENT_READ, caller)
        began, used = time.perf_counter(), time.process_time()
        while (now := time.perf_counter()) < began + seconds:
            for key, _ in ready.select(1.0):
                answered += key.data.read()
        used = time.process_time() - used
        for key in list(ready.get_map().values()):
            key.fileobj.close()
    return answered / (now - began), used / (now - began)


def bench(programs, port, seconds):
    """What `rempart bench` found of so many streams, each as long as that takes."""
    with tempfile.NamedTemporaryFile(suffix=".json") as result:
        command = [programs.rempart, "bench", "--base-url", f"http://127.0.0.1:{port}/v1", "--concurrency", STREAMS, "--num-prompts",
                   STREAMS, "--random-input-len", 64, "--random-output-len", PER_S * seconds, "--ignore-eos", "--temperature", 0,
                   "--quiet", "--seed", 1, "--result", result.name]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise server.ServerError(f"rempart bench: {done.stdout}{done.stderr}")
        return json.load(result)


def streams(port, seconds):
    """Milliseconds between tokens, as they reach their clients' sockets; and what COUNTED grew by meanwhile."""
    before = Scrape(port)(*COUNTED)
    times = arrivals.streams(port, STREAMS, PER_S * seconds, STEP_MS / 1000)
    # On a connection of its own: the server has closed the one of before, which had nothing to say.
    after = Scrape(port)(*COUNTED)
    return arrivals.between(times), [now - then for now, then in zip(after, before, strict=True)]


def check(programs, seconds=20):
    """Figures of R10."""
    seconds = max(1, int(seconds))
    with Hollow(programs.hollow, 0, "http.log", ["--speculative-tokens", 0]) as running:
        running.wait_ready()
        whole_answers(running.port, 1)
        rate, share = whole_answers(running.port, seconds)
    room = ["--sequences-max", STREAMS, "--queue-requests-max", STREAMS, "--prepare-queue-max", STREAMS, "--step-tokens-max", 1 << 14,
            # All begin in a few steps, so that they are under way together for most of their time.
            "--itl-target-ms", 0, "--speculative-tokens", 0]
    with Hollow(programs.hollow, STEP_MS, "http-streams.log", room) as running:
        running.wait_ready()
        between, (took, steps, core, tokens) = streams(running.port, seconds)
        found = bench(programs, running.port, seconds)
    median, p99 = figures.percentile(between, 50), figures.percentile(between, 99)
    over = f"over {STEP_MS} ms"
    return [
        figures.at_least("chat requests/s, not streamed", rate, REQUESTS_PER_S_MIN),
        figures.told("their client took, of a core", f"{share:.2f}"),
        figures.at_most(f"p99 between tokens at the clients' sockets, {over}", p99 - STEP_MS, ADDED_MS_MAX, " ms"),
        figures.told(f"median between tokens at the clients' sockets, {over}", f"{median - STEP_MS:.1f} ms"),
        figures.told(f"the engine's steps, mean, {over}", f"{1e3 * took / steps - STEP_MS:.1f} ms"),
        figures.told("the server's processor time, of a burst", f"{1e3 * STREAMS * core / tokens:.1f} ms for {STREAMS} tokens"),
        figures.exactly("rempart bench: streams that were whole", found["completed"], STREAMS),
        figures.told(f"rempart bench: p99 between tokens, {over}", f"{found['p99_itl_ms'] - STEP_MS:.1f} ms"),
        figures.told(f"rempart bench: median between tokens, {over}", f"{found['p50_itl_ms'] - STEP_MS:.1f} ms"),
        figures.told("rempart bench: tokens/s", f"{found['output_throughput']:.0f} of {STREAMS * PER_S}"),
        figures.told("rempart bench took, of a core", f"{found['rempart_bench']['client_cpu_share']:.2f}"),
    ]
