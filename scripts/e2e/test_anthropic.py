"""/v1/messages and its count_tokens through Anthropic's official client, unmodified."""
import json

import anthropic
import jsonschema
import pydantic
import pytest
from conftest import CHAT_MODELS

pytestmark = pytest.mark.models(*CHAT_MODELS)

QUESTION = [{"role": "user", "content": "Name the four seasons of the year."}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris in Celsius?"}]
WEATHER = {"name": "get_weather", "description": "Get the current weather of a city.", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 24},
                                     "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}},
    "required": ["city", "unit"], "additionalProperties": False}}
TIME = {"name": "get_time", "description": "Get the local time of a city.", "input_schema": {
    "type": "object", "properties": {"city": {"type": "string", "maxLength": 24}},
    "required": ["city"], "additionalProperties": False}}
SCHEMAS = {tool["name"]: tool["input_schema"] for tool in (WEATHER, TIME)}
ONE = {"disable_parallel_tool_use": True}
# This API has it, the newest clients no longer name it.
GREEDY = {"temperature": 0}


@pytest.fixture
def client(served):
    with anthropic.Anthropic(base_url=served.server.root, api_key="not-needed", max_retries=0, timeout=300) as client:
        yield client


@pytest.fixture
def base(served):
    return {"model": served.model, "messages": QUESTION, "max_tokens": 48, "extra_body": GREEDY}


@pytest.fixture
def weather(served):
    return {"model": served.model, "messages": ASK_WEATHER, "max_tokens": 160, "extra_body": GREEDY,
            "tools": [WEATHER, TIME]}


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def calls(message):
    """Names and inputs of the calls of a message, each of which must follow its schema."""
    found = [block for block in message.content if block.type == "tool_use"]
    assert (message.stop_reason == "tool_use") == bool(found)
    assert len({block.id for block in found}) == len(found)
    for block in found:
        jsonschema.validate(block.input, SCHEMAS[block.name])
    return [(block.name, block.input) for block in found]


def plain(message):
    """What two answers to the same request must share: all but the identifiers."""
    content = [block.model_dump(include={"type", "text", "name", "input"}) for block in message.content]
    return message.role, content, message.stop_reason, message.stop_sequence, message.usage.output_tokens


def test_message(served, client, base):
    answer = client.messages.create(**base)
    assert answer.type == "message" and answer.role == "assistant" and answer.id.startswith("msg_")
    assert answer.model == served.model and answer.stop_sequence is None
    assert [block.type for block in answer.content] == ["text"] and answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 0 and 0 < answer.usage.output_tokens <= 48


def test_the_same_text_as_a_chat_completion(served, client, base):
    chat = served.client.chat.completions.create(model=served.model, messages=QUESTION, max_tokens=48, temperature=0)
    answer = client.messages.create(**base)
    assert text_of(answer) == chat.choices[0].message.content
    read = answer.usage.cache_read_input_tokens or 0
    assert answer.usage.input_tokens + read == chat.usage.prompt_tokens


def test_events_of_a_stream(client, base):
    events = list(client.messages.create(stream=True, **base))
    types = [event.type for event in events]
    assert types[0] == "message_start" and types[-2:] == ["message_delta", "message_stop"]
    inner = [kind for kind in types[1:-2] if kind != "ping"]
    assert inner[0] == "content_block_start" and inner[-1] == "content_block_stop"
    assert set(inner[1:-1]) == {"content_block_delta"} and len(inner) > 6, "it comes in pieces"
    start = events[0].message
    assert start.content == [] and start.stop_reason is None and start.usage.input_tokens > 0
    assert events[-2].delta.stop_reason in ("end_turn", "max_tokens")


def test_a_stream_is_the_whole_message(client, base):
    whole = client.messages.create(**base)
    with client.messages.stream(**base) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(whole) and plain(final) == plain(whole)


def test_max_tokens(client, base):
    answer = client.messages.create(**base | {"max_tokens": 4})
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 4)


def test_stop_sequence(client, base):
    full = text_of(client.messages.create(**base))
    stop = full[len(full) // 2:len(full) // 2 + 6]
    answer = client.messages.create(stop_sequences=[stop, "never in it ###"], **base)
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)
    assert text_of(answer) == full[:full.index(stop)]
    with client.messages.stream(stop_sequences=[stop], **base) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", stop)


def test_system_as_text_and_as_parts(client, base):
    told = "You answer in one word."
    text = client.messages.create(system=told, **base)
    part = {"type": "text", "text": told, "cache_control": {"type": "ephemeral"}}
    parts = client.messages.create(system=[part], **base)
    assert plain(text) == plain(parts)
    assert client.messages.count_tokens(model=base["model"], messages=QUESTION, system=told).input_tokens > (
        client.messages.count_tokens(model=base["model"], messages=QUESTION, system="x").input_tokens)


def test_conversation_with_parts(client, base):
    answer = client.messages.create(**base | {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "Hello."}, {"type": "text", "text": "Who are you?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A model."}]},
        {"role": "user", "content": "Name a colour."}]})
    assert text_of(answer)


def test_an_answer_that_is_begun_is_continued(client, base):
    begun = "The four seasons are: spring,"
    messages = [*QUESTION, {"role": "assistant", "content": begun}]
    answer = client.messages.create(**base | {"messages": messages})
    assert text_of(answer) and not text_of(answer).startswith("The four")


def test_sampling_parameters_are_taken(client, base):
    sampling = {"temperature": 1.0, "top_p": 0.9, "top_k": 40}
    answer = client.messages.create(**base | {"extra_body": sampling}, metadata={"user_id": "someone"})
    assert answer.usage.output_tokens > 0


def test_count_tokens(client, base, weather):
    def count(**more):
        return client.messages.count_tokens(model=base["model"], **more).input_tokens
    usage = client.messages.create(**base).usage
    assert count(messages=QUESTION) == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    assert count(messages=ASK_WEATHER, tools=weather["tools"]) > count(messages=ASK_WEATHER)


@pytest.mark.models("qwen2.5-coder")
def test_a_model_calls_by_itself(client, weather):
    for choice in ({}, {"tool_choice": {"type": "auto"}}):
        answer = client.messages.create(**weather, **choice)
        assert calls(answer) == [("get_weather", {"city": "Paris", "unit": "celsius"})]


def test_choices_of_tools(client, weather):
    (name, _), = calls(client.messages.create(tool_choice={"type": "any"} | ONE, **weather))
    assert name in SCHEMAS
    (name, _), = calls(client.messages.create(tool_choice={"type": "tool", "name": "get_time"} | ONE, **weather))
    assert name == "get_time"
    assert calls(client.messages.create(tool_choice={"type": "none"}, **weather | {"max_tokens": 32})) == []


@pytest.mark.parametrize("choice", [{"type": "any"} | ONE, {"type": "auto"} | ONE], ids=lambda choice: choice["type"])
def test_calls_in_a_stream_are_those_of_the_whole(client, weather, choice):
    whole = client.messages.create(tool_choice=choice, **weather)
    with client.messages.stream(tool_choice=choice, **weather) as stream:
        deltas = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert plain(final) == plain(whole)
    for (_, given), in [calls(whole)] if calls(whole) else []:
        assert json.loads("".join(deltas)) == given


def test_a_call_that_is_cut_off(client, weather):
    answer = client.messages.create(tool_choice={"type": "tool", "name": "get_weather"}, **weather | {"max_tokens": 10})
    assert answer.stop_reason == "max_tokens"


@pytest.mark.models("qwen2.5-coder")
@pytest.mark.parametrize("as_parts", [False, True])
def test_round_trip(client, weather, as_parts):
    """The client's own blocks go back as they came, with the function's result, and the model reports it."""
    with client.messages.stream(**weather) as stream:
        first = stream.get_final_message()
    found = '{"temperature": 31, "sky": "cloudy"}'
    content = [{"type": "text", "text": found}] if as_parts else found
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": content}
               for block in first.content if block.type == "tool_use"]
    messages = [*ASK_WEATHER, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    last = client.messages.create(**weather | {"messages": messages}, tool_choice={"type": "none"})
    assert "31" in text_of(last) and last.stop_reason == "end_turn"


def test_a_result_that_is_an_error_beside_text(client, weather):
    messages = [*ASK_WEATHER,
                {"role": "assistant", "content": [
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "toolu_1", "name": "get_time", "input": {"city": "Paris"}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no such city", "is_error": True},
                    {"type": "text", "text": "And now?"}]}]
    body = weather | {"messages": messages, "max_tokens": 32, "tool_choice": {"type": "none"}}
    assert text_of(client.messages.create(**body))


class Person(pydantic.BaseModel):
    name: str
    age: int


@pytest.mark.models("qwen2.5-coder")
def test_structured_output(client, base):
    answer = client.messages.parse(**base | {"messages": [{"role": "user", "content": "Ada is 36 years old."}]},
                                   output_format=Person)
    assert isinstance(answer.parsed_output, Person) and answer.stop_reason == "end_turn"


def test_models(served, client):
    assert served.model in [model.id for model in client.models.list()]


@pytest.mark.parametrize(("more", "name"), [
    ({"extra_body": {"temperature": 9}}, "temperature"), ({"messages": [{"role": "nobody", "content": "x"}]}, "role"),
    ({"max_tokens": 0}, "max_tokens"), ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "name")])
def test_errors_have_the_form_of_this_api(client, base, more, name):
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**base | more)
    assert caught.value.body["type"] == "error"
    error = caught.value.body["error"]
    assert error["type"] == "invalid_request_error" and name in error["message"]


def test_an_unknown_model(client, base):
    with pytest.raises(anthropic.NotFoundError) as caught:
        client.messages.create(**base | {"model": "no-such-model"})
    assert caught.value.body["error"]["type"] == "not_found_error"


def test_request_id(client, base):
    answer = client.messages.with_raw_response.create(**base | {"max_tokens": 1})
    assert answer.headers["request-id"]
