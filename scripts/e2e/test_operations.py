"""Probes, metrics, request ids, and that nothing a client wrote is kept anywhere."""
import json
import secrets
import urllib.request

import pytest
from provoking import provoke

pytestmark = pytest.mark.models("smollm2")


def test_probes(served):
    for path in ("/livez", "/readyz", "/health"):
        with urllib.request.urlopen(served.server.root + path, timeout=10) as answer:
            assert answer.status == 200
    assert json.loads(served.server.get("/version"))["version"]


def test_metrics_count_a_request(served):
    names = {"prompt": "vllm:prompt_tokens_total", "generation": "vllm:generation_tokens_total"}
    before = {key: served.server.metric(name) for key, name in names.items()}
    usage = served.client.completions.create(
        model=served.model, prompt="Count these", max_tokens=5, extra_body={"ignore_eos": True}).usage
    after = {key: served.server.metric(name) for key, name in names.items()}
    assert after["prompt"] - before["prompt"] == usage.prompt_tokens
    assert after["generation"] - before["generation"] == 5
    page = served.server.get("/metrics")
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
                 "vllm:time_to_first_token_seconds_bucket", "vllm:e2e_request_latency_seconds_bucket",
                 "vllm:request_success_total", "rempart_"):
        assert name in page, name


def test_request_id_comes_back(served):
    answer = served.client.with_options(default_headers={"x-request-id": "my-id-1"}).completions.with_raw_response.create(
        model=served.model, prompt="x", max_tokens=1)
    assert answer.headers["x-request-id"] == "my-id-1"
    assert served.client.completions.with_raw_response.create(
        model=served.model, prompt="x", max_tokens=1).headers["x-request-id"]


def test_a_canary_is_found_nowhere(served):
    """The log is written at level trace."""
    canary = f"kanarie{secrets.token_hex(8)}vogel"
    ids = served.server.post("/tokenize", {"model": served.model, "prompt": canary})["tokens"]
    said = provoke(served, canary)
    places = {
        "an error": "\n".join(said), "a metric": served.server.get("/metrics"),
        "the log": served.server.log.read_text(encoding="utf-8", errors="replace"),
        "the command line": " ".join(served.server.command),
    }
    assert "TRACE" in places["the log"] or "DEBUG" in places["the log"], "the log must be at its loudest"
    for place, text in places.items():
        assert canary not in text, f"the canary is in {place}"
        assert canary[7:23] not in text, f"a part of the canary is in {place}"
        assert ", ".join(map(str, ids[:6])) not in text, f"the canary's tokens are in {place}"
