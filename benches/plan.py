#!/usr/bin/env python3
"""What `rempart plan` predicts of this machine, beside what `rempart bench engine` measures there, in turns.

    python3 benches/plan.py MODEL... [--turns 3] [--batch 1,8,32] [--repeat 3]

For each model the medians of both and their ratio: prompts of 512 tokens, and so many answers behind about 600. Nothing else
should run. Exit status 0: each prediction is within 25 % of what was measured; 1: one is not. Standard library only.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

REPO = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO / "scripts"))
from lib.reliability import figures  # noqa: E402
from lib.server import binary  # noqa: E402

PROMPT = 512
OFF_PERCENT_MAX = 25


def told(*arguments):
    done = subprocess.run([binary(), *arguments, "--json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def turn(model, rates, batches, repeat):
    """Adds one prediction and one measurement of each rate."""
    measured = told("bench", "engine", model, "--prompt-tokens", str(PROMPT), "--batch", batches, "--repeat", str(repeat))
    prompts = [result["prompt_tokens_per_s"] for result in measured["results"]]
    rates.setdefault("prompt", ([], []))[1].append(statistics.median(prompts))
    context = statistics.median_low(result["context_tokens"] for result in measured["results"])
    planned = told("plan", model, "--answer-context", str(context))
    for prompt in planned["prompts"]:
        if prompt["tokens"] == PROMPT:
            rates["prompt"][0].append(prompt["tokens_per_s"])
    answers = {answer["batch"]: answer["tokens_per_s"] for answer in planned["answers"]}
    for result in measured["results"]:
        predicted, got = rates.setdefault(f"{result['batch']} answers", ([], []))
        predicted.append(answers[result["batch"]])
        got.append(result["answer_tokens_per_s"])


def compared(name, predicted, got):
    """How far the median of the predictions is from that of the measurements."""
    predicted, got = statistics.median(predicted), statistics.median(got)
    off = 100 * (predicted / got - 1)
    told = f"{off:+.0f} % (predicted {predicted:.1f}, measured {got:.1f} tokens/s)"
    return figures.Figure(name, told, f"within {OFF_PERCENT_MAX} %", abs(off) <= OFF_PERCENT_MAX, off)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", default="1,8,32", help="answers made at one time; of 1, 8, 32 and 64")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each in a turn")
    arguments = parser.parse_args()
    found = []
    for model in arguments.models:
        rates = {}
        for _ in range(arguments.turns):
            turn(model, rates, arguments.batch, arguments.repeat)
        rows = [compared(name, *medians) for name, medians in rates.items()]
        print(figures.table(pathlib.Path(model).name, rows), flush=True)
        found += rows
    return figures.status(found)


if __name__ == "__main__":
    sys.exit(main())
