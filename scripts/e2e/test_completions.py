"""/v1/completions, /tokenize and /detokenize on every model; the base model is reached only this way."""
import json
import math
import pathlib
import unicodedata

import pytest

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"
PROMPT = "The three primary colours are"
STRINGS = [
    "plain words", "  two  leading spaces", "tabs\tand\nlines\r\n\n\n", "été, garçon, Straße, größer", "مرحبا بالعالم",
    "日本語のテキスト", "👩‍👩‍👧‍👦 and 🇩🇪", "x = [i**2 for i in range(10)]", "a" * 300, "1234567890 3.14 1e-9",
    "<|im_end|><|endoftext|><bos></s>", "\u0000\u0001 control", "e\u0301 combining",
]


def complete(served, **options):
    return served.client.completions.create(
        **{"model": served.model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0} | options)


def tokenize(served, text, **options):
    return served.server.post("/tokenize", {"model": served.model, "prompt": text} | options)["tokens"]


def test_whole_answer(served):
    answer = complete(served)
    assert answer.object == "text_completion" and answer.choices[0].text
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_equals_the_whole_answer(served):
    whole = complete(served)
    text, finishes, usages = "", [], []
    for chunk in complete(served, stream=True, stream_options={"include_usage": True}):
        usages += [chunk.usage] if chunk.usage else []
        for choice in chunk.choices:
            text += choice.text
            finishes += [choice.finish_reason] if choice.finish_reason else []
    assert text == whole.choices[0].text
    assert finishes == [whole.choices[0].finish_reason]
    assert [usage.completion_tokens for usage in usages] == [whole.usage.completion_tokens]


def test_two_choices_of_two_prompts_come_in_order(served):
    alone = [complete(served, prompt=prompt).choices[0].text for prompt in (PROMPT, "Once upon a time")]
    answer = complete(served, prompt=[PROMPT, "Once upon a time"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [alone[0], alone[0], alone[1], alone[1]]


def test_token_ids_are_a_prompt(served):
    ids = tokenize(served, PROMPT)
    by_text, by_ids = complete(served), complete(served, prompt=ids)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.usage.prompt_tokens == by_text.usage.prompt_tokens == len(ids)


def test_echo_and_logprobs(served):
    answer = complete(served, echo=True, logprobs=2, max_tokens=4, extra_body={"ignore_eos": True})
    choice = answer.choices[0]
    assert choice.text.startswith(PROMPT)
    logprobs = choice.logprobs
    total = answer.usage.total_tokens
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == total
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert all(len(top) >= 2 for top in logprobs.top_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_echoed_likelihoods_equal_those_of_the_generation(served):
    """What was likely when it was generated is as likely when it is read: prefill and decode agree."""
    ids = tokenize(served, PROMPT)
    options = {"prompt": ids, "logprobs": 0, "max_tokens": 8}
    made = served.server.post("/v1/completions", {
        "model": served.model, "temperature": 0, "ignore_eos": True, "return_token_ids": True, **options})["choices"][0]
    read = complete(served, **options | {"prompt": ids + made["token_ids"], "echo": True, "max_tokens": 1})
    again = read.choices[0].logprobs.token_logprobs[len(ids):len(ids) + 8]
    for one, other in zip(made["logprobs"]["token_logprobs"], again, strict=True):
        assert math.isclose(one, other, abs_tol=5e-3)


def test_stop_and_seed(served):
    full = complete(served).choices[0].text
    stop = full[6:10]
    choice = complete(served, stop=stop).choices[0]
    assert (choice.text, choice.finish_reason) == (full[:full.index(stop)], "stop")
    drawn = [complete(served, temperature=1.0, seed=3).choices[0].text for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("text", STRINGS, ids=range(len(STRINGS)))
def test_tokens_make_the_text_again(served, text):
    ids = tokenize(served, text, add_special_tokens=False)
    # Qwen's own tokenizer composes characters first.
    expected = unicodedata.normalize("NFC", text) if served.name == "qwen2.5-coder" else text
    assert served.server.post("/detokenize", {"model": served.model, "tokens": ids})["prompt"] == expected


def test_tokens_equal_the_reference(served):
    reference = json.loads((FIXTURES / f"{served.name}.json").read_text(encoding="utf-8"))["perplexity"]
    text = (FIXTURES / "perplexity.txt").read_text(encoding="utf-8")
    skip = reference["bos_tokens"]
    expected = [token for window in reference["windows"] for token in window[skip:]]
    assert tokenize(served, text, add_special_tokens=False) == expected


def test_tokens_of_a_conversation(served):
    if served.name == "gemma3":
        pytest.skip("a base model has no chat template")
    body = {"model": served.model, "messages": [{"role": "user", "content": "Hello"}]}
    counted = served.server.post("/tokenize", body)
    answered = served.client.chat.completions.create(**body, max_tokens=1)
    assert counted["count"] == len(counted["tokens"]) == answered.usage.prompt_tokens
    assert counted["max_model_len"] > 1000
