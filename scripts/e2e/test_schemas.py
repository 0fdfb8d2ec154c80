"""Five hundred JSON schemas: each compiles in time or is refused with a reason, and what is finished is valid."""
import concurrent.futures
import json
import time

import httpx2
import jsonschema
import pytest
from conftest import SCRIPTS
from lib import schemas

pytestmark = pytest.mark.models("smollm2")

PACKAGED, GENERATED = 280, 220
SEED = 20261126
# What is made here ends soon; of what is packaged, which compiles or not, a third does.
TOKENS_PACKAGED, TOKENS_GENERATED = 96, 320
# Of the request, which compiles within two seconds and then makes its tokens beside seven others.
SECONDS_MAX = 60
# A server remembers for a minute that a schema took too long.
FORGOTTEN_S = 61
BYTES_MAX = 131072
CLIENTS = 8
# What a regular expression can hold: it does not know that 1900 had no 29 February.
FORMATS = jsonschema.FormatChecker(["email", "ipv4", "uuid"])


def cases():
    """Every so-manieth packaged schema, from the smallest to the largest, then those that are made: name, text and the most tokens."""
    packaged = schemas.packaged(SCRIPTS.parent / ".cache" / "schemas")
    step = len(packaged) / PACKAGED
    chosen = [(*packaged[int(at * step)], TOKENS_PACKAGED) for at in range(PACKAGED)]
    return chosen + [(*made, TOKENS_GENERATED) for made in schemas.generated(SEED, GENERATED)]


def judge(served, name, text, tokens):
    """What became of a schema: "valid", "cut", "refused", "late" or "stuck", too complex on the way; anything else fails."""
    body = {"model": served.model, "messages": [{"role": "user", "content": "Give an example."}], "max_tokens": tokens,
            "temperature": 0.8, "seed": SEED, "structured_outputs": {"json": text}}
    began = time.monotonic()
    answer = httpx2.post(f"{served.server.root}/v1/chat/completions", json=body, timeout=SECONDS_MAX)
    assert time.monotonic() - began < SECONDS_MAX, name
    if answer.status_code == 400:
        error = answer.json()["error"]
        if error["code"] == "format_stuck":
            return "stuck"
        if "takes longer than the limit" in error["message"]:
            return "late"
        assert error["param"].startswith("structured_outputs") and error["message"], name
        assert len(text) <= BYTES_MAX or "bytes" in error["message"], (name, error)
        return "refused"
    assert answer.status_code == 200, (name, answer.text)
    choice = answer.json()["choices"][0]
    if choice["finish_reason"] == "length":
        return "cut"
    value, schema = json.loads(choice["message"]["content"]), json.loads(text)
    jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(
        schema, format_checker=FORMATS).validate(value)
    return "valid"


@pytest.mark.slow
def test_schemas(served, record_property):
    asked = cases()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        outcomes = list(pool.map(lambda case: judge(served, *case), asked))
    late = [at for at in range(PACKAGED, len(asked)) if outcomes[at] == "late"]
    # The machine itself may have stopped, for those that were compiled then.
    assert len(late) <= 2 * CLIENTS, [asked[at][0] for at in late]
    if late:
        # Once more, alone.
        time.sleep(FORGOTTEN_S)
        for at in late:
            outcomes[at] = judge(served, *asked[at])
    counts = {outcome: outcomes.count(outcome) for outcome in ("valid", "cut", "refused", "late", "stuck")}
    record_property("schemas", counts)
    print(counts)
    assert len(outcomes) == PACKAGED + GENERATED
    assert counts["valid"] >= 150, counts
    assert not {"refused", "late", "stuck"} & set(outcomes[PACKAGED:]), "every schema that is made here can be followed"
    assert served.client.models.list().data[0].id == served.model, "and the server lives"
