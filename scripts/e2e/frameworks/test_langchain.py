"""LangChain's ChatOpenAI, unmodified: answers, streams, functions and structured output."""
import asyncio
import functools
import operator
from typing import Literal

import pydantic
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

# That the model calls a function of its own accord depends on its rounding.
pytestmark = [pytest.mark.models("qwen2.5-coder"), pytest.mark.exact]

MESSAGES = [SystemMessage("You answer briefly."), HumanMessage("Name the four seasons of the year.")]
WEATHER = "What is the weather in Paris in Celsius?"


@tool
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """Get the current weather of a city."""
    return f"31 degrees {unit}, cloudy, in {city}"


@tool
def get_time(city: str) -> str:
    """Get the local time of a city."""
    return f"noon in {city}"


class Person(pydantic.BaseModel):
    """A person in a text."""

    name: str = pydantic.Field(description="First name")
    age: int = pydantic.Field(description="Age in years")
    retired: bool


@pytest.fixture(scope="module")
def run():
    """LangChain keeps its connections for all models of a process, so there is one event loop for them."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture
def model(served):
    return ChatOpenAI(base_url=f"{served.server.root}/v1", api_key="not-needed", model=served.model, temperature=0,
                      max_tokens=64, max_retries=0, timeout=300)


def merged(chunks):
    return functools.reduce(operator.add, chunks)


def made(message):
    return [(call["name"], call["args"]) for call in message.tool_calls]


def test_invoke(served, model):
    answer = model.invoke(MESSAGES)
    assert isinstance(answer, AIMessage) and answer.content
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    assert answer.response_metadata["model_name"] == served.model
    usage = answer.usage_metadata
    assert usage["input_tokens"] > 0 and 0 < usage["output_tokens"] <= 64
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_stream(model):
    whole = model.invoke(MESSAGES)
    chunks = list(model.stream(MESSAGES, stream_usage=True))
    assert len(chunks) > 4, "it comes in pieces"
    answer = merged(chunks)
    assert answer.content == whole.content
    assert answer.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]
    totals = ("input_tokens", "output_tokens", "total_tokens")
    assert [answer.usage_metadata[key] for key in totals] == [whole.usage_metadata[key] for key in totals]


def test_many_at_once(model, run):
    questions = ["Name a colour.", "Name a city.", "Name a fruit."]
    alone = [model.invoke(question).content for question in questions]
    assert [answer.content for answer in model.batch(questions)] == alone

    async def ask():
        return [answer.content for answer in await model.abatch(questions)]
    assert run(ask()) == alone


def test_stream_async(model, run):
    async def gather():
        return merged([chunk async for chunk in model.astream(MESSAGES)])
    assert run(gather()).content == model.invoke(MESSAGES).content


def test_logprobs(model):
    content = model.bind(logprobs=True, top_logprobs=2).invoke(MESSAGES).response_metadata["logprobs"]["content"]
    assert content and all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in content)


def test_bind_tools(model):
    answer = model.bind_tools([get_weather, get_time]).invoke(WEATHER)
    assert made(answer) == [("get_weather", {"city": "Paris", "unit": "celsius"})]
    assert answer.response_metadata["finish_reason"] == "tool_calls" and not answer.invalid_tool_calls


@pytest.mark.parametrize(("choice", "name"), [("any", None), ("get_time", "get_time"), ("required", None)])
def test_tool_choice(model, choice, name):
    bound = model.bind_tools([get_weather, get_time], tool_choice=choice, parallel_tool_calls=False)
    (called, arguments), = made(bound.invoke(WEATHER))
    assert name in (None, called)
    # LangChain's schemas allow more than they name.
    assert set(arguments) >= ({"city"} if called == "get_time" else {"city", "unit"})


def test_strict_tools(model):
    bound = model.bind_tools([Person], strict=True, tool_choice="Person", parallel_tool_calls=False)
    (name, arguments), = made(bound.invoke("Ada is 81 years old and does not work any more."))
    assert name == "Person" and isinstance(Person.model_validate(arguments, strict=True), Person)


def test_calls_in_a_stream(model):
    bound = model.bind_tools([get_weather, get_time])
    chunks = list(bound.stream(WEATHER))
    assert sum(len(chunk.tool_call_chunks) for chunk in chunks) > 2, "arguments come as they are written"
    assert made(merged(chunks)) == made(bound.invoke(WEATHER))


@pytest.mark.parametrize("stream", [False, True])
def test_round_trip(model, stream):
    tools = [get_weather, get_time]
    question = HumanMessage(WEATHER)
    bound = model.bind_tools(tools)
    first = merged(list(bound.stream([question]))) if stream else bound.invoke([question])
    results = [get_weather.invoke(call) for call in first.tool_calls]
    assert results and all(isinstance(result, ToolMessage) for result in results)
    # So small a model would otherwise call again, whatever it was told.
    last = model.bind_tools(tools, tool_choice="none").invoke([question, first, *results])
    assert "31" in last.content and not last.tool_calls


@pytest.mark.parametrize(("method", "strict"), [
    ("function_calling", None), ("function_calling", True), ("json_schema", None), ("json_schema", True)])
def test_structured_output(model, method, strict):
    text = "Ada is 36 years old and works."
    structured = model.with_structured_output(Person, method=method, strict=strict, include_raw=True)
    answer = structured.invoke(text)
    assert answer["parsing_error"] is None
    assert isinstance(answer["parsed"], Person) and answer["parsed"].name == "Ada"
    assert model.with_structured_output(Person, method=method, strict=strict).invoke(text) == answer["parsed"]


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_in_a_stream(model, method):
    structured = model.with_structured_output(Person, method=method)
    text = "Ada is 36 years old and works."
    assert list(structured.stream(text))[-1] == structured.invoke(text)


def test_json_mode(model):
    structured = model.with_structured_output(None, method="json_mode")
    assert isinstance(structured.invoke("Give the name and the age of a person as JSON."), dict)
