"""Every command of the README and of docs/ is executed as it stands there, in the order of the page; what can't be is in a table."""
import configparser
import json
import os
import pathlib
import re
import subprocess
import sys

import models
import pages
import pytest
import test_auditor
import yaml
from lib import documentation, postgres, server
from pages_tables import BEFORE, ELSEWHERE, NOT_RUN, PUT_IN, SETTINGS, TELLS, TYPED
from test_plan import CONFIG

LANGUAGES = {"sh", "python", "js", "json", "ini", "yaml", "console", "text", ""}
# Settings of programs that are not here, each with what reads them.
SETTINGS_OF_OTHERS = {"ini": lambda text: configparser.RawConfigParser().read_string(text), "yaml": yaml.safe_load}
# An environment of its own, because LangChain and LlamaIndex want another version of OpenAI's package.
FRAMEWORKS = server.REPO / ".cache" / "e2e-frameworks-venv" / "bin" / "python"
PACKAGES = server.REPO / ".cache" / "e2e-js" / "node_modules"
LOGIN = f"""
import sys, threading
sys.path[:0] = {sys.path!r}
from test_oidc_fetch import running
with running() as login:
    print(login.issuer, flush=True)
    threading.Event().wait()
"""
COLLECTOR = f"""
import contextlib, os, pathlib, signal, sys, time
sys.path[:0] = {sys.path!r}
from test_traces_send import Collector, add, lines
collector = Collector(4318)
file, noted = (pathlib.Path(name) for name in ("traces.jsonl", "traces.jsonl.sent"))
add(file, *lines("chat"))
print("listening", flush=True)
while not (collector.taken() and noted.stat().st_size):
    time.sleep(0.05)
for command in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    with contextlib.suppress(OSError):
        if b"\\0traces\\0send\\0" in command.read_bytes():
            os.kill(int(command.parent.name), signal.SIGTERM)
"""


def entry(table, page, command):
    """The key of the table that this command has; None without one."""
    return next((key for key in table if key[0] == page and command.startswith(key[1])), None)


def executed(page):
    return [block for block in documentation.blocks(page) if block.language in ("sh", "python", "js")]


PAGES = [page for page in documentation.names() if executed(page) and page not in ELSEWHERE]
# The others have nothing that could be.
WITH_COMMANDS = [page for page in PAGES
                 if any(not entry(NOT_RUN, page, command) for block in executed(page) for command in block.commands())]


def test_every_block_is_of_a_kind_that_is_known():
    strange = [f"{block}: {block.language}" for page in documentation.names() for block in documentation.blocks(page) if block.language not in LANGUAGES]
    assert not strange, "say in this test what is done with these blocks"


def test_settings_of_others_are_well_formed():
    """What a page says to put into files of programs that are not here."""
    blocks = [block for page in documentation.names() for block in documentation.blocks(page) if block.language in SETTINGS_OF_OTHERS]
    assert blocks
    for block in blocks:
        SETTINGS_OF_OTHERS[block.language](block.text)


def test_every_entry_of_the_tables_has_its_command():
    commands = [(page, command) for page in PAGES for block in executed(page) for command in block.commands()]
    stale = [key for table in (NOT_RUN, BEFORE, TYPED, TELLS) for key in table
             if not any(page == key[0] and command.startswith(key[1]) for page, command in commands)]
    stale += [key for key in PUT_IN if not any(page == key[0] and key[1] in command for page, command in commands)]
    stale += [page for page in (*ELSEWHERE, *SETTINGS) if page not in documentation.names()]
    assert not stale, "no page has these any more"


def test_what_is_executed_elsewhere_is():
    assert list(ELSEWHERE) == ["docs/audit.md"]
    own = [command for commands in test_auditor.commands().values() for command in commands]
    assert own == [command for block in executed("docs/audit.md") for command in block.commands()]


STORE = pathlib.PurePath(".local/share/rempart/models")
# What is in the store from the beginning, and of which model of scripts/models.py.
PULLED = {"smollm2-135m-instruct": "smollm2", "minilm": "minilm"}


@pytest.fixture(scope="module")
def shown():
    """Files under the names that pages use. Whatever model a page names, it is a small one that is there."""
    directory, files = models.default_directory(), {}
    for name, model in PULLED.items():
        models.fetch(model, directory)
        files |= {STORE / name / file.name: source(model, file, directory) for file in models.MODELS[model].files}
    weights = models.MODELS["smollm2"].path(directory)
    files |= dict.fromkeys((weights.name, "model.gguf", "MODEL.gguf"), weights)
    for folder in ("model-folder", "encoder-folder", "all-MiniLM-L6-v2"):
        files |= {pathlib.PurePath(folder) / file.name: source("minilm", file, directory) for file in models.MODELS["minilm"].files}
    return files


def source(model, file, directory):
    return directory / models.MODELS[model].folder / file.name


def put_manifest(place, model):
    """A model is in the store as `rempart pull` leaves it."""
    files = sorted(models.MODELS[model].files, key=lambda file: file.name)
    entries = [{"path": file.name, "bytes": file.bytes, "sha256": file.sha256} for file in files]
    manifest = {"version": 1, "source": f"hf:example/{place.name}", "revision": "main", "files": entries}
    (place / "rempart-manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def furnish(home):
    """What pages speak of beside models."""
    for name, model in PULLED.items():
        put_manifest(home / STORE / name, model)
    (home / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    # A status of 400 and above is a failure.
    (home / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n", encoding="utf-8")
    for name, script in (("login.py", LOGIN), ("collector.py", COLLECTOR)):
        (home / name).write_text(script, encoding="utf-8")
    (home / "deploy").symlink_to(server.REPO / "deploy")
    (home / "hub_stand_in.py").symlink_to(server.REPO / "scripts" / "lib" / "hub_stand_in.py")
    (home / "node_modules").symlink_to(PACKAGES)


@pytest.fixture
def machine(request, tmp_path, shown):
    if os.geteuid() != 0 or subprocess.run(["unshare", "-mnpf", "true"], check=False).returncode != 0:
        pytest.skip("no machine of one's own can be made here: that takes root and namespaces")
    page, settings = request.param, dict(SETTINGS.get(request.param, {}))
    if "PGHOST" in settings:
        settings["PGHOST"] = str(request.getfixturevalue("cluster").folder)
    with pages.Machine(tmp_path, settings, shown) as own:
        furnish(own.folder)
        yield page, own


@pytest.fixture
def cluster():
    with postgres.Cluster() as running:
        yield running


class Reader:
    """Somebody who does what a page says, and looks at what comes of it."""

    def __init__(self, page, own):
        self.page, self.own = page, own
        self.last, self.all = "", ""

    def filled_in(self, command):
        """The command with what a reader has to put in for themselves."""
        for (page, text), value in PUT_IN.items():
            if page == self.page and text in command:
                found = value(self) if callable(value) else value
                command = command.replace(text, found)
        return command

    def do(self, block):
        if block.language in ("json", "text", ""):
            self.compare(block)
            return
        # A screen is a picture of a moment.
        if block.language == "console" or block.language in SETTINGS_OF_OTHERS:
            return
        for command in block.commands():
            if entry(NOT_RUN, self.page, command):
                continue
            before, typed, tells = (entry(table, self.page, command) for table in (BEFORE, TYPED, TELLS))
            if before:
                self.own.shell(BEFORE[before])
            if typed:
                self.own.at_terminal(self.filled_in(command), TYPED[typed])
                continue
            self.last = self.execute(block.language, self.filled_in(command))
            self.all += self.last
            assert not tells or re.search(TELLS[tells], self.last, re.MULTILINE), (command, self.last)

    def execute(self, language, text):
        if language == "sh":
            return self.own.shell(text)
        name = "snippet.py" if language == "python" else "snippet.mjs"
        (self.own.folder / name).write_text(text, encoding="utf-8")
        return self.own.shell(f"{self.interpreter(language, text)} {name}")

    def interpreter(self, language, text):
        if language == "js":
            return "node"
        return FRAMEWORKS if re.search(r"^(from|import) (langchain|llama_index)", text, re.MULTILINE) else sys.executable

    def compare(self, block):
        """What the page shows is what the commands before it have printed, but for numbers."""
        if block.language == "json":
            pages.assert_like(json.loads(block.text), json.loads(self.last))
            return
        for line in block.text.splitlines():
            shown = not line.strip(" .") or re.search(f"^{pages.shape(line)}", self.all, re.MULTILINE)
            assert shown, f"nothing like {line!r} in\n{self.all}"


@pytest.mark.parametrize("machine", WITH_COMMANDS, indirect=True)
def test_a_page_s_commands(machine):
    page, own = machine
    reader = Reader(page, own)
    for block in documentation.blocks(page):
        try:
            reader.do(block)
        except (AssertionError, subprocess.TimeoutExpired, ValueError) as error:
            log = own.folder / "server.log"
            raise AssertionError(f"{block}: {error}\n{log.read_text()[-2000:] if log.exists() else ''}") from None
