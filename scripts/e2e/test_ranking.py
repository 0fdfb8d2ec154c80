"""Reranking and scores, which no client of OpenAI's has, by plain HTTP; here by the cosine of an embedder's vectors."""
import json
import operator
import urllib.error
import urllib.request

import pytest
from conftest import WITH_ENCODER
from documents import DOCUMENTS, QUESTIONS

pytestmark = pytest.mark.models(WITH_ENCODER)

RERANK = ("/rerank", "/v1/rerank", "/v2/rerank")
SCORE = ("/score", "/v1/score")
QUESTION, BEST, _ = QUESTIONS[0]
LONG = "word " * 600


def rerank(served, path="/v1/rerank", **more):
    body = {"model": served.encoder, "query": QUESTION, "documents": DOCUMENTS} | more
    answer = served.server.post(path, body)
    assert answer["model"] == served.encoder and answer["id"]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    return answer


def indices(answer):
    return [result["index"] for result in answer["results"]]


def score(served, path="/v1/score", **texts):
    answer = served.server.post(path, {"model": served.encoder} | texts)
    assert answer["object"] == "list" and answer["model"] == served.encoder
    assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
    return [entry["score"] for entry in answer["data"]]


def refusal(served, path, body):
    request = urllib.request.Request(served.server.root + path, json.dumps({"model": served.encoder} | body).encode(),
                                     {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == 400
    return json.load(caught.value)["error"]


@pytest.mark.parametrize("path", RERANK)
def test_the_document_that_answers_comes_first(served, path):
    for question, best, _ in QUESTIONS:
        found = indices(rerank(served, path, query=question))
        assert found[0] == best and sorted(found) == list(range(len(DOCUMENTS)))


def test_scores_are_cosines_of_the_vectors(served):
    """And a score of a pair is what reranking says of it."""
    texts = [QUESTION, *DOCUMENTS]
    vectors = [entry.embedding for entry in served.client.embeddings.create(model=served.encoder, input=texts).data]
    expected = [sum(map(operator.mul, vectors[0], vector)) for vector in vectors[1:]]
    scores = score(served, text_1=QUESTION, text_2=DOCUMENTS)
    assert scores == pytest.approx(expected, abs=1e-5)
    ranked = rerank(served)["results"]
    assert [scores[result["index"]] for result in ranked] == [result["relevance_score"] for result in ranked]


@pytest.mark.parametrize("path", RERANK)
@pytest.mark.parametrize("wanted", [None, True, False])
def test_documents_come_back(served, path, wanted):
    """In Cohere's second version only for who asks."""
    answer = rerank(served, path, top_n=2, **({} if wanted is None else {"return_documents": wanted}))
    assert len(answer["results"]) == 2
    for result in answer["results"]:
        if wanted or (wanted is None and path != "/v2/rerank"):
            assert result["document"]["text"] == DOCUMENTS[result["index"]]
        else:
            assert "document" not in result


def test_the_most_results(served):
    everything = indices(rerank(served))
    for most in (1, 3, len(DOCUMENTS), 1000):
        assert indices(rerank(served, top_n=most)) == everything[:most]


def test_documents_as_objects_and_twice(served):
    plain = rerank(served)
    objects = rerank(served, documents=[{"text": text} for text in DOCUMENTS])
    assert objects["results"] == plain["results"]
    # Of equals the first stays first.
    first, second = rerank(served, documents=DOCUMENTS * 2)["results"][:2]
    assert (first["index"], second["index"]) == (BEST, BEST + len(DOCUMENTS))
    assert first["relevance_score"] == second["relevance_score"]


def test_a_document_is_cut_when_that_is_asked_for(served):
    """Of what the answer stands behind, nothing is left."""
    hidden = " ".join(["The sea was calm."] * 20 + [DOCUMENTS[BEST]])
    whole, cut = (rerank(served, documents=[hidden], **more)["results"][0]["relevance_score"]
                  for more in ({}, {"max_tokens_per_doc": 50}))
    calm = score(served, text_1=QUESTION, text_2=" ".join(["The sea was calm."] * 10))[0]
    assert cut == pytest.approx(calm, abs=1e-6) and cut < whole
    assert rerank(served, documents=[LONG], truncate_prompt_tokens=-1)["results"]


@pytest.mark.parametrize("path", SCORE)
def test_pairs(served, path):
    cats, cars = ["a cat", "my old car"], ["a kitten", "an automobile"]
    pairs = score(served, path, text_1=cats, text_2=cars)
    assert pairs == [score(served, path, text_1=one, text_2=other)[0] for one, other in zip(cats, cars, strict=True)]
    crossed = score(served, path, text_1=cats, text_2=cars[::-1])
    assert min(pairs) > max(crossed)
    assert score(served, path, text_1=cats[0], text_2=cars) == [pairs[0], crossed[0]]
    assert score(served, path, queries=cats, documents=cars) == pairs
    assert score(served, path, text_1=cats[0], text_2=cats[0]) == pytest.approx([1], abs=1e-6)


RERANK_REFUSED = {
    "no documents": ({"query": "a", "documents": []}, "documents", "empty_array"),
    "no query": ({"documents": ["a"]}, "query", "missing_required_parameter"),
    "a document that is too long": ({"query": "a", "documents": ["a", LONG]}, "documents[1]",
                                    "context_length_exceeded"),
    "a query that is too long": ({"query": LONG, "documents": ["a"]}, "query", "context_length_exceeded"),
    "a number": ({"query": "a", "documents": ["a", 1]}, "documents[1]", "invalid_type"),
    "an unknown name": ({"query": "a", "documents": ["a"], "top_k": 1}, "top_k", None),
}


@pytest.mark.parametrize("case", RERANK_REFUSED)
def test_what_cannot_be_ranked_is_named(served, case):
    body, param, code = RERANK_REFUSED[case]
    error = refusal(served, "/v1/rerank", body)
    assert error["param"] == param and code in (None, error["code"])


@pytest.mark.parametrize(("body", "param"), [
    ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"), ({"text_1": "a", "text_2": []}, "text_2"),
    ({"text_1": "a", "text_2": ["a", LONG]}, "text_2[1]"), ({"text_2": "a"}, "text_1")])
def test_pairs_that_cannot_be_scored_are_named(served, body, param):
    assert refusal(served, "/v1/score", body)["param"] == param


def test_a_model_that_generates_does_not_rank(served):
    bodies = {"/v1/rerank": {"query": "a", "documents": ["a"]}, "/v1/score": {"text_1": "a", "text_2": "a"}}
    for path, body in bodies.items():
        assert refusal(served, path, body | {"model": served.model})["code"] == "model_not_supported"
