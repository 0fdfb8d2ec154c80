"""What the official client raises: typed errors that name the parameter and say the numbers."""
import http.client
import json
import time

import openai
import pytest

pytestmark = pytest.mark.models("smollm2")

HELLO = [{"role": "user", "content": "Hello"}]


def chat(served, **options):
    return served.client.chat.completions.create(
        **{"model": served.model, "messages": HELLO, "max_tokens": 2} | options)


@pytest.mark.parametrize(("options", "param"), [
    ({"temperature": 9}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"presence_penalty": 5}, "presence_penalty"),
    ({"stop": [""]}, "stop[0]"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
    ({"logit_bias": {"word": 1}}, "logit_bias"),
    ({"extra_body": {"temprature": 1}}, "temprature"),
])
def test_a_bad_value_is_named(served, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(served, **options)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code and param.split("[")[0] in str(caught.value)


@pytest.mark.parametrize(("options", "param"), [
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"extra_body": {"guided_json": {}}}, "guided_json"),
])
def test_an_unsupported_parameter_is_named(served, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(served, **options)
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


@pytest.mark.parametrize(("options", "param"), [({"suffix": "x"}, "suffix"), ({"best_of": 2}, "best_of")])
def test_an_unsupported_parameter_of_completions_is_named(served, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.completions.create(model=served.model, prompt="x", max_tokens=1, **options)
    assert caught.value.param == param


def test_unknown_model(served):
    with pytest.raises(openai.NotFoundError) as caught:
        chat(served, model="no-such-model")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("no-such-model")


def test_a_prompt_over_the_context_says_both_numbers(served):
    limit = served.server.post("/tokenize", {"model": served.model, "prompt": "x"})["max_model_len"]
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.completions.create(model=served.model, prompt=[100] * (limit + 7), max_tokens=1)
    assert caught.value.code == "context_length_exceeded"
    assert str(limit) in str(caught.value) and str(limit + 7) in str(caught.value)
    with pytest.raises(openai.BadRequestError) as caught:
        chat(served, messages=[{"role": "user", "content": "word " * (limit + 50)}])
    assert caught.value.code == "context_length_exceeded" and str(limit) in str(caught.value)


def test_more_tokens_than_the_context_holds(served):
    limit = served.server.post("/tokenize", {"model": served.model, "prompt": "x"})["max_model_len"]
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.completions.create(model=served.model, prompt=[100] * 10, max_tokens=limit)
    assert caught.value.code == "context_length_exceeded"
    assert str(limit) in str(caught.value) and str(limit + 10) in str(caught.value)


def test_a_token_outside_the_vocabulary(served):
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.completions.create(model=served.model, prompt=[1, 10**7], max_tokens=1)
    assert caught.value.param.startswith("prompt")


def raw(served, method, path, body=b"", headers=None):
    """Status and JSON of a request that no client would send."""
    connection = http.client.HTTPConnection("127.0.0.1", served.server.port, timeout=30)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} | (headers or {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(("method", "path", "body", "headers", "status"), [
    ("POST", "/v1/chat/completions", b"{not json", {}, 400),
    ("POST", "/v1/chat/completions", b"", {}, 400),
    ("POST", "/v1/chat/completions", b'{"model":"x","a":' + b"[" * 500 + b"]" * 500 + b"}", {}, 400),
    ("POST", "/v1/chat/completions", b'{"model":"\xff"}', {}, 400),
    ("POST", "/v1/chat/completions", b"{}", {"Content-Type": "text/plain"}, 415),
    ("GET", "/v1/chat/completions", b"", {}, 405),
    ("GET", "/v1/nothing", b"", {}, 404),
    ("GET", "/v1/models/%ff", b"", {}, 404),
    ("GET", "/v1/models", b"", {"Host": "evil.example"}, 403),
    ("GET", "/v1/models", b"", {"X-Large": "x" * 20_000}, 431),
    ("POST", "/v1/completions", b"{}", {"Content-Encoding": "gzip"}, 415),
])
def test_a_broken_request_gets_an_error_object(served, method, path, body, headers, status):
    got, answer = raw(served, method, path, body, headers)
    assert got == status
    assert set(answer["error"]) == {"message", "type", "param", "code"} and answer["error"]["message"]


def test_a_body_over_its_limit_is_refused(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.server.port, timeout=30)
    connection.putrequest("POST", "/v1/chat/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and json.loads(answer.read())["error"]["code"] == "body_too_large"
    connection.close()


def test_a_client_that_sends_all_of_a_large_body_reads_the_413(served):
    status, answer = raw(served, "POST", "/v1/chat/completions", b"x" * 30_000_000)
    assert status == 413 and answer["error"]["code"] == "body_too_large"


def test_a_book_is_refused_without_being_tokenized(served):
    began = time.monotonic()
    with pytest.raises(openai.BadRequestError) as caught:
        chat(served, messages=[{"role": "user", "content": "a tale of two cities " * 190_000}])
    assert caught.value.code == "context_length_exceeded" and "at least" in str(caught.value)
    assert time.monotonic() - began < 30


def test_the_server_still_answers(served):
    assert chat(served).choices[0].message is not None
