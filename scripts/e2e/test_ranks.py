"""Processes that share a model out: what they answer, how they end, and what ends them."""
import contextlib
import os
import pathlib
import signal
import time

import openai
import pytest

from conftest import MODELS, READY_S, make_client, start

# Of the rank that hangs: longer than a machine may stop.
TIMEOUT_S = 10
# For what takes moments, on a machine that does other things.
SOON_S = 20

PROMPTS = (
    "The three laws of robotics are",
    "fn main() {\n    let numbers = vec![1, 2, 3];\n",
    "In the year 1815, after the battle of Waterloo,",
)


def children(pid):
    """The ranks of a server: its children, by number."""
    listed = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            listed += (task / "children").read_text().split()
    return sorted(int(child) for child in listed)


def ended(pid):
    """Whether a process is gone, or is a zombie that nobody has asked for."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] == "Z"


def wait_until(true, what, timeout_s=SOON_S):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"{what} took more than {timeout_s} s"
        time.sleep(0.05)


def greedy(client, model):
    """Texts of the likeliest tokens, which depend on nothing but the model."""
    texts = []
    for prompt in PROMPTS:
        answer = client.completions.create(model=model, prompt=prompt, max_tokens=48, temperature=0)
        texts.append(answer.choices[0].text)
    return texts


def ranks(of, log, *arguments, name="smollm2"):
    return start(name, f"ranks-{log}.log", ["--tensor-parallel", of, *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_ranks_answer_as_one_does(name):
    # Rounded to 16 bits, no token of these is as likely as another.
    exact = ["--activations", "int16", "--kv-dtype", "f32"]
    answers = []
    for of in (1, 2, 4):
        with ranks(of, f"{name}-{of}", *exact, name=name) as server, make_client(server) as client:
            server.wait_ready(READY_S)
            assert len(children(server.pid)) == of - 1
            answers.append(greedy(client, client.models.list().data[0].id))
    assert answers[1] == answers[0], "two ranks"
    assert answers[2] == answers[0], "four ranks"


def test_a_killed_rank_ends_requests_and_the_server():
    with ranks(3, "killed") as server, make_client(server) as client:
        server.wait_ready(READY_S)
        first, second = children(server.pid)
        model = client.models.list().data[0].id
        stream = client.completions.create(model=model, prompt=PROMPTS[0], max_tokens=1500, stream=True)
        next(iter(stream))
        os.kill(second, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises((openai.APIError, openai.APIConnectionError)):
            for _ in stream:
                pass
        assert time.monotonic() - began < SOON_S
        wait_until(lambda: server.process.poll() is not None, "the server's end")
        assert server.process.returncode != 0
        wait_until(lambda: ended(first), "the other rank's end")
        assert "a process that has a part of the model has ended" in server.log.read_text(encoding="utf-8")


def test_a_rank_that_is_killed_at_rest_ends_the_server():
    with ranks(2, "at-rest") as server:
        server.wait_ready(READY_S)
        os.kill(children(server.pid)[0], signal.SIGKILL)
        wait_until(lambda: server.process.poll() is not None, "the server's end")
        assert server.process.returncode != 0


def test_a_rank_that_hangs_is_given_up_in_time():
    with ranks(2, "hanging", "--rank-timeout-s", TIMEOUT_S) as server, make_client(server) as client:
        server.wait_ready(READY_S)
        rank = children(server.pid)[0]
        began = time.monotonic()
        os.kill(rank, signal.SIGSTOP)
        with pytest.raises(openai.APIError):
            client.completions.create(model=client.models.list().data[0].id, prompt=PROMPTS[0], max_tokens=9)
        assert TIMEOUT_S * 0.9 < time.monotonic() - began < TIMEOUT_S + SOON_S
        wait_until(lambda: server.process.poll() is not None, "the server's end")
        wait_until(lambda: ended(rank), "the rank's end")


def test_no_rank_outlives_the_server():
    with ranks(3, "orphans") as server:
        server.wait_ready(READY_S)
        alive = children(server.pid)
        assert len(alive) == 2
        os.kill(server.pid, signal.SIGKILL)
        for rank in alive:
            wait_until(lambda rank=rank: ended(rank), "a rank's end")


def test_ranks_end_with_a_signal_and_are_confined():
    with ranks(2, "confined", "--zero-egress", "--log-level", "trace") as server, make_client(server) as client:
        server.wait_ready(READY_S)
        rank = children(server.pid)[0]
        status = pathlib.Path(f"/proc/{rank}/status").read_text(encoding="utf-8")
        assert "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status
        model = client.models.list().data[0].id
        secret = "canary-7f3a"
        client.completions.create(model=model, prompt=secret, max_tokens=4)
        os.kill(server.pid, signal.SIGTERM)
        assert server.process.wait(SOON_S) == 0
        wait_until(lambda: ended(rank), "the rank's end")
        assert secret not in server.log.read_text(encoding="utf-8")


def test_a_signal_to_all_lets_the_last_answer_end():
    """As a service manager sends it, which knows of processes and not of ranks."""
    with ranks(2, "all") as server, make_client(server) as client:
        server.wait_ready(READY_S)
        model = client.models.list().data[0].id
        pieces = client.completions.create(model=model, prompt=PROMPTS[0], max_tokens=60, stream=True, extra_body={"ignore_eos": True})
        next(pieces)
        for pid in (*children(server.pid), server.pid):
            os.kill(pid, signal.SIGTERM)
        assert list(pieces)[-1].choices[0].finish_reason == "length"
        assert server.process.wait(SOON_S) == 0


def test_what_cannot_be_divided_is_refused_with_what_can():
    with ranks(10, "refused") as server:
        assert server.process.wait(READY_S) != 0
        log = server.log.read_text(encoding="utf-8")
        assert "num_attention_heads is 9" in log and "it fits 1, 2, 3, 4, 5, 6, 7, 8, 9 ranks" in log, log
