"""Structured output through the official client: whatever a real model says, a finished answer is of the format."""
import enum
import json
import re
import threading

import jsonschema
import pydantic
import pytest
from conftest import CHAT_MODELS

pytestmark = pytest.mark.models(*CHAT_MODELS)

SCHEMAS = {
    "flat": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "population": {"type": "integer", "minimum": 0, "maximum": 99999999},
                       "capital": {"type": "boolean"}},
        "required": ["city", "population", "capital"], "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {"order": {"type": "object", "properties": {
            "lines": {"type": "array", "minItems": 1, "maxItems": 3, "items": {"$ref": "#/$defs/line"}},
            "state": {"enum": ["open", "paid", None]}}, "required": ["lines", "state"]}},
        "required": ["order"],
        "$defs": {"line": {"type": "object", "properties": {
            "sku": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, "count": {"type": "integer", "minimum": 1,
                                                                                "maximum": 99}},
            "required": ["sku", "count"], "additionalProperties": False}},
    },
    "choices": {
        "type": "object",
        "properties": {"value": {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "boolean"},
                                                                "maxItems": 4}]},
                       "day": {"type": "string", "format": "date"}},
        "required": ["value", "day"], "additionalProperties": False,
    },
}


def ask(served, **options):
    messages = [{"role": "user", "content": "Invent an example and answer in JSON."}]
    return served.client.chat.completions.create(
        **{"model": served.model, "messages": messages, "max_tokens": 200, "temperature": 0} | options)


def schema_format(name):
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": SCHEMAS[name]}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_finished_answers_are_valid(served, name):
    validator = jsonschema.Draft202012Validator(SCHEMAS[name], format_checker=jsonschema.FormatChecker())
    answer = ask(served, response_format=schema_format(name), temperature=1, n=4, seed=7)
    finished = [choice for choice in answer.choices if choice.finish_reason == "stop"]
    assert finished, "none of four ended within 200 tokens"
    for choice in finished:
        validator.validate(json.loads(choice.message.content))


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_stream_is_the_whole_answer(served, name):
    whole = ask(served, response_format=schema_format(name)).choices[0]
    chunks = [chunk.choices[0] for chunk in ask(served, response_format=schema_format(name), stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].finish_reason == whole.finish_reason


class Colour(enum.Enum):
    red = "red"
    green = "green"


class Car(pydantic.BaseModel):
    brand: str = pydantic.Field(max_length=20)
    doors: int
    colour: Colour


def test_the_clients_own_parser(served):
    messages = [{"role": "user", "content": "Describe a car."}]
    answer = served.client.chat.completions.parse(
        model=served.model, messages=messages, response_format=Car, max_tokens=100, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, Car)


def test_json_object(served):
    choice = ask(served, response_format={"type": "json_object"}, max_tokens=400).choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.message.content.lstrip().startswith("{")


@pytest.mark.parametrize(("outputs", "pattern"), [
    ({"choice": ["positive", "negative", "neutral"]}, "positive|negative|neutral"),
    ({"regex": r"\d{3}-\d{4}"}, r"\d{3}-\d{4}"),
    ({"grammar": 'start: "SELECT " column " FROM " table\ncolumn: /[a-z]{1,10}/\ntable: "users" | "orders"'},
     r"SELECT [a-z]{1,10} FROM (users|orders)"),
])
def test_other_formats(served, outputs, pattern):
    choice = ask(served, extra_body={"structured_outputs": outputs}).choices[0]
    assert re.fullmatch(pattern, choice.message.content), choice.message.content
    assert choice.finish_reason == "stop"


def test_formats_together(served):
    """Eight different formats at once, beside a request without one."""
    answers = {}

    def one(index):
        outputs = {"regex": rf"[a-z]{{{index}}} [0-9]{{{index}}}"}
        answers[index] = ask(served, extra_body={"structured_outputs": outputs}).choices[0].message.content

    plain = ask(served, max_tokens=16).choices[0].message.content
    threads = [threading.Thread(target=one, args=(index,)) for index in range(1, 9)]
    for thread in threads:
        thread.start()
    assert ask(served, max_tokens=16).choices[0].message.content == plain
    for thread in threads:
        thread.join()
    assert sorted(answers) == list(range(1, 9))
    for index, text in answers.items():
        assert re.fullmatch(rf"[a-z]{{{index}}} [0-9]{{{index}}}", text), text


@pytest.mark.models("smollm2", "qwen2.5-coder", "gemma3")
def test_completions(served):
    """On every kind of vocabulary, SentencePiece among them."""
    answer = served.client.completions.create(
        model=served.model, prompt="A city as JSON:", max_tokens=120, temperature=0,
        extra_body={"structured_outputs": {"json": SCHEMAS["flat"]}})
    assert answer.choices[0].finish_reason == "stop", answer.choices[0].text
    jsonschema.validate(json.loads(answer.choices[0].text), SCHEMAS["flat"])
