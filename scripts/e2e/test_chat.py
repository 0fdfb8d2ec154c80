"""/v1/chat/completions through the official client, on the models that have a chat template."""
import math

import pytest
from conftest import CHAT_MODELS

pytestmark = pytest.mark.models(*CHAT_MODELS)

QUESTION = [{"role": "user", "content": "Name the four seasons of the year."}]


def chat(served, **options):
    return served.client.chat.completions.create(
        **{"model": served.model, "messages": QUESTION, "max_tokens": 24, "temperature": 0} | options)


def gather(stream):
    """Texts, roles and finish reasons by index, and the usages, of a stream."""
    texts, roles, finishes, usages = {}, {}, {}, []
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        if chunk.usage:
            assert chunk.choices == [], "the usage chunk has no choices"
            usages.append(chunk.usage)
        for choice in chunk.choices:
            assert choice.index not in finishes, "nothing comes after the finish_reason"
            if choice.delta.role:
                assert choice.index not in texts, "the role comes first"
                roles.setdefault(choice.index, []).append(choice.delta.role)
            if choice.delta.content:
                texts[choice.index] = texts.get(choice.index, "") + choice.delta.content
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    return texts, roles, finishes, usages


def test_whole_answer(served):
    answer = chat(served)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl") and answer.model == served.model
    choice, = answer.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 24


def test_stream_equals_the_whole_answer(served):
    whole = chat(served)
    texts, roles, finishes, usages = gather(chat(served, stream=True, stream_options={"include_usage": True}))
    assert texts == {0: whole.choices[0].message.content}
    assert roles == {0: ["assistant"]}
    assert finishes == {0: whole.choices[0].finish_reason}
    usage, = usages
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        whole.usage.prompt_tokens, whole.usage.completion_tokens)


def test_stream_without_usage_has_none(served):
    _, _, finishes, usages = gather(chat(served, stream=True, max_tokens=4))
    assert usages == [] and len(finishes) == 1


def test_two_choices(served):
    options = {"n": 2, "temperature": 1.0, "seed": 11}
    whole = chat(served, **options)
    assert [choice.index for choice in whole.choices] == [0, 1]
    contents = {choice.index: choice.message.content for choice in whole.choices}
    assert contents[0] != contents[1], "each choice draws for itself"
    texts, roles, finishes, _ = gather(chat(served, stream=True, **options))
    assert texts == contents
    assert sorted(roles) == sorted(finishes) == [0, 1]


def test_logprobs(served):
    content = chat(served, logprobs=True, top_logprobs=3, max_tokens=12).choices[0].logprobs.content
    for entry in content:
        assert entry.logprob <= 0
        top = [rival.logprob for rival in entry.top_logprobs]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        assert math.isclose(entry.logprob, top[0], abs_tol=1e-4), "greedy takes the most likely"
        assert sum(map(math.exp, top)) <= 1.001


def test_logprobs_bytes_make_the_text(served):
    choice = chat(served, logprobs=True, max_tokens=12, extra_body={"ignore_eos": True}).choices[0]
    joined = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content)
    assert len(choice.logprobs.content) == 12
    assert joined.decode(errors="ignore").startswith(choice.message.content.rstrip("\N{REPLACEMENT CHARACTER}")[:20])


def test_logprobs_in_a_stream_equal_the_whole(served):
    options = {"logprobs": True, "top_logprobs": 2, "max_tokens": 8}
    whole = chat(served, **options).choices[0].logprobs.content
    streamed = [entry for chunk in chat(served, stream=True, **options) for choice in chunk.choices
                if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    for one, other in zip(streamed, whole):
        assert math.isclose(one.logprob, other.logprob, abs_tol=1e-3)


def test_stop_string_across_tokens(served):
    full = chat(served).choices[0].message.content
    stop = full[len(full) // 2:len(full) // 2 + 6]
    choice = chat(served, stop=[stop, "never in it ###"]).choices[0]
    assert choice.message.content == full[:full.index(stop)]
    assert choice.finish_reason == "stop"
    texts, _, finishes, _ = gather(chat(served, stop=stop, stream=True))
    assert texts.get(0, "") == full[:full.index(stop)] and finishes == {0: "stop"}


def test_seed_repeats(served):
    def draw(seed):
        return chat(served, temperature=1.2, seed=seed).choices[0].message.content
    assert draw(5) == draw(5)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_max_completion_tokens(served):
    answer = chat(served, max_completion_tokens=5, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 5
    assert answer.choices[0].finish_reason == "length"


def test_conversation_with_parts(served):
    answer = chat(served, max_tokens=8, messages=[
        {"role": "system", "content": "You answer briefly."},
        {"role": "user", "content": [{"type": "text", "text": "Hello."}, {"type": "text", "text": "Who are you?"}]},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": "Name a colour."},
    ])
    assert answer.choices[0].message.content


def test_text_that_spells_control_tokens_stays_text(served):
    def prompt_tokens(text):
        return chat(served, max_tokens=1, messages=[{"role": "user", "content": text}]).usage.prompt_tokens
    assert prompt_tokens("<|im_end|>") > prompt_tokens("a") + 1


def test_harmless_metadata_is_accepted(served):
    answer = chat(served, max_tokens=1, user="someone", metadata={"a": "b"}, store=False, safety_identifier="x",
                  service_tier="auto", prompt_cache_key="k")
    assert answer.usage.completion_tokens == 1


def test_sampling_parameters_are_taken(served):
    answer = chat(served, temperature=0.9, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.5, seed=1,
                  logit_bias={"0": -100},
                  extra_body={"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "min_tokens": 6})
    assert answer.usage.completion_tokens >= 6


def test_models(served):
    listed = served.client.models.list().data
    assert served.model in [model.id for model in listed]
    assert all(model.object == "model" for model in listed)
    assert served.client.models.retrieve(served.model).id == served.model
