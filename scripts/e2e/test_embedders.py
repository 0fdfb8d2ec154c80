"""Embeddings by decoders that embed, served beside one that generates, against what sentence-transformers makes of the texts.

The decoders are tiny and random (scripts/fixtures/embedders.py).
"""
import json
import math
import shutil

import openai
import pytest
from conftest import make_client, start
from lib import server
from test_embeddings import COSINE_MIN, bits, cosine, vectors

FIXTURES = server.REPO / "models" / "tests" / "fixtures" / "encoders"
CHAT = "smollm2"
NAMES = ("qwen3-embedder", "qwen2-embedder", "llama-embedder", "gemma3-embedder")
# The same weights and tokenizer as the first, in a file.
GGUF = "qwen3-file"
TOKENS_MAX = 1800


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    """A copy whose name is not the folder's."""
    path = tmp_path_factory.mktemp("embedder") / f"{GGUF}.gguf"
    shutil.copy(FIXTURES / "qwen3-embedder.gguf", path)
    return path


@pytest.fixture
def client(own_server, gguf):
    running = own_server(CHAT, "embedders.log", [*(FIXTURES / name for name in NAMES), gguf])
    with make_client(running) as client:
        yield client


def expected(name):
    folder = NAMES[0] if name == GGUF else name
    return json.loads((FIXTURES / folder / "expected.json").read_text(encoding="utf-8"))


def embed(client, name, texts, **more):
    return client.embeddings.create(model=name, input=texts, **more)


def test_vectors_are_those_of_sentence_transformers(client):
    """Of texts, alone and together to the same bits, and of their tokens."""
    for name in (*NAMES, GGUF):
        reference = expected(name)
        texts, tokens = reference["texts"], reference["tokens"]
        answer = embed(client, name, texts)
        assert answer.usage.prompt_tokens == sum(map(len, tokens)), name
        for at, (ours, theirs) in enumerate(zip(vectors(answer), reference["vectors"], strict=True)):
            assert len(ours) == len(theirs) and cosine(ours, theirs) >= COSINE_MIN, f"{name}, text {at}"
        together = bits(answer)
        assert [bits(embed(client, name, text))[0] for text in texts] == together, name
        assert bits(embed(client, name, tokens)) == together, name
        assert len(set(together)) == len(texts), name


def test_an_embedder_does_what_it_is_for(client):
    """And the model beside it what that is for."""
    assert [entry.id for entry in client.models.list()][1:] == [*NAMES, GGUF]
    messages = [{"role": "user", "content": "Hello."}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=NAMES[0], messages=messages)
    assert caught.value.code == "model_not_supported"
    chat = client.models.list().data[0].id
    assert client.chat.completions.create(model=chat, messages=messages, max_tokens=4).choices[0].message.content
    with pytest.raises(openai.BadRequestError) as caught:
        embed(client, chat, "a")
    assert caught.value.code == "model_not_supported"


def test_dimensions_and_relevance(client):
    """The first elements, of length 1 again; documents in the order of their cosines."""
    texts = expected(NAMES[0])["texts"]
    whole, *rest = vectors(embed(client, NAMES[0], texts))
    cut, = vectors(embed(client, NAMES[0], texts[0], dimensions=8))
    assert cut == pytest.approx([x / math.hypot(*whole[:8]) for x in whole[:8]], abs=1e-6)
    body = {"model": NAMES[0], "query": texts[0], "documents": texts[1:]}
    results = client.post("/rerank", body=body, cast_to=object)["results"]
    scores = {result["index"]: result["relevance_score"] for result in results}
    assert [scores[at] for at in range(len(rest))] == pytest.approx([cosine(whole, other) for other in rest], abs=1e-5)
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_a_text_has_a_limit_and_is_cut_before_its_end_token(client):
    end = expected(NAMES[0])["tokens"][0][-1]
    long = "a" * (TOKENS_MAX + 200)
    with pytest.raises(openai.BadRequestError) as caught:
        embed(client, NAMES[0], long)
    assert caught.value.code == "context_length_exceeded" and str(TOKENS_MAX) in caught.value.message
    cut = embed(client, NAMES[0], long, extra_body={"truncate_prompt_tokens": -1})
    assert cut.usage.prompt_tokens == TOKENS_MAX
    assert bits(cut) == bits(embed(client, NAMES[0], long[:TOKENS_MAX - 1]))
    first = expected(NAMES[0])["tokens"][0][0]
    assert bits(cut) == bits(embed(client, NAMES[0], [first] * (TOKENS_MAX - 1) + [end]))


LIES = {
    "a module that is not known": ("modules.json", lambda json: json[2].update(type="a.LSTM"), "LSTM"),
    "another width": ("1_Pooling/config.json", lambda json: json.update(word_embedding_dimension=1024), "the model has 32"),
    "attention to both sides": ("config.json", lambda json: json.update(is_causal=False), "both sides"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_folder_that_lies_is_not_served(current, tmp_path, case):
    current.close()
    file, change, told = LIES[case]
    folder = shutil.copytree(FIXTURES / NAMES[0], tmp_path / "embedder")
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    with start(CHAT, "embedders-lie.log", [folder]) as running:
        with pytest.raises(server.ServerError) as caught:
            running.wait_ready()
    assert told in str(caught.value)


def test_memory_that_is_short_is_told(current):
    """Keys and values of its longest text are part of the plan."""
    current.close()
    with start(CHAT, "embedders-memory.log", [FIXTURES / NAMES[0], "--memory-max-mib", "1"]) as running:
        with pytest.raises(server.ServerError) as caught:
            running.wait_ready()
    assert NAMES[0] in str(caught.value) and "keys and values" in str(caught.value)
