"""A disk that does not answer: what is asked of the database waits in the kernel, and no timeout of the process ends that."""
import concurrent.futures
import re
import subprocess
import time
import urllib.error
import urllib.request

import models
import pytest
from conftest import LOGS, READY_S
from lib import server

MIB = 96
# A write is slow after a second, and a machine may stop for several.
SEEN_S = 30


def system(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, which can be frozen."""
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(MIB << 20)
    for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, place]):
        try:
            done = system(*command)
        except FileNotFoundError as error:
            pytest.skip(f"{error.filename} is not there")
        if done.returncode != 0:
            pytest.skip(f"a file system can't be made and mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        assert system("umount", place).returncode == 0


class Frozen:
    def __init__(self, place):
        self.place = place

    def __enter__(self):
        assert system("fsfreeze", "-f", self.place).returncode == 0

    def __exit__(self, *_):
        system("fsfreeze", "-u", self.place)


def ready(serving):
    try:
        with urllib.request.urlopen(serving.root + "/readyz", timeout=SEEN_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def becomes(look, wanted):
    end = time.monotonic() + SEEN_S
    while look() != wanted:
        assert time.monotonic() < end, (look(), wanted)
        time.sleep(0.1)


def once_ready(ask):
    """An answer: who asks just as a write takes long is refused, and no row is written of that."""
    end = time.monotonic() + SEEN_S
    while True:
        try:
            return ask()
        except server.ServerError as error:
            if "usage can't be recorded" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.1)


def test_a_disk_that_hangs_is_seen_and_nothing_is_lost(disk, current):
    current.close()
    model = models.fetch("smollm2", models.default_directory())
    database = ["--database", disk / "rempart.db"]
    with server.Server(model, LOGS / "disk.log", arguments=[*database, "--served-model-name", "m"]) as serving, \
            concurrent.futures.ThreadPoolExecutor() as pool:
        serving.wait_ready(READY_S)
        serving.key = next(line for line in serving.log.read_text().splitlines() if re.fullmatch(r"\S{20,}", line))

        def ask():
            return serving.post("/v1/completions", {"model": "m", "prompt": "Hi", "max_tokens": 2})
        # From the second row on they go to the file by the thread that has them.
        for _ in range(4):
            once_ready(ask)
        becomes(lambda: ready(serving)[0], 200)
        with Frozen(disk):
            waiting = pool.submit(ask)
            becomes(lambda: ready(serving)[0], 503)
            assert "usage can't be recorded" in ready(serving)[1]
            with pytest.raises(server.ServerError, match="503.*usage can't be recorded"):
                ask()
            assert serving.metric("rempart_ready") == 0
        becomes(lambda: ready(serving)[0], 200)
        assert waiting.result()["usage"]["completion_tokens"] == 2
        once_ready(ask)
        # Rows are counted behind those who wait for them.
        becomes(lambda: serving.metric("rempart_usage_rows_total"), 6)
    verified = system(server.binary(), "audit", "verify", *database)
    assert verified.returncode == 0 and "and each is what was written" in verified.stdout, verified.stderr
