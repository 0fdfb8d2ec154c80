#!/usr/bin/env python3
"""Output tokens a second of eight clients against one: what continuous batching is worth.

    python3 scripts/e2e/batching.py [--clients 8] [--prompt-words 24] [--max-tokens 64]
"""
import argparse
import asyncio
import pathlib
import random
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import models  # noqa: E402
from lib import server, stream  # noqa: E402

RATIO_MIN = 3.0
WORDS = "time year people way day man thing woman life child world school state family student group country".split()


async def throughput(running, clients, requests, prompt_words, max_tokens):
    """Output tokens a second of `clients` that each make `requests`, one after the other."""
    name, rng = running.model_name(), random.Random(clients)
    tokens = 0

    async def one():
        nonlocal tokens
        for _ in range(requests):
            # The number in front keeps the prefix cache from helping.
            prompt = f"{rng.randrange(10**9)} " + " ".join(rng.choices(WORDS, k=prompt_words))
            body = {"model": name, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
            answer = await stream.stream(running.port, "/v1/completions", body)
            tokens += answer.completion_tokens

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return tokens / (time.perf_counter() - began)


def compare(running, clients=8, prompt_words=24, max_tokens=64, rounds=2):
    """(tokens/s alone, tokens/s together), each the best of `rounds`, taken in turns, after a warm-up."""
    asyncio.run(throughput(running, clients, 1, prompt_words, 8))
    alone = together = 0.0
    for _ in range(rounds):
        alone = max(alone, asyncio.run(throughput(running, 1, 3, prompt_words, max_tokens)))
        together = max(together, asyncio.run(throughput(running, clients, 2, prompt_words, max_tokens)))
    return alone, together


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", choices=sorted(models.MODELS))
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--prompt-words", type=int, default=24)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    path = models.fetch(arguments.model, models.default_directory())
    # Guessing ahead is for one or two answers alone: it would make the single client faster, not the batch.
    log, options = server.REPO / ".cache" / "e2e" / "batching.log", ["--speculative-tokens", 0]
    with server.Server(path, log, arguments=options) as running:
        running.wait_ready(300)
        alone, together = compare(running, arguments.clients, arguments.prompt_words, arguments.max_tokens,
                                  arguments.rounds)
    print(f"{arguments.model}: 1 client {alone:.1f} output tokens/s, {arguments.clients} clients {together:.1f}: "
          f"{together / alone:.2f} times")
    return 0 if together >= RATIO_MIN * alone else 1


if __name__ == "__main__":
    server.end_on_sigterm()
    try:
        sys.exit(main())
    except (models.FetchError, server.ServerError) as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
