"""A base model has no chat template: chat is refused with words, completions work."""
import openai
import pytest

pytestmark = pytest.mark.models("gemma3")


def test_chat_is_refused(served):
    with pytest.raises(openai.BadRequestError) as caught:
        served.client.chat.completions.create(
            model=served.model, messages=[{"role": "user", "content": "Hello"}], max_tokens=1)
    assert "template" in str(caught.value)


def test_a_beginning_of_text_token_is_added(served):
    body = {"model": served.model, "prompt": "Hello"}
    with_it = served.server.post("/tokenize", body)["tokens"]
    without = served.server.post("/tokenize", body | {"add_special_tokens": False})["tokens"]
    assert with_it == [2, *without]
