"""Calls of functions through the official client: whatever a model says, a finished call is one of a known function."""
import copy
import json

import jsonschema
import openai
import pydantic
import pytest
from conftest import CHAT_MODELS

pytestmark = pytest.mark.models(*CHAT_MODELS)

QUESTION = [{"role": "user", "content": "What is the weather in Paris in Celsius?"}]
# Enough for two calls of the functions below.
TOKENS = 160


def tool(name, description, properties):
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}}}


CITY = {"type": "string", "maxLength": 24}
WEATHER = tool("get_weather", "Get the current weather of a city.",
               {"city": CITY, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}})
TIME = tool("get_time", "Get the local time of a city.", {"city": CITY})
TOOLS = [WEATHER, TIME]
# The client parses the calls of strict functions alone.
STRICT = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
SCHEMAS = {entry["function"]["name"]: entry["function"]["parameters"] for entry in TOOLS}


def named(name):
    return {"type": "function", "function": {"name": name}}


def allowed(mode, *names):
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


def options(served, **more):
    return {"model": served.model, "messages": QUESTION, "tools": TOOLS, "temperature": 0, "max_tokens": TOKENS} | more


def ask(served, **more):
    answer = served.client.chat.completions.create(**options(served, **more))
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= more.get("max_tokens", TOKENS) * more.get("n", 1)
    return answer


def calls(choice, schemas=SCHEMAS):
    """Names of the calls of a choice, each of which must be whole and follow its schema."""
    found = choice.message.tool_calls or []
    assert choice.finish_reason == ("tool_calls" if found else "stop")
    assert len({call.id for call in found}) == len(found), "every call has an identifier of its own"
    for call in found:
        assert call.type == "function" and call.id
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
    return [call.function.name for call in found]


def streamed(served, **more):
    """The last state of the client's own helper for streams, and its events' types."""
    with served.client.chat.completions.stream(**options(served, **more)) as stream:
        types = [event.type for event in stream]
        return stream.get_final_completion(), types


def plain(message):
    """What two answers to the same request must share: all but the calls' identifiers."""
    made = [(call.type, call.function.name, call.function.arguments) for call in message.tool_calls or []]
    return message.role, message.content or None, message.refusal, made


@pytest.mark.models("qwen2.5-coder")
def test_a_model_calls_by_itself(served):
    choice, = ask(served, tool_choice="auto").choices
    assert calls(choice) == ["get_weather"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"city": "Paris", "unit": "celsius"}
    assert choice.message.content is None


@pytest.mark.models("qwen2.5-coder")
def test_auto_is_what_is_meant_without_a_choice(served):
    assert plain(ask(served).choices[0].message) == plain(ask(served, tool_choice="auto").choices[0].message)


def test_required(served):
    """At any temperature; the limit may cut a call off, and then the reason says so."""
    answer = ask(served, tool_choice="required", temperature=1, seed=3, n=4)
    finished = [choice for choice in answer.choices if choice.finish_reason != "length"]
    assert finished, "none of four ended within the limit"
    for choice in finished:
        assert calls(choice), "required means at least one"


@pytest.mark.parametrize("name", SCHEMAS)
def test_named(served, name):
    choice, = ask(served, tool_choice=named(name), parallel_tool_calls=False).choices
    assert calls(choice) == [name]


def test_none_makes_no_call(served):
    choice, = ask(served, tool_choice="none").choices
    assert choice.message.tool_calls is None and choice.message.content
    assert choice.finish_reason in ("stop", "length")


def test_allowed_tools(served):
    choice, = ask(served, tool_choice=allowed("required", "get_time"), parallel_tool_calls=False).choices
    assert calls(choice) == ["get_time"]
    for choice in ask(served, tool_choice=allowed("auto", "get_time"), temperature=1, seed=5, n=3).choices:
        if choice.finish_reason != "length":
            assert set(calls(choice)) <= {"get_time"}


def test_parallel_calls_and_one_alone(served):
    question = [{"role": "user", "content": "What are the weather and the time in Paris and in Rome?"}]
    more = {"messages": question, "tool_choice": "required"}
    alone, = ask(served, parallel_tool_calls=False, **more).choices
    assert len(calls(alone)) == 1
    several, = ask(served, **more).choices
    # The first is the same; who may, goes on.
    assert several.message.tool_calls[0].function == alone.message.tool_calls[0].function


class Unit(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    symbol: str = pydantic.Field(max_length=3)


class Convert(pydantic.BaseModel):
    """Convert an amount from one unit to another."""

    amount: int = pydantic.Field(ge=0, le=9999)
    source: Unit
    target: Unit
    precise: bool


def test_strict_functions_are_parsed(served):
    answer = served.client.chat.completions.parse(
        model=served.model, messages=[{"role": "user", "content": "Convert 5 miles to kilometers."}], temperature=0,
        max_tokens=TOKENS, tools=[openai.pydantic_function_tool(Convert)], tool_choice="required",
        parallel_tool_calls=False)
    choice, = answer.choices
    call, = choice.message.tool_calls
    assert isinstance(call.function.parsed_arguments, Convert)
    assert choice.finish_reason == "tool_calls"


def test_a_strict_schema_that_cannot_be_followed_is_refused(served):
    weather = copy.deepcopy(WEATHER)
    weather["function"]["strict"] = True
    weather["function"]["parameters"]["properties"]["city"] = {"type": "string", "pattern": "(?!x)"}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(served, tools=[weather])
    assert caught.value.param == "tools" and caught.value.code == "invalid_format"


@pytest.mark.parametrize("choice", ["auto", "required", "none", named("get_time")], ids=str)
def test_a_stream_is_the_whole_answer(served, choice):
    more = {"tool_choice": choice, "parallel_tool_calls": False}
    whole = ask(served, **more)
    final, types = streamed(served, stream_options={"include_usage": True}, **more)
    assert plain(final.choices[0].message) == plain(whole.choices[0].message)
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert (final.usage.prompt_tokens, final.usage.completion_tokens) == (
        whole.usage.prompt_tokens, whole.usage.completion_tokens)
    if whole.choices[0].message.tool_calls:
        assert types.count("tool_calls.function.arguments.done") == len(calls(final.choices[0]))
        assert types.count("tool_calls.function.arguments.delta") > 1, "arguments come as they are written"


def test_a_stream_of_several_choices_with_calls(served):
    more = {"tool_choice": "required", "parallel_tool_calls": False, "n": 2, "temperature": 1, "seed": 8}
    whole = ask(served, **more)
    final, _ = streamed(served, **more)
    assert [(plain(choice.message), choice.finish_reason) for choice in final.choices] == [
        (plain(choice.message), choice.finish_reason) for choice in whole.choices]


@pytest.mark.models("qwen2.5-coder")
def test_round_trip(served):
    """The client's own object goes back as it came, with the function's result, and the model reports it."""
    first = ask(served).choices[0].message
    messages = [*QUESTION, first]
    for call in first.tool_calls:
        messages.append({"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 31, "sky": "cloudy"}'})
    # So small a model would otherwise call again, whatever it was told.
    choice, = ask(served, messages=messages, tool_choice="none").choices
    assert calls(choice) == [] and "31" in choice.message.content, choice.message.content


@pytest.mark.models("qwen2.5-coder")
@pytest.mark.parametrize("helper", ["stream", "parse"])
def test_round_trip_of_what_a_helper_made(served, helper):
    """Its calls have `parsed_arguments` beside what the server said, and its messages may have `parsed`."""
    if helper == "stream":
        first = streamed(served)[0].choices[0].message
    else:
        only = {"tools": [STRICT], "tool_choice": "required", "parallel_tool_calls": False}
        first = served.client.chat.completions.parse(**options(served, **only)).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": '{"temperature": 31}'} for call in first.tool_calls]
    choice, = ask(served, messages=[*QUESTION, first, *results], tool_choice="none").choices
    assert "31" in choice.message.content


def test_an_answer_that_was_parsed_goes_back(served):
    first = served.client.chat.completions.parse(
        model=served.model, messages=QUESTION, response_format=Unit, max_tokens=TOKENS, temperature=0)
    again = [*QUESTION, first.choices[0].message, {"role": "user", "content": "Thank you."}]
    assert ask(served, messages=again, tool_choice="none", max_tokens=8).choices[0].message.content


def test_results_of_calls_in_the_history(served):
    """Several calls at once, results as parts, and an assistant message without content."""
    made = [{"id": f"call_{city}", "type": "function",
             "function": {"name": "get_time", "arguments": json.dumps({"city": city})}} for city in ("Paris", "Rome")]
    noon = [{"type": "text", "text": "12:00"}]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": noon} for call in made]
    messages = [*QUESTION, {"role": "assistant", "tool_calls": made}, *results]
    choice, = ask(served, messages=messages, tool_choice="none").choices
    assert choice.message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_ends_for_its_length(served, stream):
    body = options(served, tool_choice=named("get_weather"), max_tokens=12)
    if stream:
        chunks = [chunk.choices[0] for chunk in served.client.chat.completions.create(stream=True, **body)]
        parts, reason = [part for chunk in chunks for part in chunk.delta.tool_calls or []], chunks[-1].finish_reason
    else:
        choice, = served.client.chat.completions.create(**body).choices
        parts, reason = choice.message.tool_calls or [], choice.finish_reason
    text = "".join(part.function.arguments or "" for part in parts)
    assert reason == "length"
    with pytest.raises(ValueError):
        json.loads(text)


def test_the_helper_says_that_a_strict_call_was_cut_off(served):
    with pytest.raises(openai.LengthFinishReasonError):
        served.client.chat.completions.parse(**options(served, tools=[openai.pydantic_function_tool(Convert)],
                                                       tool_choice="required", max_tokens=8))
