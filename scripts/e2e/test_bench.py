"""`rempart bench` on a server with a real model: what it counts is what the server counts, and its exit status says what it found."""
import json
import subprocess

import pytest
from lib import server

CLIENTS, PROMPTS, INPUT, OUTPUT = 2, 10, 48, 12
SLO_MISSED = 3


def bench(serving, *arguments):
    command = [server.binary(), "bench", "--base-url", f"{serving.root}/v1", "--concurrency", CLIENTS, "--num-prompts", PROMPTS,
               "--random-input-len", INPUT, "--random-output-len", OUTPUT, "--ignore-eos", "--seed", 1, *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)


def server_notes():
    """What the binary's linker has written down of it."""
    return subprocess.run(["readelf", "-n", server.binary()], capture_output=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def serving(module_server):
    return module_server("smollm2", "bench.log")


def test_what_is_counted_is_what_the_server_counts(serving, tmp_path):
    generated = serving.metric("vllm:generation_tokens_total")
    result, page, table = (tmp_path / name for name in ("result.json", "page.html", "table.csv"))
    done = bench(serving, "--num-warmups", 0, "--no-calibration", "--slo", "errors=0", "--result", result, "--save-detailed",
                 "--html", page, "--csv", table)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text(encoding="utf-8"))
    assert (found["completed"], found["failed"]) == (PROMPTS, 0)
    assert found["total_output_tokens"] == PROMPTS * OUTPUT == serving.metric("vllm:generation_tokens_total") - generated
    assert 0 < found["median_ttft_ms"] < found["median_e2el_ms"] and found["p99_itl_ms"] > 0
    assert found["output_throughput"] == pytest.approx(PROMPTS * OUTPUT / found["duration"])
    assert len(found["ttfts"]) == PROMPTS
    build = found["rempart_bench"]["server_version"]["build"]
    assert build.encode() in server_notes() and build in page.read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert "<svg" in text and "http://" not in text.replace(serving.root, "").replace("http://www.w3.org/", "")
    assert len(table.read_text(encoding="utf-8").splitlines()) == 2
    again = bench(serving, "--num-warmups", 0, "--no-calibration", "--baseline", result, "--regression-tolerance", 9)
    assert again.returncode == 0, again.stdout + again.stderr


def test_an_slo_that_is_missed_decides_the_exit_status(serving):
    missed = bench(serving, "--slo", "ttft_p95=1us,errors=0")
    assert missed.returncode == SLO_MISSED, missed.stdout + missed.stderr
    assert "ttft" in missed.stdout
    wrong = bench(serving, "--model", "no-such-model")
    assert wrong.returncode == 1 and "404" in wrong.stderr, wrong.stderr


def test_each_request_may_have_a_connection(serving, tmp_path):
    result = tmp_path / "result.json"
    done = bench(serving, "--disable-keepalive", "--slo", "errors=0", "--result", result)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text(encoding="utf-8"))
    assert (found["completed"], found["failed"]) == (PROMPTS, 0)
    assert found["rempart_bench"]["workload"]["disable_keepalive"] is True
