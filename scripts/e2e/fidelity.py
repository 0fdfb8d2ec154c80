#!/usr/bin/env python3
"""Compare the running server with the reference: perplexity of a fixed text, and greedy tokens.

    python3 scripts/e2e/fidelity.py [MODEL ...]

The reference is float32 `transformers` on the same dequantised weights (scripts/fixtures/reference_models.py).  Each
rounding has its bars: perplexity within a share, and greedy tokens equal, except where the reference itself had another
token within some logits of its best: there ours may take that one, and the comparison goes on from the reference's own
tokens.  The default rounding may be further off at a few.
"""
import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import models  # noqa: E402
from lib import server  # noqa: E402

KNOWN = ("smollm2", "gemma3", "qwen2.5-coder")


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How activations, keys and values are held, and how far that may be from the reference."""

    options: tuple[str, ...]
    perplexity: float
    logits: float
    far: int = 0
    """Tokens of the 512 that the reference may have further below its best."""


ROUNDINGS = {
    # Keys and values in bf16 alone move a logit of Qwen2.5-Coder by 0.02, so that the order of sums, which is another one in each
    # instruction set, decides between tokens that are 0.03 apart: what the kernels compute is seen beside keys and values in f32.
    "int16": Rounding(("--activations", "int16", "--kv-dtype", "f32"), perplexity=0.0002, logits=0.01),
    "int16-bf16-kv": Rounding(("--activations", "int16", "--kv-dtype", "bf16"), perplexity=0.001, logits=0.05),
    "bf16-kv": Rounding(("--activations", "int8", "--kv-dtype", "bf16"), perplexity=0.005, logits=0.35),
    "default": Rounding((), perplexity=0.0075, logits=0.4, far=4),
}


@dataclasses.dataclass
class Perplexity:
    ours: float
    reference: float
    tokens: int
    mean_difference: float
    largest_difference: float

    @property
    def off(self):
        """Relative difference."""
        return abs(self.ours / self.reference - 1)

    def __str__(self):
        return (f"perplexity {self.ours:.4f}, reference {self.reference:.4f} ({100 * self.off:.4f} % off) on "
                f"{self.tokens} tokens; log probabilities differ by {self.mean_difference:.5f} on average, "
                f"{self.largest_difference:.3f} at most")


@dataclasses.dataclass
class Divergence:
    """Where ours took another token; `gap` is how far the reference had it below its best, None if not near at all."""

    prompt: int
    step: int
    expected: int
    got: int
    gap: float | None

    def near(self, rounding):
        return self.gap is not None and self.gap < rounding.logits


def far(divergences, rounding):
    """The divergences that count against the rounding."""
    return [one for one in divergences if not one.near(rounding)]


def load_fixture(name):
    return json.loads((HERE / "fixtures" / f"{name}.json").read_text(encoding="utf-8"))


def perplexity(running, fixture):
    """Scores the reference's windows through /v1/completions with `echo`."""
    reference = fixture["perplexity"]
    name = running.model_name()
    ours, theirs = [], []
    for window, logprobs in zip(reference["windows"], reference["logprobs"], strict=True):
        body = {"model": name, "prompt": window, "max_tokens": 1, "echo": True, "logprobs": 0, "temperature": 0}
        scored = running.post("/v1/completions", body)["choices"][0]["logprobs"]["token_logprobs"]
        ours += scored[1:len(window)]
        theirs += logprobs
    if len(ours) != reference["scored_tokens"]:
        raise server.ServerError(f"{len(ours)} tokens were scored instead of {reference['scored_tokens']}")
    differences = [abs(one - other) for one, other in zip(ours, theirs, strict=True)]
    return Perplexity(math.exp(-sum(ours) / len(ours)), reference["perplexity"], len(ours),
                      sum(differences) / len(differences), max(differences))


def greedy(running, fixture):
    """All divergences over the prompts, which are asked all at once; empty when every token is the reference's."""
    name, cases = running.model_name(), fixture["greedy"]
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        found = list(pool.map(lambda numbered: list(_greedy_case(running, name, *numbered)), enumerate(cases)))
    return [divergence for divergences in found for divergence in divergences]


def _greedy_case(running, name, number, case):
    expected, done = case["tokens"], 0
    while done < len(expected):
        body = {"model": name, "prompt": case["prompt"] + expected[:done], "max_tokens": len(expected) - done,
                "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        got = running.post("/v1/completions", body)["choices"][0]["token_ids"]
        if len(got) != len(expected) - done:
            raise server.ServerError(f"{len(got)} tokens came back instead of {len(expected) - done}")
        wrong = next((at for at, pair in enumerate(zip(got, expected[done:])) if pair[0] != pair[1]), None)
        if wrong is None:
            return
        step = done + wrong
        gap = dict(case["rivals"][step]).get(got[wrong])
        yield Divergence(number, step, expected[step], got[wrong], gap)
        done = step + 1


def report(name, rounding, running):
    """Prints both comparisons; returns whether the bars are met."""
    fixture, bars, title = load_fixture(name), ROUNDINGS[rounding], f"{name}, {rounding}"
    score = perplexity(running, fixture)
    print(f"{title}: {score}", flush=True)
    divergences = greedy(running, fixture)
    tokens = sum(len(case["tokens"]) for case in fixture["greedy"])
    print(f"{title}: {tokens - len(divergences)} of {tokens} greedy tokens equal", flush=True)
    for one in divergences:
        print(f"  prompt {one.prompt}, step {one.step}: {one.got} instead of {one.expected}, "
              f"gap {one.gap} ({'near' if one.near(bars) else 'FAR'})", flush=True)
    print(f"{title}: {len(far(divergences, bars))} far off, at most {bars.far} may be", flush=True)
    return score.off <= bars.perplexity and len(far(divergences, bars)) <= bars.far


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *KNOWN], metavar="MODEL", help=f"of {', '.join(KNOWN)}")
    parser.add_argument("--rounding", choices=ROUNDINGS, help="one of the roundings (default: each)")
    parser.add_argument("--rempart-arg", action="append", default=[], metavar="ARG", help="as in bench-peers; repeatable")
    arguments = parser.parse_args()
    good = True
    for name in arguments.names or KNOWN:
        path = models.fetch(name, models.default_directory())
        for rounding in [arguments.rounding] if arguments.rounding else ROUNDINGS:
            with contextlib.ExitStack() as stack:
                log = server.REPO / ".cache" / "e2e" / f"fidelity-{name}-{rounding}.log"
                options = [*ROUNDINGS[rounding].options, *arguments.rempart_arg]
                running = stack.enter_context(server.Server(path, log, arguments=options))
                running.wait_ready(300)
                good &= report(name, rounding, running)
    return 0 if good else 1


if __name__ == "__main__":
    server.end_on_sigterm()
    try:
        sys.exit(main())
    except (models.FetchError, server.ServerError) as problem:
        sys.exit(f"error: {problem}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
