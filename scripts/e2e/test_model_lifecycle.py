"""Other models come and go while one answers: no error, the same tokens, no growth of memory.

REMPART_E2E_CYCLES says how often (6); what was measured is left in .cache/e2e/lifecycle-*.json.
"""
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import threading
import time
import urllib.error
import urllib.request

import conftest
import models
import pytest
from lib import server as servers

CYCLES = int(os.environ.get("REMPART_E2E_CYCLES", "6"))
# By then the allocator has found its size. Shorter runs are held to the same from their middle on.
SETTLED_CYCLE = 5
GROWTH = 1.02
ALONE_S = 10
PROMPTS = ["The capital of France is", "Once upon a time", "def add(a, b):\n", "Water boils at"]
# The cache of a model takes its memory as it is written: one that is full before the first cycle.
OPTIONS = ["--context-length", "1024", "--kv-cache-mib", "32"]
STORE = conftest.LOGS / "store"


def stored(name):
    """A model in a store of its own, under the name that it is loaded by. Links are enough, if hard ones."""
    source, folder = models.fetch(name, models.default_directory()), STORE / name
    for file in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
        target = folder / (file.name if source.is_file() else file.relative_to(source))
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, target)
            except OSError:
                shutil.copyfile(file, target)


class Admin:
    """The administrative interface."""

    def __init__(self):
        self.bind = f"127.0.0.1:{servers.free_port()}"

    def __call__(self, path, method="POST"):
        """Status and body."""
        request = urllib.request.Request(f"http://{self.bind}/admin/models{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def states(self):
        return {model["id"]: model["state"] for model in self("", "GET")[1]["data"]}


@dataclasses.dataclass
class Load:
    """Clients that stream answers of the first model, one after the other, until they are told to stop."""

    client: object
    model: str
    expected: dict
    latencies: list = dataclasses.field(default_factory=list)
    answers: int = 0
    errors: list = dataclasses.field(default_factory=list)
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)

    def ask(self, prompt):
        """The tokens of an answer; when each came is noted."""
        tokens, last = [], None
        for chunk in self.client.completions.create(
                model=self.model, prompt=prompt, max_tokens=48, temperature=0, stream=True,
                extra_body={"ignore_eos": True, "return_token_ids": True}):
            now = time.perf_counter()
            if last is not None and chunk.choices and chunk.choices[0].token_ids:
                self.latencies.append(now - last)
            last = now
            tokens += [token for choice in chunk.choices for token in choice.token_ids or []]
        return tokens

    def run(self, number):
        prompt = PROMPTS[number]
        while not self.stop.is_set():
            try:
                tokens = self.ask(prompt)
                if tokens != self.expected[prompt]:
                    self.errors.append(f"other tokens for {prompt!r}")
            except Exception as error:  # pylint: disable=broad-exception-caught
                self.errors.append(repr(error))
            self.answers += 1

    @contextlib.contextmanager
    def running(self, clients=2):
        threads = [threading.Thread(target=self.run, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()

    def percentiles(self):
        """p50 and p99 between two tokens, in milliseconds."""
        cuts = statistics.quantiles(self.latencies, n=100)
        return [round(cuts[at] * 1000, 1) for at in (49, 98)]


def fill_cache(client, model):
    """Writes more tokens than the cache has room for."""
    for number in range(4):
        client.completions.create(model=model, prompt=f"{number} word" * 300, max_tokens=1,
                                  extra_body={"truncate_prompt_tokens": 1000})


def use(client, name):
    """What a model that has come says."""
    if name == "minilm":
        return client.embeddings.create(model=name, input=["river", "a longer text about rivers"]).data[1].embedding
    return client.completions.create(model=name, prompt="The capital of France is", max_tokens=8, temperature=0).choices[0].text


def cycle(admin, client, name):
    """Loads, uses and unloads a model; what it said, and the seconds that loading and unloading took."""
    began = time.perf_counter()
    status, state = admin(f"/{name}/load")
    loaded = time.perf_counter() - began
    assert (status, state.get("state")) == (200, "ready"), state
    said = use(client, name)
    began = time.perf_counter()
    status, state = admin(f"/{name}/unload")
    assert (status, state.get("state")) == (200, "unloaded"), state
    return said, loaded, time.perf_counter() - began


@pytest.fixture
def administered(own_server):
    """A server of the first model, its client and its administration."""
    for name in ("minilm", "gemma3"):
        stored(name)
    admin = Admin()

    def begin(log, *arguments):
        running = own_server("smollm2", log, [*OPTIONS, "--models-dir", STORE, "--admin-bind", admin.bind, *arguments])
        return running, conftest.make_client(running), admin
    return begin


@pytest.mark.parametrize("name", ["minilm", "gemma3"])
def test_a_second_model_comes_and_goes_under_load(administered, name):
    running, client, admin = administered(f"lifecycle-{name}.log")
    first = running.model_name()
    fill_cache(client, first)
    asked = Load(client, first, {})
    expected = {prompt: asked.ask(prompt) for prompt in PROMPTS}
    with Load(client, first, expected).running() as alone:
        time.sleep(ALONE_S)
    assert not alone.errors
    memory, said, seconds = [], [], []
    with Load(client, first, expected).running() as beside:
        for _ in range(CYCLES):
            answer, *took = cycle(admin, client, name)
            said.append(answer)
            seconds.append(took)
            memory.append(running.resident_bytes())
    settled = memory[min(SETTLED_CYCLE, max(CYCLES // 2, 1)) - 1]
    figures = {
        "cycles": CYCLES, "answers": beside.answers, "errors": beside.errors, "rss_mib": [size >> 20 for size in memory],
        "growth_percent": round(100 * (memory[-1] / settled - 1), 2),
        "itl_ms_alone_p50_p99": alone.percentiles(), "itl_ms_beside_p50_p99": beside.percentiles(),
        "load_s": round(statistics.median(load for load, _ in seconds), 2),
        "unload_s": round(statistics.median(unload for _, unload in seconds), 2),
    }
    (conftest.LOGS / f"lifecycle-{name}.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    assert not beside.errors, beside.errors[:3]
    assert beside.answers > 0
    assert all(answer == said[0] for answer in said)
    assert memory[-1] <= settled * GROWTH, figures
    assert admin.states() == {first: "ready", name: "unloaded"}
    assert running.process.poll() is None


def test_two_models_that_generate_answer_by_their_names(administered):
    gemma = models.fetch("gemma3", models.default_directory())
    running, client, admin = administered("lifecycle-two.log", gemma)
    names = [entry.id for entry in client.models.list()]
    assert len(names) == 2
    assert set(admin.states().values()) == {"ready"}
    texts = [client.completions.create(model=name, prompt=PROMPTS[0], max_tokens=8, temperature=0) for name in names]
    assert [text.model for text in texts] == names
    assert texts[0].choices[0].text != texts[1].choices[0].text
    # The same through a reload, and the other is there meanwhile.
    status, state = admin(f"/{names[1]}/reload")
    assert (status, state["state"]) == (200, "ready")
    again = client.completions.create(model=names[1], prompt=PROMPTS[0], max_tokens=8, temperature=0)
    assert again.choices[0].text == texts[1].choices[0].text
    assert running.metric("rempart_model_loads_total") == 3


def test_a_served_name_is_for_one_model(administered):
    gemma = models.fetch("gemma3", models.default_directory())
    with pytest.raises(servers.ServerError, match="leave it out"):
        administered("lifecycle-named.log", gemma, "--served-model-name", "name")


def test_what_is_damaged_or_too_large_leaves_the_first_as_it_was(administered):
    running, client, admin = administered("lifecycle-damaged.log", "--memory-max-mib", "400")
    (STORE / "damaged").mkdir(exist_ok=True)
    (STORE / "damaged" / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    first = running.model_name()
    before = client.completions.create(model=first, prompt=PROMPTS[0], max_tokens=8, temperature=0).choices[0].text
    for name in ("damaged", "gemma3"):
        status, error = admin(f"/{name}/load")
        assert (status, error["error"]["code"]) == (422, "model_load_failed"), error
        assert admin.states()[name] == "failed"
    assert "memory" in error["error"]["message"]
    assert admin("/..%2F..%2Fetc/load")[0] == 404
    assert admin("/nothing/load")[0] == 404
    after = client.completions.create(model=first, prompt=PROMPTS[0], max_tokens=8, temperature=0).choices[0].text
    assert after == before


def test_an_idle_model_comes_back(administered):
    running, client, admin = administered("lifecycle-idle.log", "--idle-unload-s", "3")
    first = running.model_name()
    loaded = running.resident_bytes()
    deadline = time.monotonic() + 30
    while admin.states()[first] != "idle" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert admin.states()[first] == "idle"
    assert running.resident_bytes() < loaded
    answer = client.completions.create(model=first, prompt=PROMPTS[0], max_tokens=4, temperature=0)
    assert answer.choices[0].text
