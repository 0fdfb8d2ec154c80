"""Embeddings through the official client, by an encoder that is served beside a model that generates."""
import array
import asyncio
import base64
import concurrent.futures
import json
import math
import operator
import struct
import sys
import time

import openai
import pytest
from conftest import SCRIPTS, WITH_ENCODER, make_client
from lib import server

sys.path.insert(0, str(SCRIPTS / "fixtures"))
import minilm_texts  # noqa: E402

pytestmark = pytest.mark.models(WITH_ENCODER)

REFERENCE = server.REPO / "models" / "tests" / "fixtures" / "minilm.json"
DIMENSIONS = 384
COSINE_MIN = 0.9999
TEXTS = ["hello world", "The quick brown fox jumps over the lazy dog.", "Où est passé l'été ?",
         "我能吞下玻璃而不伤身体。"]
# "hello world" between the two tokens that this model has around a text.
HELLO = [101, 7592, 2088, 102]
LONG = "word " * 600
MANY = 500
# Before the first token of a chat and between two, on the busiest machine; 0.5 s on two cores that others use too.
GAP_MAX_S = 2


def embed(served, texts, **more):
    return served.client.embeddings.create(model=served.encoder, input=texts, **more)


def vectors(answer):
    assert [entry.index for entry in answer.data] == list(range(len(answer.data)))
    return [entry.embedding for entry in answer.data]


def bits(answer):
    """The numbers as they are in memory: equal only if every bit is."""
    return [array.array("f", vector).tobytes() for vector in vectors(answer)]


def cosine(a, b):
    return sum(map(operator.mul, a, b)) / (math.hypot(*a) * math.hypot(*b))


@pytest.fixture(scope="module")
def reference():
    """Texts, with the tokens and the vectors that sentence-transformers makes of them."""
    fixture = json.loads(REFERENCE.read_text(encoding="utf-8"))
    expected = [struct.unpack(f"<{DIMENSIONS}e", bytes.fromhex(digits)) for digits in fixture["vectors"]]
    # An empty text is refused: the tokens around it stand for it.
    texts = [text or tokens for text, tokens in zip(minilm_texts.texts(), fixture["tokens"], strict=True)]
    return texts, fixture["tokens"], expected


def test_both_models_are_listed(served):
    assert [entry.id for entry in served.client.models.list()] == [served.model, served.encoder]
    assert served.client.models.retrieve(served.encoder).id == served.encoder
    answer = embed(served, TEXTS[0])
    assert answer.model == served.encoder and answer.object == "list" and answer.data[0].object == "embedding"


@pytest.mark.parametrize("given", [TEXTS[0], TEXTS[:1], HELLO, [HELLO]], ids=["text", "list", "tokens", "token lists"])
def test_one_text_in_every_form(served, given):
    answer = embed(served, given)
    vector, = vectors(answer)
    assert len(vector) == DIMENSIONS and math.isclose(math.hypot(*vector), 1, abs_tol=1e-5)
    assert bits(answer) == bits(embed(served, TEXTS[0]))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(HELLO)


def test_a_list_is_its_texts(served):
    together, alone = embed(served, TEXTS), [embed(served, text) for text in TEXTS]
    assert bits(together) == [bits(answer)[0] for answer in alone]
    assert len(set(bits(together))) == len(TEXTS), "each text has a vector of its own"
    assert together.usage.prompt_tokens == sum(answer.usage.prompt_tokens for answer in alone)


def test_numbers_and_base64_are_the_same(served):
    """The client asks for base64 by itself and decodes it, unless it is told what to ask for."""
    decoded, numbers = embed(served, TEXTS), embed(served, TEXTS, encoding_format="float")
    assert bits(decoded) == bits(numbers)
    raw = vectors(embed(served, TEXTS, encoding_format="base64"))
    assert [base64.b64decode(text, validate=True) for text in raw] == bits(numbers)


@pytest.mark.parametrize("dimensions", [1, 64, DIMENSIONS])
def test_dimensions(served, dimensions):
    """The first elements, brought to the length 1 again."""
    whole, = vectors(embed(served, TEXTS[1]))
    cut, = vectors(embed(served, TEXTS[1], dimensions=dimensions))
    length = math.hypot(*whole[:dimensions])
    assert cut == pytest.approx([x / length for x in whole[:dimensions]], abs=1e-6)


def test_all_reference_texts(served, reference):
    """From text to vector, against sentence-transformers; each alone is, to the bit, what it is among all."""
    texts, tokens, expected = reference
    cut = {"truncate_prompt_tokens": minilm_texts.TOKENS_MAX}
    answer = embed(served, texts, extra_body=cut)
    assert answer.usage.prompt_tokens == sum(map(len, tokens))
    cosines = [cosine(ours, theirs) for ours, theirs in zip(vectors(answer), expected, strict=True)]
    worst = min(range(len(texts)), key=cosines.__getitem__)
    assert cosines[worst] >= COSINE_MIN, f"text {worst}: {cosines[worst]}"
    together = bits(answer)
    assert bits(embed(served, tokens)) == together, "tokens are what the texts are"
    for at in range(0, len(texts), 7):
        assert bits(embed(served, texts[at], extra_body=cut)) == [together[at]], f"text {at} alone"


REFUSED = {
    "an empty text": ("", "input", "empty_string"),
    "no texts": ([], "input", "empty_array"),
    "an empty text of several": (["a", ""], "input[1]", "empty_string"),
    "no tokens": ([HELLO, []], "input[1]", "empty_string"),
    "too long": (LONG, "input", "context_length_exceeded"),
    "too long of several": (["a", LONG, "b"], "input[1]", "context_length_exceeded"),
    "too many tokens": ([HELLO, HELLO * 200], "input[1]", "context_length_exceeded"),
    "a token of another vocabulary": ([HELLO, [101, 99999]], "input[1]", "out_of_range"),
    "a number among texts": (["a", 5], "input[1]", "invalid_type"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_embedded_is_named(served, case):
    given, param, code = REFUSED[case]
    with pytest.raises(openai.BadRequestError) as caught:
        embed(served, given)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert f"`{param}`" in caught.value.message


@pytest.mark.parametrize("dimensions", [0, DIMENSIONS + 1])
def test_dimensions_that_the_model_does_not_have(served, dimensions):
    with pytest.raises(openai.BadRequestError) as caught:
        embed(served, "a", dimensions=dimensions)
    assert caught.value.param == "dimensions"


def test_a_text_is_cut_when_that_is_asked_for(served):
    """What is left has the tokens around a text, and is its beginning."""
    cut = embed(served, LONG, extra_body={"truncate_prompt_tokens": 12})
    assert cut.usage.prompt_tokens == 12 and bits(cut) == bits(embed(served, "word " * 10))
    assert embed(served, LONG, extra_body={"truncate_prompt_tokens": -1}).usage.prompt_tokens == 512


def test_a_model_does_what_it_is_for(served):
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.embeddings.create(model=served.model, input="a")
    assert caught.value.param == "model" and caught.value.code == "model_not_supported"
    with pytest.raises(openai.NotFoundError) as caught:
        served.client.embeddings.create(model="no-such-model", input="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.APIStatusError) as caught:
        served.client.chat.completions.create(model=served.encoder, messages=[{"role": "user", "content": "Hello."}])
    assert caught.value.status_code in (400, 404) and caught.value.param == "model"


def test_many_clients_at_once(served, reference):
    texts = reference[0][60:100]
    alone = bits(embed(served, texts, extra_body={"truncate_prompt_tokens": 256}))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(embed, served, text, extra_body={"truncate_prompt_tokens": 256}) for text in texts]
        assert [bits(answer.result())[0] for answer in asked] == alone


def test_the_asynchronous_client(served):
    async def ask():
        options = {"base_url": f"{served.server.root}/v1", "api_key": "not-needed", "max_retries": 0}
        async with openai.AsyncOpenAI(**options) as client:
            return await asyncio.gather(
                *[client.embeddings.create(model=served.encoder, input=text) for text in TEXTS])
    assert [bits(answer)[0] for answer in asyncio.run(ask())] == bits(embed(served, TEXTS))


def long_texts():
    """Some 100 tokens each, and no two the same."""
    return [f"Entry {number} of the log: " + "the wind turned to the north and the sea was calm. " * 8
            for number in range(MANY)]


def wait_until_queued(running, limit_s=30):
    """Until texts wait for the encoder."""
    deadline = time.monotonic() + limit_s
    while not running.metric("rempart_encoder_queue_tokens"):
        assert time.monotonic() < deadline, "nothing waits"
        time.sleep(0.02)


def chat(served):
    """Text of a streamed answer, and when each piece came."""
    messages = [{"role": "user", "content": "Write about the sea."}]
    stream = served.client.chat.completions.create(
        model=served.model, messages=messages, temperature=0, max_tokens=32, stream=True,
        extra_body={"ignore_eos": True})
    pieces = [(chunk.choices[0].delta.content or "", time.monotonic()) for chunk in stream]
    return "".join(text for text, _ in pieces), [at for _, at in pieces]


@pytest.mark.slow
def test_a_chat_goes_on_while_many_texts_are_embedded(served, record_property):
    """Neither waits for the other's end, and the answer is the same as on an idle server."""
    expected, _ = chat(served)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        embedding = pool.submit(embed, served, long_texts())
        wait_until_queued(served.server)
        began = time.monotonic()
        times, whole = [began], 0
        while not embedding.done():
            text, arrived = chat(served)
            assert text == expected
            times += arrived
            whole += not embedding.done()
        assert len(set(bits(embedding.result()))) == MANY
    assert whole > 0, "no answer ended before the embeddings did"
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    record_property("longest gap in s", max(gaps))
    # The machine itself may stop, but neither often nor for long.
    assert sorted(gaps)[-3] < GAP_MAX_S and max(gaps) < 3 * GAP_MAX_S, f"{max(gaps):.2f} s without a token"


@pytest.mark.slow
def test_a_client_that_leaves_frees_the_encoder(served):
    """Its texts, which would take many seconds, are not computed."""
    def computed():
        return served.server.metric("rempart_encoder_tokens_total")
    texts, before = long_texts(), computed()
    with pytest.raises(openai.APITimeoutError):
        embed(served, texts, timeout=1)
    next_one = embed(served, texts[0])
    tokens = next_one.usage.prompt_tokens
    left = computed()
    assert before < left < before + tokens * MANY * 0.7, "it was computed to the end"
    time.sleep(1)
    assert computed() == left


@pytest.mark.slow
def test_a_full_queue_is_told(own_server):
    """The texts of the client that came first are computed all the same, and then there is room."""
    running = own_server(WITH_ENCODER, "encoder-queue.log", ["--queue-tokens-max", "60000"])
    with make_client(running) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        ask = client.embeddings.create
        encoder = [entry.id for entry in client.models.list()][1]
        texts = long_texts()
        first = pool.submit(ask, model=encoder, input=texts)
        wait_until_queued(running)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(model=encoder, input=texts)
        assert caught.value.status_code == 503 and caught.value.code == "server_is_overloaded"
        assert int(caught.value.response.headers["retry-after"]) > 0
        # A small one still fits.
        assert vectors(ask(model=encoder, input="a"))
        assert not first.done()
        assert bits(first.result()) == bits(ask(model=encoder, input=texts))
