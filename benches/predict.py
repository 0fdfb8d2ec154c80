#!/usr/bin/env python3
"""What a prediction saves: a model repeats a file with one change, with and without the file as `prediction`, in turns.

    benches/predict.py http://127.0.0.1:8080 [--rounds 5]

Standard library only. The answers must be equal; the medians of both times and their ratio are printed.
"""
import argparse
import json
import statistics
import time
import urllib.request

CODE = '''class User:
    """A person who may log in."""

    def __init__(self, first_name, last_name, username):
        self.first_name = first_name
        self.last_name = last_name
        self.username = username

    def full_name(self):
        return f"{self.first_name} {self.last_name}"

    def initials(self):
        return self.first_name[0] + self.last_name[0]

    def greeting(self):
        return f"Hello, {self.full_name()}, you are logged in as {self.username}."
'''
ASK = ("Replace the attribute `username` by `email`. Answer with the whole file again, and with nothing else.\n\n" + CODE)


def answer(root, model, prediction):
    """The text, its tokens, those of the prediction that came true, and the seconds it took."""
    body = {"model": model, "messages": [{"role": "user", "content": ASK}], "temperature": 0, "max_tokens": 300}
    if prediction:
        body["prediction"] = {"type": "content", "content": prediction}
    request = urllib.request.Request(f"{root}/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=300) as response:
        told = json.load(response)
    took = time.perf_counter() - began
    usage = told["usage"]
    accepted = usage["completion_tokens_details"]["accepted_prediction_tokens"]
    return told["choices"][0]["message"]["content"], usage["completion_tokens"], accepted, took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with urllib.request.urlopen(f"{arguments.root}/v1/models", timeout=10) as response:
        model = json.load(response)["data"][0]["id"]
    times = {"plain": [], "predicted": []}
    answer(arguments.root, model, None)
    for _ in range(arguments.rounds):
        plain = answer(arguments.root, model, None)
        predicted = answer(arguments.root, model, CODE)
        assert plain[0] == predicted[0], "a prediction changed the answer"
        times["plain"].append(plain[3])
        times["predicted"].append(predicted[3])
    plain_s, predicted_s = (statistics.median(times[key]) for key in ("plain", "predicted"))
    print(f"{model}: {plain[1]} tokens, {predicted[2]} of them predicted")
    print(f"{plain_s:.2f} s without, {predicted_s:.2f} s with: {plain_s / predicted_s:.2f} times as fast")


if __name__ == "__main__":
    main()
