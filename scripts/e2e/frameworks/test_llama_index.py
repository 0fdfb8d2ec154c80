"""LlamaIndex's OpenAILike, unmodified: answers, streams, functions, an agent and structured output."""
import asyncio
from typing import Literal

import pydantic
import pytest
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

# That the model calls a function of its own accord depends on its rounding.
pytestmark = [pytest.mark.models("qwen2.5-coder"), pytest.mark.exact]

MESSAGES = [ChatMessage(role="system", content="You answer briefly."),
            ChatMessage(role="user", content="Name the four seasons of the year.")]
WEATHER = "What is the weather in Paris in Celsius?"
PERSON = PromptTemplate("Who is this? {text}")
TEXT = "Ada is 36 years old and works."


class Person(pydantic.BaseModel):
    """A person in a text."""

    name: str = pydantic.Field(description="First name")
    age: int = pydantic.Field(description="Age in years")
    retired: bool


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """Get the current weather of a city."""
    return f"31 degrees {unit}, cloudy, in {city}"


@pytest.fixture
def make(served):
    """Makes a model with more options."""
    def with_options(**options):
        common = {"api_base": f"{served.server.root}/v1", "api_key": "not-needed", "model": served.model,
                  "context_window": 4096, "is_chat_model": True, "is_function_calling_model": True, "temperature": 0,
                  "max_tokens": 64, "max_retries": 0, "timeout": 300}
        return OpenAILike(**common | options)
    return with_options


@pytest.fixture
def model(make):
    return make()


def weather_tool(**options):
    return FunctionTool.from_defaults(get_weather, **options)


def test_chat(model):
    answer = model.chat(MESSAGES)
    assert answer.message.role == "assistant" and answer.message.content
    assert answer.additional_kwargs["prompt_tokens"] > 0 and 0 < answer.additional_kwargs["completion_tokens"] <= 64


def test_stream(model):
    whole = model.chat(MESSAGES).message.content
    pieces = list(model.stream_chat(MESSAGES))
    assert len(pieces) > 4, "it comes in pieces"
    assert pieces[-1].message.content == whole
    assert "".join(piece.delta for piece in pieces) == whole


def test_async(model):
    async def gather():
        streamed = [piece.delta async for piece in await model.astream_chat(MESSAGES)]
        return (await model.achat(MESSAGES)).message.content, "".join(streamed)
    whole, streamed = asyncio.run(gather())
    assert whole == streamed == model.chat(MESSAGES).message.content


def test_completions(make):
    """Not a chat model: this one is asked at /v1/completions."""
    model = make(is_chat_model=False, max_tokens=8)
    whole = model.complete("The capital of France is").text
    assert "Paris" in whole
    assert "".join(piece.delta for piece in model.stream_complete("The capital of France is")) == whole


def test_logprobs(make):
    logprobs = make(logprobs=True, top_logprobs=2).chat(MESSAGES).logprobs
    assert logprobs and all(len(rivals) == 2 for rivals in logprobs)


def test_chat_with_tools(model):
    history = [*MESSAGES[:1], ChatMessage(role="user", content=WEATHER)]
    answers = (model.chat_with_tools([weather_tool()], chat_history=history),
               list(model.stream_chat_with_tools([weather_tool()], chat_history=history))[-1])
    for answer in answers:
        call, = model.get_tool_calls_from_response(answer)
        assert call.tool_name == "get_weather" and call.tool_kwargs["city"] == "Paris"


def test_a_tool_that_is_required(model):
    answer = model.chat_with_tools([weather_tool()], "Hello.", tool_required=True)
    call, = model.get_tool_calls_from_response(answer)
    assert call.tool_name == "get_weather" and set(call.tool_kwargs) == {"city", "unit"}


def test_predict_and_call(model):
    answer = model.predict_and_call([weather_tool()], WEATHER, tool_required=True, error_on_tool_error=True)
    assert answer.response == "31 degrees celsius, cloudy, in Paris"


def test_round_trip(model):
    history = [ChatMessage(role="user", content=WEATHER)]
    first = model.chat_with_tools([weather_tool()], chat_history=history, tool_required=True)
    call, = model.get_tool_calls_from_response(first)
    result = weather_tool()(**call.tool_kwargs)
    history += [first.message, ChatMessage(role="tool", content=str(result),
                                           additional_kwargs={"tool_call_id": call.tool_id})]
    last = model.chat_with_tools([weather_tool()], chat_history=history, tool_choice="none")
    assert "31" in last.message.content


def test_agent(model):
    """It streams; the function's result is the answer, because so small a model would call again and again."""
    agent = FunctionAgent(tools=[weather_tool(return_direct=True)], llm=model, system_prompt="You answer briefly.")

    async def run():
        handler = agent.run(user_msg=WEATHER)
        events = [event async for event in handler.stream_events()]
        return str(await handler), [event for event in events if isinstance(event, ToolCallResult)]
    answer, results = asyncio.run(run())
    assert answer == "31 degrees celsius, cloudy, in Paris"
    assert [result.tool_name for result in results] == ["get_weather"]


@pytest.mark.parametrize("schema", [False, True], ids=["function", "schema"])
def test_structured_output(make, schema):
    model = make(should_use_structured_outputs=schema)
    person = model.structured_predict(Person, PERSON, text=TEXT)
    assert isinstance(person, Person) and person.name == "Ada"
    structured = model.as_structured_llm(Person).chat([ChatMessage(role="user", content=PERSON.format(text=TEXT))])
    assert structured.raw == person


def test_structured_output_in_a_stream(make):
    """By the schema alone: with a function, LlamaIndex leaves it to the model whether to call."""
    model = make(should_use_structured_outputs=True)
    states = list(model.stream_structured_predict(Person, PERSON, text=TEXT))
    assert len(states) > 1, "it comes in pieces"
    assert states[-1].model_dump() == model.structured_predict(Person, PERSON, text=TEXT).model_dump()
