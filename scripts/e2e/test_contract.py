"""The server against its own description: requests made at random from /openapi.json, within it and beside it.

REMPART_CONTRACT_CASES is how many are sent, about 1,500 by default; REMPART_CONTRACT_SEED begins elsewhere: a seed that is
fixed makes a failure come again.
"""
import collections
import copy
import json
import os
import re

import hypothesis
import jsonschema
import openapi_spec_validator
import pytest
import requests
import schemathesis
from conftest import WITH_ENCODER
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

CASES = int(os.environ.get("REMPART_CONTRACT_CASES", "1500"))
SEED = int(os.environ.get("REMPART_CONTRACT_SEED", "20261126"))
# The most tokens that a case may ask for: it is the requests that are tried here, and not the model.
TOKENS_MAX = 3
GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
# What the smaller of the models has, and what the encoder's vectors have.
VOCABULARY = 30_522
DIMENSIONS = 384
# Answers to requests that the document allows: what it cannot say is said by these codes of errors.
BEYOND_SCHEMAS = {
    "context_length_exceeded", "empty_array", "empty_prompt", "empty_string", "format_stuck", "invalid_format", "invalid_value",
    "mismatched_project", "model_not_found", "model_not_supported", "not_found", "object_above_max_length", "out_of_range", "request_too_large",
    "response_not_found", "string_above_max_length", "unsupported_parameter",
}
OVERLOADED = {"server_is_overloaded"}
# A server without keys has no usage to tell.
WITHOUT_KEYS = {"no_database"}
pytestmark = pytest.mark.models(WITH_ENCODER)


@pytest.fixture
def document(served):
    answer = requests.get(f"{served.server.root}/openapi.json", timeout=30)
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def test_the_document_is_openapi_3_1(document):
    assert document["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(document)


def test_the_page_to_read_needs_nothing_from_elsewhere(served):
    answer = requests.get(f"{served.server.root}/docs", timeout=30)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"] and "http:" not in answer.text


def fits(document, name, value):
    """Whether a value is what the document says of a schema of its components."""
    schema = document["components"]["schemas"][name] | {"components": document["components"]}
    jsonschema.Draft202012Validator(schema).validate(value)


PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"]}
ASKED = [{"role": "user", "content": "How is the weather in Oslo?"}]
FUNCTION = {"name": "weather", "parameters": PARAMETERS}


@pytest.mark.parametrize(("path", "schema", "body"), [
    ("/v1/chat/completions", "ChatCompletion", {
        "messages": ASKED, "max_tokens": 60, "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "required", "logprobs": True, "top_logprobs": 2, "return_token_ids": True}),
    ("/v1/completions", "Completion", {
        "prompt": "One two", "max_tokens": 3, "echo": True, "logprobs": 2, "return_token_ids": True, "n": 2}),
    ("/v1/responses", "Response", {
        "input": ASKED, "max_output_tokens": 60, "tools": [{"type": "function", **FUNCTION}], "tool_choice": "required"}),
    ("/v1/responses", "Response", {
        "input": "Hello", "max_output_tokens": 3, "include": ["message.output_text.logprobs"], "top_logprobs": 1}),
    ("/v1/messages", "Message", {
        "messages": ASKED, "max_tokens": 60, "tools": [{"name": "weather", "input_schema": PARAMETERS}],
        "tool_choice": {"type": "any"}}),
])
def test_answers_with_all_that_they_can_have_are_as_described(served, document, path, schema, body):
    answer = requests.post(served.server.root + path, json=body | {"model": served.model}, timeout=60)
    assert answer.status_code == 200, answer.text
    fits(document, schema, answer.json())
    assert "tools" not in body or "Oslo" in answer.text or "Rome" in answer.text


def test_kept_answers_are_as_described(served, document):
    root = f"{served.server.root}/v1/responses"
    body = {"model": served.model, "input": "Hello", "max_output_tokens": 3}
    kept = f"{root}/{requests.post(root, json=body, timeout=60).json()['id']}"
    fits(document, "Response", requests.get(kept, timeout=30).json())
    fits(document, "ResponseItems", requests.get(f"{kept}/input_items", timeout=30).json())
    fits(document, "ResponseDeleted", requests.delete(kept, timeout=30).json())
    missing = requests.get(kept, timeout=30)
    assert missing.status_code == 404
    fits(document, "Error", missing.json())


def within_vocabularies(part):
    """Lets a schema ask only for tokens that both models have."""
    if isinstance(part, dict):
        if part.get("maximum") == 2**32 - 1:
            part["maximum"] = VOCABULARY - 1
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            within_vocabularies(inner)


def quick(document, served):
    """The document with names of models that are served, and with limits at which a case is quick and mostly answered."""
    document = copy.deepcopy(document)
    within_vocabularies(document["components"])
    few = {"max_tokens": TOKENS_MAX, "max_output_tokens": TOKENS_MAX, "min_tokens": 1, "n": 2, "dimensions": DIMENSIONS}
    for name, schema in document["components"]["schemas"].items():
        if not name.endswith("Request"):
            continue
        encodes = name.removesuffix("Request") in ("Embeddings", "Rerank", "RerankV2", "Score")
        for form in schema.get("anyOf", [schema]):
            fields = form["properties"]
            if "model" not in fields:
                # What administers asks no model.
                continue
            fields["model"] = {"type": "string", "enum": [served.encoder if encodes else served.model]}
            # Nothing is kept under the names that are made up.
            fields.pop("previous_response_id", None)
            fields.pop("max_completion_tokens", None)
            for field in fields.keys() & few:
                fields[field]["maximum"] = few[field]
            # Without one, an answer may be as long as the context.
            form["required"] = sorted({*form["required"], *(fields.keys() & {"max_tokens", "max_output_tokens"})})
            for field in fields.keys() & {"max_tokens", "max_output_tokens"}:
                fields[field] |= {"type": "integer", "minimum": 1}
    return document


def check_error(answer):
    """An error object, in the envelope that Anthropic's clients look for where they look."""
    body = answer.json()
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    if answer.request.path_url.startswith("/v1/messages"):
        assert set(body) == {"type", "error"} and body["type"] == "error"
    else:
        assert set(body) == {"error"}
    return error


def check_events(answer, rules):
    """Data as they are described, and an end that says that it is one."""
    data = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    events = [json.loads(line) for line in data if line != "[DONE]"]
    for event in events:
        rules.event.validate(event)
    types = [event.get("type") for event in events]
    ended = {"message_stop", "error", "response.completed", "response.incomplete"} & set(types)
    failed = any("error" in event for event in events)
    assert ended or failed or data[-1] == "[DONE]", answer.text[-300:]


def check(case, answer, rules):
    """What must hold whatever was sent. Returns what became of it."""
    code, kind = "", answer.headers["content-type"][0]
    if answer.status_code >= 400 and kind == "application/json":
        code = check_error(answer)["code"]
    if answer.status_code >= 500:
        assert answer.status_code == 503 and code in OVERLOADED, f"{answer.status_code} {answer.text[:300]}"
    elif kind.startswith("text/event-stream"):
        check_events(answer, rules)
    what = f"{answer.text[:300]} for {str(answer.request.body)[:500]}"
    if rules.allows(answer.request.body):
        assert code in {"", *BEYOND_SCHEMAS, *OVERLOADED, *WITHOUT_KEYS}, f"allowed, and refused: {what}"
    else:
        assert answer.status_code >= 400, f"not allowed, and taken: {what}"
    case.validate_response(answer, checks=[
        checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance,
    ])
    return f"{answer.status_code} {code}".strip()


class Rules:
    """What the document says of an operation. A case that was made to be refused may be allowed by it all the same."""

    def __init__(self, document, operation):
        found = document["paths"][operation.path][operation.method]

        def validator(schema):
            return jsonschema.Draft202012Validator(schema | {"components": document["components"]})
        self.body = self.event = None
        if operation.body:
            self.body = validator(found["requestBody"]["content"]["application/json"]["schema"])
        events = found["responses"]["200"]["content"].get("text/event-stream")
        if events:
            data = events["schema"]["properties"]["data"]
            self.event = validator(data.get("anyOf", [data])[0]["contentSchema"])

    def allows(self, body):
        """Whether a body, if there has to be one, is allowed."""
        if self.body is None:
            return True
        try:
            return self.body.is_valid(json.loads((body or b"").decode()))
        except ValueError:
            return False


def is_quick(operation, body):
    """Whether an answer is not as long as a model likes, which a case that is made to be refused may ask for."""
    field = {"/v1/responses": "max_output_tokens"}.get(operation.path, "max_tokens")
    if not isinstance(body, dict) or operation.path not in GENERATING:
        return True
    tokens = body.get(field)
    return isinstance(tokens, (int, float)) and tokens <= 10 * TOKENS_MAX


def run(operation, mode, cases, root, rules, became, key=None):
    """Sends cases of one operation; raises for the first that shows a fault."""
    session = requests.Session()
    if key:
        session.headers["Authorization"] = f"Bearer {key}"

    @hypothesis.seed(SEED)
    @hypothesis.settings(max_examples=cases, deadline=None, database=None, derandomize=False, print_blob=False,
                         phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def one(case):
        hypothesis.assume(is_quick(operation, case.body))
        answer = case.call(base_url=root, session=session, timeout=60)
        became[check(case, answer, rules)] += 1
    one()


@pytest.mark.slow
def test_the_server_does_what_its_document_says(served, document, subtests):
    schema = schemathesis.openapi.from_dict(quick(document, served))
    operations = [found.ok() for found in schema.get_all_operations()]
    # What takes a body has nearly all there is to try.
    weights = {operation.label: 10 if operation.body else 1 for operation in operations}
    total, sent = sum(weights.values()), collections.Counter()
    for operation in operations:
        share = max(2, CASES * weights[operation.label] // total)
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
            if mode is GenerationMode.NEGATIVE and not operation.body:
                continue
            became = collections.Counter()
            with subtests.test(operation=operation.label, mode=mode.value):
                run(operation, mode, share // 2 if operation.body else share, served.server.root,
                    Rules(document, operation), became)
            print(operation.label, mode.value, dict(became))
            sent += became
    print(f"{sent.total()} cases: {dict(sent)}")
    assert served.server.process.poll() is None


def of_what_there_is(document, ids):
    """The document with identifiers that there are in the paths: nothing else has much to tell."""
    document = copy.deepcopy(document)
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] in ids:
                    parameter["schema"] = {"type": "string", "enum": ids[parameter["name"]]}
    return document


@pytest.mark.slow
def test_the_organization_is_as_the_document_says(own_server, tmp_path, subtests):
    """The routes that have something to tell only where there are keys."""
    server = own_server("smollm2", "organization.log", ["--database", str(tmp_path / "rempart.db")])
    key = re.search(r"^sk-rempart-\S+$", server.log.read_text(), re.MULTILINE)[0]

    def post(path, body):
        answer = requests.post(f"{server.root}/v1/organization/{path}", json=body, timeout=30,
                               headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]
    project = post("projects", {"name": "sales"})
    people = [post("users", {"email": f"{name}@example.org", "name": name}) for name in ("anna", "bert")]
    ids = {"project_id": [project], "user_id": people, "rate_limit_id": ["*"],
           "account_id": [post(f"projects/{project}/service_accounts", {"name": "crm"})]}
    post(f"projects/{project}/users", {"user_id": people[0]})
    document = of_what_there_is(requests.get(f"{server.root}/openapi.json", timeout=30).json(), ids)
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    told = [operation for operation in operations if operation.path.startswith("/v1/organization/")]
    assert len(told) == 40
    # What ends something comes last: the others then have it.
    told.sort(key=lambda operation: (operation.path.endswith("/archive"), operation.method == "delete"))
    answered = collections.Counter()
    for operation in told:
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
            if mode is GenerationMode.NEGATIVE and not operation.body:
                continue
            became = collections.Counter()
            with subtests.test(operation=operation.label, mode=mode.value):
                run(operation, mode, 60, server.root, Rules(document, operation), became, key)
            print(operation.label, mode.value, dict(became))
            assert not {"404 no_database"} & set(became)
            answered[operation.label] += became["200"]
    # Nothing that is made up names a key, or is an address.
    silent = {label for label, count in answered.items() if not count and "key_id" not in label}
    assert silent <= {"POST /v1/organization/users", "POST /v1/organization/projects/{project_id}/users"}, silent
