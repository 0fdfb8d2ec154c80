"""Answers from documents: embed, retrieve, rerank and ask, with one client and one server."""
import operator

import pytest
from conftest import WITH_ENCODER
from documents import DOCUMENTS, QUESTIONS, prompt

pytestmark = pytest.mark.models(WITH_ENCODER)

# Documents that go from the search to the reranker.
CANDIDATES = 5


def embed(served, texts):
    return [entry.embedding for entry in served.client.embeddings.create(model=served.encoder, input=texts).data]


def retrieve(served, question):
    """Numbers of the documents, the nearest first."""
    index, (asked,) = embed(served, DOCUMENTS), embed(served, [question])
    scores = [sum(map(operator.mul, asked, vector)) for vector in index]
    return sorted(range(len(DOCUMENTS)), key=lambda at: -scores[at])


def rerank(served, question, candidates):
    """Through the client's own way to what it does not know."""
    body = {"model": served.encoder, "query": question, "documents": [DOCUMENTS[at] for at in candidates]}
    answer = served.client.post("/rerank", body=body, cast_to=object)
    return [candidates[result["index"]] for result in answer["results"]]


def ask(served, text, **more):
    return served.client.chat.completions.create(
        model=served.model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=48, **more)


@pytest.mark.parametrize(("question", "best", "fact"), QUESTIONS, ids=[fact for _, _, fact in QUESTIONS])
def test_the_answer_is_in_the_document_that_is_found(served, question, best, fact):
    candidates = retrieve(served, question)[:CANDIDATES]
    assert candidates[0] == best
    # The reranker is not told which was first.
    assert rerank(served, question, candidates[::-1])[0] == best
    asked = prompt(DOCUMENTS[best], question)
    text = ask(served, asked).choices[0].message.content
    assert fact.lower() in text.lower(), text
    streamed = [chunk.choices[0].delta.content or "" for chunk in ask(served, asked, stream=True)]
    assert "".join(streamed) == text


def test_without_the_document_the_model_does_not_know(served):
    """So that it is the document which the answer comes from."""
    for question, _, fact in QUESTIONS:
        other = prompt(DOCUMENTS[0], question)
        for text in (question, other):
            assert fact.lower() not in ask(served, text).choices[0].message.content.lower()
