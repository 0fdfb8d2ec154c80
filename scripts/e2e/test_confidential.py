"""What is asked, answered and shown as a key is left nowhere: not in the log at its loudest, in metrics, errors, a database or a core."""
import pathlib
import re
import secrets
import signal
import time
import types

import openai
import pytest
from lib.postgres import Cluster
from provoking import provoke


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    """A database of either kind, and the folder of all its files."""
    if request.param == "sqlite":
        yield str(tmp_path / "rempart.db"), tmp_path
        return
    with Cluster() as cluster:
        yield cluster.url, cluster.folder


def test_nothing_is_left_of_what_was_said(own_server, place, tmp_path):
    database, folder = place
    canary = f"kanarie{secrets.token_hex(8)}vogel"
    options = ["--database", database, "--secret", str(tmp_path / "secret"), "--served-model-name", "m", "--log-level", "trace"]
    server = own_server("smollm2", "confidential.log", options)
    first = re.search(r"^sk-rempart-\S+\n", server.log.read_text(), re.MULTILINE)[0].strip()
    client = openai.OpenAI(base_url=f"{server.root}/v1", api_key=first, max_retries=0)
    asking = types.SimpleNamespace(server=server, client=client, model="m")
    server.key = first
    said = provoke(asking, canary)
    answers = [client.completions.create(model="m", prompt=f"The {noun} of {canary} was", max_tokens=24).choices[0].text.strip()
               for noun in ("lighthouse", "harbour", "winter")]
    answers.append(client.responses.create(model="m", input=f"Who is {canary}?", max_output_tokens=24).output_text.strip())
    metrics = server.get("/metrics")
    limits = pathlib.Path(f"/proc/{server.process.pid}/limits").read_text()
    assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE), "a core would hold all of it"
    # As it dies, nothing is tidied up.
    server.process.send_signal(signal.SIGABRT)
    server.process.wait(20)
    time.sleep(0.5)
    log = server.log.read_text(encoding="utf-8", errors="replace").replace(first, "", 1)
    places = {"an error": "\n".join(said).encode(), "a metric": metrics.encode(), "the log": log.encode()}
    places |= {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != server.log.name}
    assert any(b"usage_event" in content for content in places.values()), "the database must be among them"
    secret = first.split("-")[-1]
    sought = [canary, canary[7:23], secret, secret[:30], *(answer for answer in answers if len(answer) > 20)]
    assert len(sought) > 5, answers
    for name, content in places.items():
        for text in sought:
            assert text.encode() not in content, f"{text!r} is in {name}"
