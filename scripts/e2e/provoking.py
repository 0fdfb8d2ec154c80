"""Requests with a canary in every place where a client may put text of its own."""
import contextlib
import urllib.error
import urllib.request

import openai
import pytest


def provoke(served, canary):
    """Sends the canary in every place where a client may put text of its own; returns what errors said."""
    said = []
    chat, completions = served.client.chat.completions.create, served.client.completions.create
    message = [{"role": "user", "content": f"Repeat this: {canary} {canary}"}]
    common = {"model": served.model, "max_tokens": 8}
    wrong = [
        lambda: chat(messages=message, temperature=99, **common),
        lambda: chat(messages=[{"role": canary, "content": canary}], **common),
        lambda: chat(messages=[{"role": "user", "content": {"text": canary}}], **common),
        lambda: chat(messages=message, tools=[{"type": "function", "function": {"name": f"{canary}!"}}], **common),
        lambda: chat(messages=[{"role": "user", "content": f"{canary} " * 9000}], **common),
        lambda: completions(prompt={"wrong": canary}, **common),
        lambda: completions(prompt=canary, stop=[canary * 100], **common),
        lambda: completions(prompt=canary, extra_body={"logit_bias": {canary: 1}}, **common),
    ]
    for send in wrong:
        with pytest.raises(openai.APIStatusError) as caught:
            send()
        said.append(f"{caught.value} {caught.value.response.text} {caught.value.response.headers}")
    for body in (f'{{"model": "{served.model}", "prompt": "{canary}', f'{{"prompt": "{canary}"}} trailing'):
        request = urllib.request.Request(f"{served.server.root}/v1/completions", body.encode(),
                                         {"Content-Type": "application/json", "Authorization": f"Bearer {canary}"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=30)
        said.append(caught.value.read().decode())
    assert canary in completions(prompt=canary, echo=True, logprobs=1, **common).choices[0].text
    chat(messages=message, user=canary, stop=[canary], **common)
    function = {"name": canary, "description": canary, "parameters": {"type": "object", "properties": {canary: {}}}}
    chat(messages=message, tools=[{"type": "function", "function": function}], tool_choice="required", **common)
    with contextlib.closing(chat(messages=message, stream=True, **common)) as stream:
        next(iter(stream))
    served.server.post("/tokenize", {"model": served.model, "prompt": canary})
    return said
