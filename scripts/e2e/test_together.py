"""A request answers the same alone and in a crowd, and a client that leaves frees its place."""
import concurrent.futures
import math
import threading

import openai
import pytest

PROMPTS = [
    "The capital of France is", "Once upon a time", "def add(a, b):\n", "Water boils at", "Il était une fois",
    "The quick brown fox", "1, 2, 3, 5, 8, 13,", "Im Jahre 1850",
]


def generate(served, prompt):
    """Tokens, their likelihoods, and those of the prompt."""
    body = {"model": served.model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "logprobs": 0, "echo": True,
            "ignore_eos": True, "return_token_ids": True}
    choice = served.server.post("/v1/completions", body)["choices"][0]
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]


def test_alone_and_in_a_batch(served):
    alone = [generate(served, prompt) for prompt in PROMPTS]
    with concurrent.futures.ThreadPoolExecutor(len(PROMPTS)) as pool:
        together = list(pool.map(lambda prompt: generate(served, prompt), PROMPTS))
    for (tokens, likelihoods), (tokens_together, likelihoods_together) in zip(alone, together, strict=True):
        assert tokens == tokens_together
        for one, other in zip(likelihoods[1:], likelihoods_together[1:], strict=True):
            assert math.isclose(one, other, abs_tol=2e-3)


def test_prompts_of_one_request_equal_single_ones(served):
    options = {"model": served.model, "max_tokens": 12, "temperature": 0}
    alone = [served.client.completions.create(prompt=prompt, **options).choices[0].text for prompt in PROMPTS]
    together = served.client.completions.create(prompt=PROMPTS, **options)
    assert [choice.text for choice in together.choices] == alone


def test_a_seed_is_independent_of_the_crowd(served):
    options = {"model": served.model, "max_tokens": 12, "temperature": 1.0, "seed": 42, "prompt": PROMPTS[0]}
    alone = served.client.completions.create(**options).choices[0].text
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        crowd = [pool.submit(served.client.completions.create, **options | {"seed": seed}) for seed in range(5)]
        again = pool.submit(served.client.completions.create, **options).result().choices[0].text
        for other in crowd:
            other.result()
    assert again == alone


def idle(served):
    return {name: 0 for name in served.server.idle_gauges()}


@pytest.mark.models("smollm2")
@pytest.mark.parametrize("n", [1, 2])
def test_closing_a_stream_frees_its_place(served, n):
    stream = served.client.chat.completions.create(
        model=served.model, messages=[{"role": "user", "content": "Count to one thousand."}], max_tokens=2000, n=n,
        temperature=0, stream=True, extra_body={"ignore_eos": True})
    for _, chunk in zip(range(4), stream):
        assert chunk.choices
    assert served.server.metric("vllm:num_requests_running") >= 1
    stream.close()
    assert served.server.wait_idle() == idle(served)


@pytest.mark.models("smollm2")
def test_a_client_that_gives_up_waiting_frees_its_place(served):
    with pytest.raises(openai.APITimeoutError):
        served.client.with_options(timeout=1.0).chat.completions.create(
            model=served.model, messages=[{"role": "user", "content": "Count to one thousand."}], max_tokens=4000,
            extra_body={"ignore_eos": True})
    assert served.server.wait_idle() == idle(served)


@pytest.mark.models("smollm2")
def test_many_who_leave_at_once(served):
    begun = threading.Barrier(9, timeout=120)

    def leave(_):
        stream = served.client.completions.create(
            model=served.model, prompt="Count:", max_tokens=2000, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        begun.wait()
        stream.close()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        left = [pool.submit(leave, number) for number in range(8)]
        begun.wait()
        for one in left:
            one.result()
    assert served.server.wait_idle() == idle(served)
