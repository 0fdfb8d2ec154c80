"""The whole binary with the feature `cuda`, built by NVIDIA's compiler, and what it does on a machine without a card: it computes on
the processor and says so, and refuses where a card was asked for.

What makes the machine one without a card, even if it has one, is the stub of libcuda that lib/cuda_toolkit.py makes.
"""
import json
import os
import subprocess
import urllib.error

from lib import server

# One generation proves the build; what kernels take on those that we support, lib/machine_code.py says. Only processors of another
# kind than this one's are beside a card of this generation, so that what is compiled here is never taken for what somebody runs.
GENERATION = 110
# No card runs what is compiled here: a tenth of the time.
NVCC_FLAGS = "--Ofast-compile=max"
# Candle's kernels as the text that a driver compiles: they are in the binary, unless an empty file was taken for one of them.
ASSEMBLY = f".target sm_{GENERATION}".encode()
# What the step depends on, beside the compilers.
SOURCES = ("Cargo.toml", "Cargo.lock", ".cargo", "kernels", "models", "server", "docs/api.md", "scripts/lib/cuda_binary.py",
           "scripts/lib/cuda_toolkit.py", "scripts/lib/cuda_requirements.txt", "scripts/lib/server.py", "scripts/models.py")
WARNING = "no CUDA card can be used: the model computes on the CPU"
REFUSAL = "--device cuda: no CUDA card can be used"
REMEDIES = ("nvidia-smi", "--device cpu")
MODEL = "smollm2"
ANSWER_TOKENS = 16
READY_S = 180
REFUSED_S = 60
CHAT = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": ANSWER_TOKENS, "temperature": 0}


class BinaryError(Exception):
    """What the binary does not do."""


def build_command():
    return ["cargo", "build", "--release", "--locked", "--package", "rempart", "--features", "cuda"]


def build_settings(home, path, ordinary, folder):
    """The environment of the build, with the toolkit at `home` before `path`: what is compiled lies with that of `ordinary` builds,
    with which it shares most, and the binary in a `folder` of its own, since theirs has its name."""
    return {"CUDA_HOME": str(home), "PATH": os.pathsep.join([str(home / "bin"), path]), "CUDA_COMPUTE_CAP": str(GENERATION),
            "NVCC_APPEND_FLAGS": NVCC_FLAGS, "CARGO_BUILD_BUILD_DIR": str(ordinary), "CARGO_TARGET_DIR": str(folder),
            # As many compilers at a time as there are processors; it is half of them by default.
            "CUDAFORGE_THREADS": str(os.cpu_count() or 1)}


def expect(fact, otherwise):
    if not fact:
        raise BinaryError(otherwise)


def told(text, sentence):
    """Whether a text has a sentence, and after it what to do about it."""
    _, found, rest = text.partition(sentence)
    return bool(found) and all(remedy in rest for remedy in REMEDIES)


def check_refusal(binary, model, more):
    """A card that was asked for and isn't there ends the server before it serves."""
    command = [binary, "serve", model, "--bind", "127.0.0.1:0", "--device", "cuda"]
    try:
        done = subprocess.run(command, env=os.environ | more, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, errors="replace", timeout=REFUSED_S, check=False)
    except subprocess.TimeoutExpired:
        raise BinaryError(f"with --device cuda it still runs after {REFUSED_S} s") from None
    expect(done.returncode > 0, f"with --device cuda it ended with {done.returncode}:\n{done.stdout}")
    expect(told(done.stdout, REFUSAL), f"with --device cuda it does not say why it ended, or not what to do:\n{done.stdout}")
    return f"--device cuda is refused: {next(line for line in done.stdout.splitlines() if REFUSAL in line)}"


def check_service(binary, model, log, more):
    """Without being asked for anything the server warns, computes on the processor and answers; SIGTERM ends it."""
    with server.Server(model, log, executable=binary, more=more) as running:
        running.wait_ready(READY_S)
        expect(told(running.log_tail(1000), WARNING), f"no warning of what to do without a card:\n{running.log_tail()}")
        expect("device=Cpu" in running.log_tail(1000), f"the model is not on the processor:\n{running.log_tail()}")
        ready = json.loads(running.get("/readyz"))
        expect(ready["status"] == "ready", f"/readyz: {ready}")
        before = running.metric("vllm:generation_tokens_total")
        answer = running.post("/v1/chat/completions", CHAT | {"model": running.model_name()})
        tokens, content = answer["usage"]["completion_tokens"], answer["choices"][0]["message"]["content"]
        expect(0 < tokens <= ANSWER_TOKENS and content.strip(), f"a chat: {answer}")
        counted = running.metric("vllm:generation_tokens_total") - before
        expect(counted == tokens, f"/metrics counts {counted:g} tokens, the answer has {tokens}")
        status = running.stop()
    expect(status == 0, f"SIGTERM ended it with {status}:\n{running.log_tail()}")
    return f"without a card the processor answers: {content!r}"


def check(binary, home, model, log, say):
    """What the binary does without a card, against the toolkit's libraries at `home`. Says each thing; the first that is not so
    is a `BinaryError`. Returns how many were."""
    expect(ASSEMBLY in binary.read_bytes(), f"Candle's kernels for sm_{GENERATION} are not in {binary}")
    say(f"{binary}: Candle's kernels for sm_{GENERATION} are in it")
    more = {"LD_LIBRARY_PATH": f"{home / 'lib'}:{home / 'lib' / 'stubs'}", "REMPART_LOG_LEVEL": "info"}
    try:
        say(check_refusal(binary, model, more))
        say(check_service(binary, model, log, more))
    except (server.ServerError, urllib.error.URLError, OSError, KeyError, ValueError) as error:
        raise BinaryError(f"{type(error).__name__}: {error}") from error
    return 3
