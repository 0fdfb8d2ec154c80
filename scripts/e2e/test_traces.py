"""Traces: each request that uses a model, in OpenTelemetry's own words, joined to its client's trace, with nothing that was said."""
import json
import re
import subprocess
import time

import models
import openai
import pytest
from google.protobuf import json_format
from lib.server import binary
from opentelemetry.proto.trace.v1 import trace_pb2

CANARY = "The harvest of 1874 was good."
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
INTERNAL, SERVER, ERROR = 1, 2, 2
WRITTEN_S = 10


@pytest.fixture
def traced(own_server, tmp_path):
    file = tmp_path / "traces.jsonl"
    served = own_server("smollm2+minilm", "traces.log", ["--traces-file", str(file), "--traces-ratio", "0", "--log-format", "json"])
    return served, file, openai.OpenAI(base_url=f"{served.root}/v1", api_key="none", max_retries=0)


def parent(sampled=True, trace=TRACE):
    return {"traceparent": f"00-{trace}-{PARENT}-0{int(sampled)}", "tracestate": f"u={CANARY}"}


def spans(file):
    """Spans by the definitions of OTLP, which know every field and its type; ids are hexadecimal in its JSON alone."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        data = json_format.Parse(line, trace_pb2.TracesData())
        plain = json.loads(line)
        for resource, said in zip(data.resource_spans, plain["resourceSpans"], strict=True):
            attributes = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
            assert attributes["service.name"] == "rempart" and attributes["service.version"]
            for scope, scope_said in zip(resource.scope_spans, said["scopeSpans"], strict=True):
                found += zip(scope.spans, scope_said["spans"], strict=True)
    return found


def until_written(served, file, count):
    end = time.monotonic() + WRITTEN_S
    while time.monotonic() < end:
        written = served.metric("rempart_trace_spans_written_total")
        if written >= count:
            found = spans(file)
            assert served.metric("rempart_trace_spans_total") == written == len(found)
            return found
        time.sleep(0.2)
    raise AssertionError(f"{written} spans of {count}")


def told(span):
    """A span's attributes."""
    def plain(value):
        kind = value.WhichOneof("value")
        return [plain(one) for one in value.array_value.values] if kind == "array_value" else getattr(value, kind)
    return {entry.key: plain(entry.value) for entry in span.attributes}


def test_an_answer_is_a_span_with_its_parts(traced):
    served, file, client = traced
    before = time.time_ns()
    answer = client.chat.completions.create(model=client.models.list().data[0].id, max_tokens=12, seed=1, extra_headers=parent(),
                                            messages=[{"role": "user", "content": CANARY}], stream_options={"include_usage": True},
                                            stream=True)
    chunks = list(answer)
    after = time.time_ns()
    found = until_written(served, file, 4)
    by_name = {span.name: (span, said) for span, said in found}
    request, said = by_name.pop(f"chat {chunks[0].model}")
    assert (said["traceId"], said["parentSpanId"], request.kind) == (TRACE, PARENT, SERVER)
    usage = chunks[-1].usage
    assert told(request) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "rempart", "gen_ai.response.model": chunks[0].model,
        "gen_ai.request.model": chunks[0].model,
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
        "gen_ai.usage.input_tokens": usage.prompt_tokens, "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.prompt_tokens_details.cached_tokens,
        "gen_ai.response.finish_reasons": [next(c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason)]}
    assert before <= request.start_time_unix_nano < request.end_time_unix_nano <= after + 10**9
    # One behind the other, and within.
    assert set(by_name) == {"queue", "prefill", "decode"}
    at = request.start_time_unix_nano
    slack = 5 * 10**6
    for name in ("queue", "prefill", "decode"):
        part, part_said = by_name[name]
        assert (part_said["traceId"], part_said["parentSpanId"], part.kind) == (TRACE, said["spanId"], INTERNAL)
        assert abs(part.start_time_unix_nano - at) < slack, name
        at = part.end_time_unix_nano
        assert at >= part.start_time_unix_nano
    assert at <= request.end_time_unix_nano + slack
    lines = [json.loads(line) for line in served.log.read_text().splitlines() if TRACE in line]
    assert {line.get("trace_id") or line["span"]["trace_id"] for line in lines} == {TRACE}
    assert CANARY not in file.read_text()


def test_every_use_of_a_model_is_traced_and_nothing_else(traced):
    served, file, client = traced
    model, encoder = [entry.id for entry in client.models.list().data]
    client.completions.create(model=model, prompt=CANARY, max_tokens=2, n=2, extra_headers=parent())
    client.embeddings.create(model=encoder, input=[CANARY], extra_headers=parent())
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=model, prompt=CANARY, temperature=99, extra_headers=parent())
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model=CANARY, prompt="x", extra_headers=parent())
    # Those that their client does not trace, that nobody traces, and that use no model.
    client.completions.create(model=model, prompt=CANARY, max_tokens=2, extra_headers=parent(sampled=False))
    client.completions.create(model=model, prompt=CANARY, max_tokens=2)
    client.completions.create(model=model, prompt=CANARY, max_tokens=2, extra_headers={"traceparent": "00-" + "z" * 32})
    client.models.list(extra_headers=parent())
    found = [span for span, _ in until_written(served, file, 7)]
    requests = [span for span in found if span.kind == SERVER]
    assert len(found) == 7
    assert sorted((span.name, told(span)["http.response.status_code"]) for span in requests) == [
        (f"embeddings {encoder}", 200), ("text_completion", 400), ("text_completion", 404), (f"text_completion {model}", 200)]
    assert all(span.status.code != ERROR for span in requests)
    whole = next(span for span in requests if span.name == f"text_completion {model}")
    assert told(whole)["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert CANARY not in file.read_text()


def test_a_model_is_told_by_the_name_it_was_asked_for_by(own_server, tmp_path):
    file = tmp_path / "traces.jsonl"
    served = own_server("smollm2", "traces-names.log", ["--traces-file", str(file), "--served-model-name", "m,small"])
    client = openai.OpenAI(base_url=f"{served.root}/v1", api_key="-", max_retries=0)
    answer = client.completions.create(model="small", prompt="a", max_tokens=2, extra_headers=parent())
    request = next(told(span) for span, _ in until_written(served, file, 4) if span.kind == SERVER)
    assert (request["gen_ai.request.model"], request["gen_ai.response.model"]) == ("small", "m") == ("small", answer.model)


def test_strangers_are_not_traced(own_server, tmp_path):
    file, database = tmp_path / "traces.jsonl", tmp_path / "rempart.db"
    served = own_server("smollm2", "traces-keys.log", ["--traces-file", str(file), "--database", str(database)])
    key = re.search(r"^sk-rempart-\S+$", served.log.read_text(), re.MULTILINE)[0]
    served.key = key
    model = {"model": served.model_name(), "prompt": "a", "max_tokens": 1}
    stranger, known = (openai.OpenAI(base_url=f"{served.root}/v1", api_key=shown, max_retries=0) for shown in ("none", key))
    with pytest.raises(openai.AuthenticationError):
        stranger.completions.create(**model, extra_headers=parent())
    known.completions.create(**model)
    assert served.stop() == 0
    requests = [told(span) for span, _ in spans(file) if span.kind == SERVER]
    assert [request["http.response.status_code"] for request in requests] == [200] and requests[0]["rempart.project"]


def test_sigterm_writes_what_waits(traced):
    served, file, client = traced
    client.completions.create(model=served.model_name(), prompt="a", max_tokens=1, extra_headers=parent())
    assert served.stop() == 0
    assert {span.name.split()[0] for span, _ in spans(file)} == {"text_completion", "queue", "prefill", "decode"}


@pytest.mark.parametrize(("options", "why"), [
    (["--traces-file", "no/such/folder"], "--traces-file no/such/folder"), (["--traces-ratio", "0.5"], "--traces-file <FILE>"),
    (["--traces-file", "x", "--traces-ratio", "2"], "a number from 0 to 1")])
def test_wrong_options_are_refused(options, why, tmp_path):
    model = models.fetch("smollm2", models.default_directory())
    done = subprocess.run([binary(), "serve", model, "--bind", "127.0.0.1:0", *options], cwd=tmp_path, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode and why in done.stderr
