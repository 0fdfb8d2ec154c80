"""Projects learn nothing of each other's prompts, neither by what is cached nor by the clock."""
import math
import random
import re
import subprocess
import time

import openai
import pytest
from lib.known import when_it_is_known
from lib.server import binary

ROUNDS = 30
# Far below what chance gives in all the runs there will ever be, and far above what a cached prompt gives.
CHANCE = 1e-4


def run(*arguments):
    done = subprocess.run([binary(), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.fixture
def projects(own_server, tmp_path):
    """Clients of two projects of one server."""
    database = tmp_path / "rempart.db"
    server = own_server("smollm2", "server.log", ["--database", str(database), "--served-model-name", "m"])
    clients = []
    for name in ("a", "b"):
        run("project", "create", name, "--database", database)
        made = run("key", "create", "laptop", "--database", database, "--project", name)
        key = re.search(r"sk-rempart-\S+", made)[0]
        clients.append(openai.OpenAI(base_url=f"{server.root}/v1", api_key=key))
    for client in clients:
        when_it_is_known(client.models.list)
    return clients


def ask(client, prompt):
    """Seconds to the first token, and how many tokens of the prompt were found cached."""
    began = time.perf_counter()
    chunks = client.completions.create(model="m", prompt=prompt, max_tokens=1, stream=True, stream_options={"include_usage": True})
    first, last = None, None
    for last in chunks:
        first = first or time.perf_counter() - began
    return first, last.usage.prompt_tokens_details.cached_tokens


def chance(ones, others):
    """How likely it is that two samples of one distribution differ as much (Mann and Whitney, 1947; two-sided, by the normal law)."""
    n, m = len(ones), len(others)
    wins = sum((one > other) + (one == other) / 2 for one in ones for other in others)
    deviation = abs(wins - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(deviation / math.sqrt(2))


def test_the_clock_tells_nobody_what_another_project_has_asked(projects):
    ones, others = projects
    dice = random.Random(1)
    words = "harbour lamp rope stone river letter window bread copper thread garden winter".split()

    def prompt():
        return " ".join(dice.choice(words) for _ in range(300))
    for client in projects:
        ask(client, prompt())
    known, unknown, own = [], [], []
    for _ in range(ROUNDS):
        asked, never = prompt(), prompt()
        ask(ones, asked)
        # In turn, so that a machine that slows down slows both.
        for seconds, text in dice.sample([(known, asked), (unknown, never)], 2):
            first, cached = ask(others, text)
            assert cached == 0, "what another project has computed was found"
            seconds.append(first)
        first, cached = ask(ones, asked)
        assert cached > 0
        own.append(first)
    figure = chance(known, unknown)
    print(f"p = {figure:.3f} for others, {chance(own, unknown):.2g} for its own")
    assert chance(own, unknown) < CHANCE, "the clock must tell what is cached, or this test proves nothing"
    assert figure > CHANCE, f"{sorted(known)} {sorted(unknown)}"
