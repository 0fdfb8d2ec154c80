#!/usr/bin/env python3
"""Load on an OpenAI-compatible server of this machine: many clients, streamed answers, timed as the clients see them.

    python3 benches/load.py --port 8080 --clients 1,8,32 --prompt-tokens 32,512 --max-tokens 128
    python3 benches/load.py --port 8080 --clients 8 --prompt-tokens 32 --shared-prefix 1024 --pid 1234 --json out.json

Each client sends its next request when the last one has ended; with --rate, requests arrive at random times instead.
Every prompt begins with a number of its own, so that no prefix cache can answer it; with --shared-prefix the common
text comes first. Prompt lengths are calibrated against the server's own usage.prompt_tokens. Exit status 1 where a request
failed, and no bar else. Standard library only.
"""
import argparse
import asyncio
import dataclasses
import itertools
import json
import os
import pathlib
import random
import statistics
import sys
import time

REPO = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "scripts"))
from lib import stream  # noqa: E402

# Common words: nearly every tokenizer has one token for each, which makes lengths predictable.
WORDS = """time year people way day man thing woman life child world school state family student group country problem
hand part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name president team minute idea body information back
parent face others level office door health person art war history party result change morning reason research girl
guy moment air teacher force education""".split()
ERRORS = (stream.StreamError, OSError, EOFError, asyncio.TimeoutError, ValueError)
PERCENTILES = (50, 95, 99)


@dataclasses.dataclass(frozen=True)
class Target:
    """A server, and what every request to it says."""

    port: int
    model: str
    endpoint: str = "completions"
    extra: dict = dataclasses.field(default_factory=lambda: {"ignore_eos": True})
    timeout_s: float = 600.0

    async def ask(self, prompt, max_tokens):
        """One streamed request; a failure is an answer too: its text."""
        body = {"model": self.model, "max_tokens": max_tokens, "temperature": 0} | self.extra
        if self.endpoint == "chat":
            path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": prompt}]
        else:
            path, body["prompt"] = "/v1/completions", prompt
        try:
            answer = await asyncio.wait_for(stream.stream(self.port, path, body), self.timeout_s)
        except ERRORS as error:
            return f"{type(error).__name__}: {error}"
        return answer if answer.stamps and answer.completion_tokens else "the answer held no token or no usage"


@dataclasses.dataclass(frozen=True)
class Load:
    """How many clients ask for what; `rate` is in arrivals a second."""

    clients: int
    prompt_tokens: int
    requests: int
    max_tokens: int = 128
    shared_prefix: int = 0
    rate: float | None = None


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How many words make a prompt of so many tokens."""

    tokens_per_word: float
    tokens_fixed: float

    @classmethod
    async def probe(cls, target, rng, words=(40, 240)):
        """Asks the server twice; what does not grow with the words is the number in front and the chat template."""
        counts = []
        for count in words:
            answer = await target.ask(prompt_text(rng, count), 2)
            if isinstance(answer, str):
                raise stream.StreamError(answer)
            counts.append(answer.prompt_tokens)
        slope = (counts[1] - counts[0]) / (words[1] - words[0])
        return cls(slope, counts[0] - slope * words[0])

    def words(self, tokens):
        return max(1, round((tokens - self.tokens_fixed) / self.tokens_per_word))


def prompt_text(rng, words, prefix=""):
    return f"{prefix}{rng.randrange(10**6, 10**7)} {' '.join(rng.choices(WORDS, k=words))}"


def percentile(values, share):
    """With linear interpolation."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(values):
    """Percentiles, mean and maximum; None without values."""
    if not values:
        return None
    found = {f"p{share}": percentile(values, share) for share in PERCENTILES}
    return found | {"mean": statistics.fmean(values), "max": max(values)}


def peak_bytes(pid):
    """The most memory that the process has held so far."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


class Cores:
    """Cores that the client, the server and everything else used since this was made."""

    def __init__(self, pid=None):
        self.pid, self.began = pid, time.monotonic()
        self.at_start = self._used_s()

    def _used_s(self):
        """Seconds of processor time: everything on the machine, the server, this process."""
        with open("/proc/stat", encoding="ascii") as stat:
            user, nice, system, _, _, irq, soft_irq, steal = map(int, stat.readline().split()[1:9])
        ticks = os.sysconf("SC_CLK_TCK")
        server_s = 0.0
        if self.pid:
            text = pathlib.Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii", errors="replace")
            server_s = sum(map(int, text.rsplit(")", 1)[1].split()[11:13])) / ticks
        return (user + nice + system + irq + soft_irq + steal) / ticks, server_s, time.process_time()

    def used(self):
        """A quiet machine has `elsewhere_cores` near 0 (without a pid, the server counts as elsewhere)."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        everything, server, client = (now - then for now, then in zip(self._used_s(), self.at_start))
        used = {"server_cores": server, "client_cores": client, "elsewhere_cores": max(everything - server - client, 0)}
        return {name: value / seconds for name, value in used.items()}


async def closed(target, load, prompts):
    """Answers of `load.clients` that each ask again as soon as they are answered."""
    answers, queue = [], iter(prompts)

    async def client():
        for prompt in queue:
            answers.append(await target.ask(prompt, load.max_tokens))

    await asyncio.gather(*(client() for _ in range(load.clients)))
    return answers


async def arriving(target, load, prompts, rng):
    """Answers to requests that arrive as a Poisson process, at most `load.clients` of them at a time."""
    free = asyncio.Semaphore(load.clients)

    async def one(prompt):
        async with free:
            return await target.ask(prompt, load.max_tokens)

    tasks = []
    for prompt in prompts:
        tasks.append(asyncio.create_task(one(prompt)))
        await asyncio.sleep(rng.expovariate(load.rate))
    return await asyncio.gather(*tasks)


async def run(target, load, lengths, rng, pid=None):
    """Puts the load on the server and returns what the clients saw; the same rng state asks the same prompts."""
    prefix = ""
    if load.shared_prefix:
        prefix = " ".join(rng.choices(WORDS, k=round(load.shared_prefix / lengths.tokens_per_word))) + "\n\n"
    words = lengths.words(load.prompt_tokens)
    prompts = [prompt_text(rng, words, prefix) for _ in range(load.requests)]
    cores, began = Cores(pid), time.perf_counter()
    answers = await (arriving(target, load, prompts, rng) if load.rate else closed(target, load, prompts))
    seconds = time.perf_counter() - began
    result = summary(load, answers, seconds) | cores.used()
    if pid:
        result["peak_bytes"] = peak_bytes(pid)
    return result


def summary(load, answers, seconds):
    """Rates over the whole time; times of the answers that came, in milliseconds."""
    good = [answer for answer in answers if not isinstance(answer, str)]
    failures = [answer for answer in answers if isinstance(answer, str)]
    output = sum(answer.completion_tokens for answer in good)
    prompt = sum(answer.prompt_tokens for answer in good)
    gaps = [later - sooner for answer in good for sooner, later in itertools.pairwise(answer.stamps)]
    between = [1 / answer.tokens_per_s for answer in good if answer.tokens_per_s > 0]
    result = dataclasses.asdict(load) | {
        "failed": len(failures),
        "failures": sorted(set(failures))[:3],
        "seconds": seconds,
        "prompt_tokens_mean": prompt / max(len(good), 1),
        "completion_tokens_mean": output / max(len(good), 1),
        "cached_tokens_mean": sum(answer.cached_tokens or 0 for answer in good) / max(len(good), 1),
        "output_tokens_per_s": output / seconds,
        "requests_per_s": len(good) / seconds,
    }
    times = {"ttft_ms": [answer.first_token_s for answer in good], "itl_ms": gaps, "tpot_ms": between}
    return result | {name: spread([1e3 * value for value in values]) for name, values in times.items()}


def line(result):
    """One line for a person."""
    shared = f" after {result['shared_prefix']} shared" if result["shared_prefix"] else ""
    head = (f"{result['clients']:>3} x {result['prompt_tokens']}{shared}: {result['output_tokens_per_s']:.1f} output "
            f"tokens/s")
    if result["ttft_ms"]:
        head += f", TTFT p50 {result['ttft_ms']['p50']:.0f} ms, p95 {result['ttft_ms']['p95']:.0f} ms"
    if result["tpot_ms"]:
        head += f", {result['tpot_ms']['p50']:.2f} ms a token"
    head += (f"; prompts of {result['prompt_tokens_mean']:.0f} tokens, {result['cached_tokens_mean']:.0f} cached; "
             f"cores: server {result['server_cores']:.2f}, client {result['client_cores']:.2f}, "
             f"others {result['elsewhere_cores']:.2f}")
    if "peak_bytes" in result:
        head += f"; peak {result['peak_bytes'] / 1e6:.0f} MB"
    return head + (f"; FAILED {result['failed']}: {result['failures']}" if result["failed"] else "")


def numbers(text):
    return [int(part) for part in text.split(",")]


def parser():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--port", type=int, default=8080, help="of 127.0.0.1: no other machine is ever loaded")
    options.add_argument("--model", default="default", help="name that the server knows the model by")
    options.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    options.add_argument("--clients", type=numbers, default="1,8,32", metavar="N,N")
    options.add_argument("--prompt-tokens", type=numbers, default="32,512", metavar="N,N")
    options.add_argument("--max-tokens", type=int, default=128)
    options.add_argument("--waves", type=float, default=2, help="requests = waves x clients (default: %(default)s)")
    options.add_argument("--requests-min", type=int, default=4)
    options.add_argument("--rate", type=float, help="arrivals a second, instead of clients that ask again at once")
    options.add_argument("--shared-prefix", type=int, default=0, metavar="TOKENS",
                         help="common beginning of all prompts")
    options.add_argument("--extra", type=json.loads, default={}, metavar="JSON", help="merged into every request")
    options.add_argument("--timeout", type=float, default=600, help="seconds a request may take")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--pid", type=int, help="the server's process, for its memory and its cores")
    options.add_argument("--json", type=pathlib.Path, metavar="FILE", help="append one JSON object a line")
    return options


async def measure(options):
    """Puts each load on the server in turn and returns how many requests failed."""
    extra = {"ignore_eos": True} | options.extra
    target = Target(options.port, options.model, options.endpoint, extra, options.timeout)
    rng = random.Random(options.seed)
    lengths = await Lengths.probe(target, rng)
    failed = 0
    for clients, tokens in itertools.product(options.clients, options.prompt_tokens):
        requests = max(options.requests_min, round(options.waves * clients))
        load = Load(clients, tokens, requests, options.max_tokens, options.shared_prefix, options.rate)
        result = await run(target, load, lengths, rng, options.pid)
        print(line(result), flush=True)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
        failed += result["failed"]
    return failed


def main():
    try:
        failed = asyncio.run(measure(parser().parse_args()))
    except ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    if failed:
        sys.exit(f"error: {failed} requests failed; why is said above")


if __name__ == "__main__":
    main()
