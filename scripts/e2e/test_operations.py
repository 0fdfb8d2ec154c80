"""Probes, metrics, request ids, and that nothing a client wrote is kept anywhere."""
import contextlib
import json
import secrets
import urllib.error
import urllib.request

import openai
import pytest

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


def provoke(served, canary):
    """Sends the canary in every place where a client may put text of its own; returns what errors said."""
    said = []
    chat, completions = served.client.chat.completions.create, served.client.completions.create
    message = [{"role": "user", "content": f"Repeat this: {canary} {canary}"}]
    common = {"model": served.model, "max_tokens": 8}
    wrong = [
        lambda: chat(messages=message, temperature=99, **common),
        lambda: chat(messages=[{"role": canary, "content": canary}], **common),
        lambda: chat(messages=[{"role": "user", "content": {"text": canary}}], **common),
        lambda: chat(messages=message, tools=[{"type": "function", "function": {"name": f"{canary}!"}}], **common),
        lambda: chat(messages=[{"role": "user", "content": f"{canary} " * 9000}], **common),
        lambda: completions(prompt={"wrong": canary}, **common),
        lambda: completions(prompt=canary, stop=[canary * 100], **common),
        lambda: completions(prompt=canary, extra_body={"logit_bias": {canary: 1}}, **common),
    ]
    for send in wrong:
        with pytest.raises(openai.APIStatusError) as caught:
            send()
        said.append(f"{caught.value} {caught.value.response.text} {caught.value.response.headers}")
    for body in (f'{{"model": "{served.model}", "prompt": "{canary}', f'{{"prompt": "{canary}"}} trailing'):
        request = urllib.request.Request(f"{served.server.root}/v1/completions", body.encode(),
                                         {"Content-Type": "application/json", "Authorization": f"Bearer {canary}"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        said.append(caught.value.read().decode())
    assert canary in completions(prompt=canary, echo=True, logprobs=1, **common).choices[0].text
    chat(messages=message, user=canary, stop=[canary], **common)
    function = {"name": canary, "description": canary, "parameters": {"type": "object", "properties": {canary: {}}}}
    chat(messages=message, tools=[{"type": "function", "function": function}], tool_choice="required", **common)
    with contextlib.closing(chat(messages=message, stream=True, **common)) as stream:
        next(iter(stream))
    served.server.post("/tokenize", {"model": served.model, "prompt": canary})
    return said


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
