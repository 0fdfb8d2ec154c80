"""What the queue of an encoder tells about itself."""
import concurrent.futures
import time

import openai
import pytest
from conftest import WITH_ENCODER, make_client
from test_embeddings import embed, long_texts, wait_until_queued

QUEUED = "rempart_encoder_queue_tokens"
# The machine itself may stop in one.
TRIES = 3


@pytest.mark.models(WITH_ENCODER)
def test_the_queue_is_empty_when_its_client_has_left(served):
    """Nobody needs to ask for anything else first."""
    with pytest.raises(openai.APITimeoutError):
        embed(served, long_texts(), timeout=1)
    deadline = time.monotonic() + 30
    while (tokens := served.server.metric(QUEUED)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert tokens == 0


def told_and_waited(running, client, encoder):
    """What somebody is told who asks while the queue is full, and how long it takes until they are let in; seconds."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # Some 47,000 tokens, and then as many again.
        texts = long_texts()
        first = pool.submit(client.embeddings.create, model=encoder, input=texts)
        wait_until_queued(running)
        began, told = time.monotonic(), 0
        while True:
            waited = time.monotonic() - began
            try:
                client.with_options(timeout=5).embeddings.create(model=encoder, input=texts)
                break
            except openai.APITimeoutError:
                # It was let in: a refusal takes moments.
                break
            except openai.InternalServerError as error:
                told = told or int(error.response.headers["retry-after"])
                time.sleep(0.1)
        first.result()
    return told, waited


@pytest.mark.slow
def test_retry_after_is_when_there_is_room(own_server):
    """At least half of the time that it takes until the same request is accepted: else every retry is refused too."""
    running, seen = own_server(WITH_ENCODER, "encoder-retry.log", ["--queue-tokens-max", "60000"]), []
    with make_client(running) as client:
        encoder = [entry.id for entry in client.models.list()][1]
        # From several batches the server knows its rate.
        client.embeddings.create(model=encoder, input=long_texts()[:100])
        for _ in range(TRIES):
            told, waited = told_and_waited(running, client, encoder)
            if told and waited / 2 <= told <= 2 * waited + 1:
                return
            seen.append(f"told {told} s, and it took {waited:.1f} s")
    pytest.fail("; ".join(seen))
