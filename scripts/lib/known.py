"""Waits until servers know what commands have changed in their database, at which they look every second."""
import subprocess
import time
import urllib.error

import openai

from .server import binary

# Much more than that takes on a machine that is slow, or stops for seconds.
KNOWN_S = 60


def when_it_is_known(call):
    """What a call gives, once its status is none of an error."""
    deadline = time.monotonic() + KNOWN_S
    while True:
        try:
            return call()
        except (openai.APIStatusError, urllib.error.HTTPError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def when_all_is_known(servers, *place):
    """Returns once these servers know all that was changed before. Each reads the whole of it at one time: whoever lets a newer key
    in knows the rest. That key is made here, in the database that `place` names for commands."""
    made = subprocess.run([binary(), "key", "create", *place, "known"], capture_output=True, text=True, timeout=60, check=False)
    assert made.returncode == 0, made.stderr
    for one in servers:
        with openai.OpenAI(base_url=f"{one.root}/v1", api_key=made.stdout.strip(), max_retries=0, timeout=60) as client:
            when_it_is_known(client.models.list)
