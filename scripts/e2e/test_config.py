"""The configuration file, what reads it again, and what a doctor finds of this machine."""
import json
import os
import re
import signal
import subprocess
import time

import models
import pytest
from conftest import LOGS
from lib import server

ONE = """# A server of a small company.
models = ["{model}"]
served-model-name = "small"
sequences-max = 3
log-level = "info"
log-format = "json"
"""


def rempart(*arguments, **more):
    return subprocess.run([server.binary(), *arguments], capture_output=True, text=True, timeout=60, check=False, **more)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rempart.toml"
    model = models.fetch("smollm2", models.default_directory())
    path.write_text(ONE.format(model=model), encoding="utf-8")
    return path


class FromFile(server.Server):
    """A server that is told its file and its address alone."""

    def options(self, model):
        return ["serve", "--config", model, "--bind", f"127.0.0.1:{self.port}"]


def told(serving, pattern, seconds=10):
    deadline = time.monotonic() + seconds
    while not re.search(pattern, serving.log.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, serving.log_tail()
        time.sleep(0.05)


def test_a_server_starts_from_a_file_and_reads_it_again(file, current):
    current.close()
    with FromFile(file, LOGS / "config.log") as serving:
        serving.wait_ready()
        assert serving.model_name() == "small"
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace('"info"', '"debug"').replace("= 3", "= 4"), encoding="utf-8")
        serving.process.send_signal(signal.SIGHUP)
        told(serving, r"take effect when the server starts again.*sequences-max")
        told(serving, "how much is logged has changed")
        file.write_text("sequences-max = 0\n", encoding="utf-8")
        serving.process.send_signal(signal.SIGHUP)
        told(serving, "the configuration can't be read again")
        assert serving.get("/livez")


def test_what_a_server_would_start_with(file):
    shown = rempart("config", "show", "--config", file, "--", "--sequences-max", "5", env={"REMPART_QUEUE_REQUESTS_MAX": "9"})
    assert shown.returncode == 0, shown.stderr
    assert "sequences-max = 5  # typed" in shown.stdout
    assert "queue-requests-max = 9  # environment" in shown.stdout
    assert 'served-model-name = ["small"]  # file' in shown.stdout
    assert rempart("config", "check", "--config", file).returncode == 0
    refused = rempart("config", "check", "--config", file, "--", "--bind", "0.0.0.0:8080")
    assert refused.returncode == 1 and "--bind 0.0.0.0:8080" in refused.stderr
    misspelt = rempart("config", "check", "--config", file, env={"REMPART_CONTEXTS_LENGTH": "5"})
    assert misspelt.returncode == 0 and "did you mean REMPART_CONTEXT_LENGTH?" in misspelt.stderr
    file.write_text("sequence_max = 3\n", encoding="utf-8")
    refused = rempart("serve", "m", "--config", file)
    assert refused.returncode == 2 and "did you mean sequences-max?" in refused.stderr


def test_the_reference_is_a_file(file, tmp_path):
    reference = tmp_path / "reference.toml"
    reference.write_text(rempart("config", "reference").stdout, encoding="utf-8")
    assert rempart("config", "check", "--config", reference, "--", "m").returncode == 0


def test_the_doctor_looks_at_the_machine(file, tmp_path):
    model = models.fetch("smollm2", models.default_directory())
    done = rempart("doctor", "--machine", "--json", "--model", model, "--models-dir", tmp_path)
    findings = {line["what"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert {"processor", "cores", "rates", "memory", "card", "clock", "models"} <= set(findings)
    assert findings["memory"]["state"] == "good" and "leaves a cache of" in findings["memory"]["found"]
    assert all("todo" in line for line in findings.values() if line["state"] != "good")
    assert (done.returncode == 0) == all(line["state"] != "bad" for line in findings.values())
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}), encoding="utf-8")
    done = rempart("doctor", "--machine", "--model", config)
    assert done.returncode == 1 and re.search(r"^BAD +memory", done.stdout, re.MULTILINE), done.stdout
    # Those of the server's file, beside each other; an encoder takes its share.
    served, encoder = tmp_path / "rempart.toml", models.fetch("minilm", models.default_directory())
    served.write_text(f"models = {json.dumps([str(model), str(encoder), str(config)])}\n", encoding="utf-8")
    done = rempart("doctor", "--machine", "--json", "--config", served)
    told = [line["found"] for line in map(json.loads, done.stdout.splitlines()) if line["what"] == "memory"]
    assert all(str(name) in found for name, found in zip((model, encoder, config), told, strict=True)), told
    assert told[1].endswith("takes 0.1 GiB: it is an encoder"), told


def test_the_doctor_goes_by_the_options_of_the_file(file, tmp_path):
    # Those of the tests are no variables of the program's.
    others = {name: value for name, value in os.environ.items() if not name.startswith("REMPART_")}

    def found(text, **variables):
        file.write_text(text, encoding="utf-8")
        done = rempart("doctor", "--machine", "--json", "--config", file, env=others | variables)
        return {line["what"]: line for line in map(json.loads, done.stdout.splitlines())}

    model = models.fetch("smollm2", models.default_directory())
    named = f'models = ["{model}"]\n'
    findings = found(f'{named}kv-cache-mib = 64\ntraces-file = "{tmp_path}/traces.jsonl"\n')
    assert findings["configuration"]["state"] == "good", findings
    assert str(tmp_path) in findings["traces"]["found"], findings
    cache = re.search(r"leaves a cache of (\d+) tokens", findings["memory"]["found"])
    findings = found(named, REMPART_CONTEXTS_LENGTH="5")
    told = findings["configuration"]
    assert told["state"] == "warning" and "did you mean REMPART_CONTEXT_LENGTH?" in told["found"], findings
    findings = found(f"{named}kv-cache-mib = 32\n")
    half = re.search(r"leaves a cache of (\d+) tokens", findings["memory"]["found"])
    assert cache and half and 0 < int(half[1]) < int(cache[1]), findings
    findings = found(f"{named}context-length = 1000000\n")
    assert findings["memory"]["state"] == "bad" and "--context-length 1000000" in findings["memory"]["found"], findings
    findings = found(f'{named}bind = "0.0.0.0:8080"\n')
    assert findings["configuration"]["state"] == "bad" and "--bind 0.0.0.0:8080" in findings["configuration"]["found"], findings


def test_a_shell_completes_the_command_line(tmp_path):
    script = tmp_path / "completions"
    script.write_text(rempart("completions", "bash").stdout, encoding="utf-8")
    words = 'COMP_WORDS=(rempart serve --queue-req); COMP_CWORD=2; _rempart rempart --queue-req serve; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", f". {script}; {words}"], capture_output=True, text=True, timeout=60, check=False)
    assert "--queue-requests-max" in done.stdout, done.stderr
    assert rempart("man", tmp_path / "man1").returncode == 0
    assert "queue" in (tmp_path / "man1" / "rempart-serve.1").read_text(encoding="utf-8")
