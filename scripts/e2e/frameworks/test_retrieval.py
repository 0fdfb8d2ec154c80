"""Embeddings of LangChain and LlamaIndex, unmodified, and what their stores find with them."""
import array
import asyncio

import openai
import pytest
from conftest import WITH_ENCODER
from documents import DOCUMENTS, QUESTIONS, prompt
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core import VectorStoreIndex
from llama_index.core import Document as IndexedDocument
from llama_index.core.utils import get_tokenizer
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

pytestmark = pytest.mark.models(WITH_ENCODER)

each_question = pytest.mark.parametrize(("question", "best", "fact"), QUESTIONS, ids=[fact for _, _, fact in QUESTIONS])


@pytest.fixture
def common(served):
    return {"api_key": "not-needed", "max_retries": 0, "timeout": 300}


@pytest.fixture
def url(served):
    return f"{served.server.root}/v1"


@pytest.fixture
def langchain(served, url, common):
    """Makes LangChain's class; the check is of lengths, in tokens of OpenAI's own models."""
    def with_options(check=False, **options):
        return OpenAIEmbeddings(
            **common, base_url=url, model=served.encoder, check_embedding_ctx_length=check, **options)
    return with_options


@pytest.fixture
def llama_index(served, url, common):
    """Makes LlamaIndex's class."""
    def with_options(**options):
        return OpenAILikeEmbedding(**common, api_base=url, model_name=served.encoder, **options)
    return with_options


@pytest.fixture
def expected(served):
    """What the official client gets for the documents."""
    answer = served.client.embeddings.create(model=served.encoder, input=DOCUMENTS)
    return bits([entry.embedding for entry in answer.data])


def bits(vectors):
    return [array.array("f", vector).tobytes() for vector in vectors]


def test_langchain_embeds(langchain, expected):
    embeddings = langchain()
    assert bits(embeddings.embed_documents(list(DOCUMENTS))) == expected
    assert bits([embeddings.embed_query(DOCUMENTS[1])]) == expected[1:2]
    assert bits(embeddings.embed_documents(list(DOCUMENTS), chunk_size=4)) == expected


def test_langchain_embeds_asynchronously(langchain, expected):
    embeddings = langchain()

    async def ask():
        return await embeddings.aembed_documents(list(DOCUMENTS)), await embeddings.aembed_query(DOCUMENTS[1])
    documents, query = asyncio.run(ask())
    assert bits(documents) == expected and bits([query]) == expected[1:2]


def test_langchain_dimensions(langchain):
    assert [len(vector) for vector in langchain(dimensions=64).embed_documents(list(DOCUMENTS[:3]))] == [64] * 3


def test_langchain_with_tokens_of_openai(langchain):
    """With its check, which is the default, it sends tokens of OpenAI's vocabulary. No vector of ours can come of them:
    those that the model does not have are refused, so that the mistake is seen."""
    # LangChain would fetch the vocabulary from the internet; LlamaIndex brings it along, and loads it for both.
    get_tokenizer()
    with pytest.raises(openai.BadRequestError) as caught:
        langchain(check=True).embed_documents(["a", "我能吞下玻璃而不伤身体。"])
    assert caught.value.param == "input[1]" and "token number outside 0 to 30521" in caught.value.message


@each_question
def test_langchain_answers_from_documents(served, url, common, langchain, question, best, fact):
    store = InMemoryVectorStore.from_documents(
        [Document(text, metadata={"number": number}) for number, text in enumerate(DOCUMENTS)], langchain())
    retriever = store.as_retriever(search_kwargs={"k": 3})
    assert retriever.invoke(question)[0].metadata["number"] == best
    model = ChatOpenAI(**common, base_url=url, model=served.model, temperature=0, max_tokens=48)
    ask = RunnableLambda(lambda given: prompt(retriever.invoke(given)[0].page_content, given))
    answer = (ask | model | StrOutputParser()).invoke(question)
    assert fact.lower() in answer.lower(), answer


def test_llama_index_embeds(llama_index, expected):
    for size in (4, 100):
        assert bits(llama_index(embed_batch_size=size).get_text_embedding_batch(list(DOCUMENTS))) == expected
    embedding = llama_index()
    assert bits([embedding.get_text_embedding(DOCUMENTS[1])]) == expected[1:2]
    assert bits([embedding.get_query_embedding(DOCUMENTS[1])]) == expected[1:2]
    assert len(llama_index(dimensions=64).get_text_embedding(DOCUMENTS[1])) == 64


def test_llama_index_embeds_asynchronously(llama_index, expected):
    embedding = llama_index(embed_batch_size=4)

    async def ask():
        documents = await embedding.aget_text_embedding_batch(list(DOCUMENTS))
        return documents, await embedding.aget_query_embedding(DOCUMENTS[1])
    documents, query = asyncio.run(ask())
    assert bits(documents) == expected and bits([query]) == expected[1:2]


@each_question
def test_llama_index_answers_from_documents(served, url, common, llama_index, question, best, fact):
    """Its own splitting, store and prompts, from documents to the answer."""
    documents = [IndexedDocument(text=text, id_=str(number)) for number, text in enumerate(DOCUMENTS)]
    index = VectorStoreIndex.from_documents(documents, embed_model=llama_index())
    model = OpenAILike(**common, api_base=url, model=served.model, context_window=4096, is_chat_model=True,
                       temperature=0, max_tokens=48)
    answer = index.as_query_engine(llm=model, similarity_top_k=1).query(question)
    assert [node.node.ref_doc_id for node in answer.source_nodes] == [str(best)]
    assert fact.lower() in str(answer).lower(), str(answer)
