"""/v1/responses through the official client, unmodified."""
import json

import jsonschema
import openai
import pydantic
import pytest
from conftest import CHAT_MODELS

pytestmark = pytest.mark.models(*CHAT_MODELS)

QUESTION = "Name the four seasons of the year."
ASK_WEATHER = "What is the weather in Paris in Celsius?"


def tool(name, description, properties):
    return {"type": "function", "name": name, "description": description, "strict": True, "parameters": {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}}


CITY = {"type": "string", "maxLength": 24}
TOOLS = [tool("get_weather", "Get the current weather of a city.",
              {"city": CITY, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}}),
         tool("get_time", "Get the local time of a city.", {"city": CITY})]
SCHEMAS = {entry["name"]: entry["parameters"] for entry in TOOLS}


@pytest.fixture
def responses(served):
    return served.client.responses


@pytest.fixture
def base(served):
    return {"model": served.model, "input": QUESTION, "max_output_tokens": 48, "temperature": 0}


@pytest.fixture
def weather(served):
    return {"model": served.model, "input": ASK_WEATHER, "max_output_tokens": 160, "temperature": 0, "tools": TOOLS}


def calls(response):
    """Names and arguments of the calls of a response, each of which must be whole and follow its schema."""
    found = [item for item in response.output if item.type == "function_call"]
    for item in found:
        assert item.call_id and item.status in (None, "completed")
        jsonschema.validate(json.loads(item.arguments), SCHEMAS[item.name])
    return [(item.name, json.loads(item.arguments)) for item in found]


def plain(response):
    """What two answers to the same request must share: all but the identifiers."""
    items = [(item.type, getattr(item, "name", None), getattr(item, "arguments", None)) for item in response.output]
    return response.status, response.output_text, items, response.usage.output_tokens


def streamed(responses, **body):
    with responses.stream(**body) as stream:
        events = list(stream)
        return stream.get_final_response(), events


def test_response(served, responses, base):
    answer = responses.create(**base)
    assert answer.object == "response" and answer.id.startswith("resp") and answer.model == served.model
    message, = answer.output
    assert (message.type, message.role) == ("message", "assistant") and message.id
    assert [part.type for part in message.content] == ["output_text"] and message.content[0].annotations == []
    assert answer.output_text == message.content[0].text != ""
    assert answer.status in ("completed", "incomplete") and answer.error is None
    usage = answer.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens and 0 < usage.output_tokens <= 48
    assert usage.input_tokens_details.cached_tokens >= 0 and usage.output_tokens_details.reasoning_tokens == 0
    # What was asked comes back.
    assert (answer.temperature, answer.max_output_tokens, answer.tools) == (0, 48, [])
    assert answer.parallel_tool_calls is True and answer.tool_choice == "auto" and answer.text.format.type == "text"


def test_the_same_text_as_a_chat_completion(served, responses, base):
    chat = served.client.chat.completions.create(
        model=served.model, messages=[{"role": "user", "content": QUESTION}], max_tokens=48, temperature=0)
    answer = responses.create(**base)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.usage.input_tokens == chat.usage.prompt_tokens


def test_events_of_a_stream(responses, base):
    events = list(responses.create(stream=True, **base))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type.removeprefix("response.") for event in events]
    assert types[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert types[-4:-1] == ["output_text.done", "content_part.done", "output_item.done"]
    assert types[-1] in ("completed", "incomplete")
    assert set(types[4:-4]) == {"output_text.delta"} and len(types) > 12, "it comes in pieces"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == events[-4].text == events[-1].response.output_text
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    assert len({event.response.id for event in (events[0], events[1], events[-1])}) == 1


def test_a_stream_is_the_whole_response(responses, base):
    # With enough tokens to end by itself: the client's helper waits for `completed`.
    body = base | {"max_output_tokens": 400, "input": "Say hello."}
    whole = responses.create(**body)
    final, _ = streamed(responses, **body)
    assert plain(final) == plain(whole)


def test_max_output_tokens(responses, base):
    answer = responses.create(**base | {"max_output_tokens": 4})
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 4
    last = list(responses.create(stream=True, **base | {"max_output_tokens": 4}))[-1]
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"


def test_instructions_are_a_system_message(served, responses, base):
    told = "You answer in one word."
    answer = responses.create(instructions=told, **base)
    messages = [{"role": "system", "content": told}, {"role": "user", "content": QUESTION}]
    items = responses.create(**base | {"input": messages})
    assert answer.output_text == items.output_text and answer.instructions == told


def test_input_of_several_items(responses, base):
    answer = responses.create(**base | {"input": [
        {"role": "developer", "content": "You answer briefly."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello!"}]},
        {"role": "user", "content": "Name a colour."}]})
    assert answer.output_text


def test_a_conversation_by_what_came_back(responses, base):
    first = responses.create(**base | {"input": [{"role": "user", "content": "Say hello."}]})
    history = [{"role": "user", "content": "Say hello."}, *first.output, {"role": "user", "content": "Again."}]
    assert responses.create(**base | {"input": history}).output_text


@pytest.mark.models("qwen2.5-coder")
def test_a_model_calls_by_itself(responses, weather):
    answer = responses.create(**weather)
    assert calls(answer) == [("get_weather", {"city": "Paris", "unit": "celsius"})]
    assert answer.status == "completed"


def test_choices_of_tools(responses, weather):
    (name, _), = calls(responses.create(tool_choice="required", parallel_tool_calls=False, **weather))
    assert name in SCHEMAS
    named = {"type": "function", "name": "get_time"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [named]}
    for choice in (named, allowed):
        (name, _), = calls(responses.create(tool_choice=choice, parallel_tool_calls=False, **weather))
        assert name == "get_time"
    assert calls(responses.create(tool_choice="none", **weather | {"max_output_tokens": 32})) == []


def test_calls_in_a_stream_are_those_of_the_whole(responses, weather):
    body = weather | {"tool_choice": "required", "parallel_tool_calls": False}
    whole = responses.create(**body)
    final, events = streamed(responses, **body)
    assert plain(final) == plain(whole) and calls(final)
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    done, = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert "".join(deltas) == done.arguments == final.output[-1].arguments and len(deltas) > 1


@pytest.mark.models("qwen2.5-coder")
def test_round_trip(responses, weather):
    """The client's own items go back as they came, with the function's result, and the model reports it."""
    first = responses.create(**weather)
    items = [{"role": "user", "content": ASK_WEATHER}, *first.output]
    result = {"type": "function_call_output", "output": '{"temperature": 31, "sky": "cloudy"}'}
    items += [result | {"call_id": item.call_id} for item in first.output if item.type == "function_call"]
    last = responses.create(**weather | {"input": items, "tool_choice": "none"})
    assert "31" in last.output_text


class Person(pydantic.BaseModel):
    name: str
    age: int


@pytest.mark.models("qwen2.5-coder")
def test_structured_output(responses, base):
    body = base | {"input": "Who is this? Ada is 36 years old.", "text_format": Person}
    answer = responses.parse(**body)
    assert isinstance(answer.output_parsed, Person) and answer.output_parsed.name == "Ada"
    final, _ = streamed(responses, **body)
    assert final.output_parsed == answer.output_parsed


@pytest.mark.models("qwen2.5-coder")
def test_strict_functions_are_parsed(responses, weather):
    person = openai.pydantic_function_tool(Person)["function"] | {"type": "function"}
    answer = responses.parse(**weather | {"tools": [person]}, tool_choice="required", parallel_tool_calls=False)
    assert Person.model_validate(json.loads(answer.output[-1].arguments))


def test_harmless_metadata_is_accepted(responses, base):
    answer = responses.create(**base, user="someone", metadata={"a": "b"}, store=False, safety_identifier="x",
                              service_tier="auto", prompt_cache_key="k", truncation="disabled", include=[])
    assert answer.metadata == {"a": "b"}


@pytest.mark.parametrize(("more", "param"), [
    ({"temperature": 9}, "temperature"), ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"tools": [{"type": "web_search"}]}, "tools"), ({"input": [{"role": "nobody", "content": "x"}]}, "input")])
def test_errors_name_the_parameter(responses, base, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        responses.create(**base | more)
    assert caught.value.param.startswith(param)


def test_an_unknown_model(responses, base):
    with pytest.raises(openai.NotFoundError):
        responses.create(**base | {"model": "no-such-model"})
