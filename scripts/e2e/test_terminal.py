"""`rempart top`, `rempart chat` and `rempart bench` at a terminal of their own, against a real server."""

import json
import os
import signal
import subprocess
import time

import pytest
from lib import server
from terminal import Terminal


@pytest.fixture(scope="module")
def serving(module_server):
    return module_server("smollm2", "terminal.log")


@pytest.fixture
def at_terminal(serving):
    """Starts a command at a terminal of its own, on the server."""
    started = []

    def start(command, *arguments, **environment):
        typed = [server.binary(), command, "--base-url", f"{serving.root}/v1", *arguments]
        started.append(Terminal([str(part) for part in typed], {**os.environ, **environment}))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


def run(serving, command, *arguments, typed=None):
    line = [server.binary(), command, "--base-url", f"{serving.root}/v1", *arguments]
    return subprocess.run([str(part) for part in line], input=typed, capture_output=True, text=True, timeout=120, check=False)


def test_top_shows_the_server_and_leaves_the_terminal_as_it_was(at_terminal):
    top = at_terminal("top", "--interval", "0.5")
    top.wait_for("rempart top")
    top.wait_for("ready")
    top.wait_for("OUT TOK/S")
    top.type("\t")
    top.wait_for("no_database")
    top.type("?")
    top.wait_for("time to the first token")
    top.type("q")
    top.ends_with(0)


def test_a_signal_leaves_the_terminal_as_it_was(at_terminal):
    top = at_terminal("top", "--interval", "0.5")
    top.wait_for("ready")
    top.process.send_signal(signal.SIGTERM)
    top.ends_with(0)


def test_top_once_counts_what_the_server_counts(serving):
    once = run(serving, "top", "--once", "--interval", "0.2")
    assert once.returncode == 0, once.stderr
    assert "ready" in once.stdout and "TTFT p95" in once.stdout and "\x1b" not in once.stdout
    nobody = subprocess.run([server.binary(), "top", "--once", "--base-url", "http://127.0.0.1:1/v1"], capture_output=True, text=True,
                            timeout=60, check=False)
    assert nobody.returncode == 1 and "could not connect" in nobody.stderr


def test_bench_shows_how_a_step_goes(at_terminal):
    bench = at_terminal("bench", "--num-prompts", "3", "--random-input-len", "32", "--random-output-len", "64", "--ignore-eos")
    bench.wait_for(r"1 clients .*[0-3]/3 .*1 in flight, 0 failed, \d+\.\d req/s, \d+ tok/s")
    bench.wait_for(r"TTFT p50/p95/p99 ms")
    bench.ends_with(0)


def test_chat_answers_a_script(serving):
    answer = run(serving, "chat", "--prompt", "Say hello.", "--max-tokens", "8", "--temperature", "0")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() and "\x1b" not in answer.stdout
    piped = run(serving, "chat", "--max-tokens", "8", "--temperature", "0", typed="Say hello.")
    assert (piped.returncode, piped.stdout) == (0, answer.stdout)
    refused = run(serving, "chat", "--prompt", "x", "--model", "no-such-model")
    assert refused.returncode == 1 and "model_not_found" in refused.stderr
    assert run(serving, "chat", typed="").returncode == 1


def test_a_conversation_at_a_terminal(at_terminal, tmp_path):
    chat = at_terminal("chat", "--temperature", "0", "--max-tokens", "16")
    chat.wait_for("/help tells more")
    chat.prompted()
    chat.type("Say \\\rhello.\r")
    chat.wait_for(r"\[\d+ tokens.*TTFT \d+ ms")
    chat.prompted()
    chat.type("\x1b[A\r")
    chat.wait_for(r"\[\d+ tokens.*TTFT \d+ ms")
    chat.prompted()
    saved = tmp_path / "said.json"
    chat.type(f"/save {saved}\r")
    chat.wait_for("saved in")
    chat.prompted()
    messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"] == messages[2]["content"] == "Say \nhello."
    chat.type("/nonsense\r")
    chat.wait_for("no such command")
    chat.prompted()
    chat.type("\x04")
    chat.ends_with(0)


def test_ctrl_c_stops_an_answer_and_not_the_program(at_terminal, serving):
    chat = at_terminal("chat", "--temperature", "0", "--max-tokens", "4000", NO_COLOR="1")
    chat.wait_for("/help tells more")
    chat.prompted()
    chat.type("Write a long story about the sea.\r")
    # The echo of what was typed, and then the beginning of an answer.
    chat.wait_for(r"(?s)the sea\..*?\n\w+ \w+")
    chat.type("\x03")
    chat.wait_for(r"\[stopped; ")
    end = time.monotonic() + 10
    while serving.metric("vllm:num_requests_running") and time.monotonic() < end:
        time.sleep(0.1)
    assert serving.metric("vllm:num_requests_running") == 0
    chat.prompted()
    chat.type("/quit\r")
    chat.ends_with(0)
