"""docs/troubleshoot.md: messages of the start are provoked, and those that clients get are looked up in the sources."""
import functools
import re
import socket
import subprocess

import models
import pytest
from lib import server

PAGE = server.REPO / "docs" / "troubleshoot.md"


def rows(heading):
    """The cells of each row of a section's table, without its head."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in section.splitlines() if line.startswith("|")][2:]


def model():
    return models.fetch("smollm2", models.default_directory())


def cut(folder):
    path = folder / "cut.gguf"
    with model().open("rb") as file:
        path.write_bytes(file.read(1_000_000))
    return path


# What provokes each message, in the order of the page: arguments of `rempart`, made in an empty folder for a port that is taken.
PROVOKING = (
    lambda folder, taken: ("serve", "nosuch", "--models-dir", folder),
    lambda folder, taken: ("serve", folder),
    lambda folder, taken: ("serve", cut(folder), "--bind", "127.0.0.1:0"),
    lambda folder, taken: ("serve", model(), "--memory-max-mib", 100, "--bind", "127.0.0.1:0"),
    lambda folder, taken: ("serve", model(), "--bind", "0.0.0.0:0"),
    lambda folder, taken: ("serve", model(), "--admin-bind", "0.0.0.0:0"),
    lambda folder, taken: ("serve", model(), "--bind", f"127.0.0.1:{taken}"),
    lambda folder, taken: ("serve", model(), "--device", "cuda", "--bind", "127.0.0.1:0"),
    lambda folder, taken: ("serve", model(), "--tls-certificate", folder / "no.pem", "--tls-key", folder / "no.pem"),
    lambda folder, taken: ("usage", "report", "--database", folder / "no.db"),
)


def test_every_message_of_the_start_is_provoked():
    assert len(rows("It does not start")) == len(PROVOKING)


@pytest.mark.parametrize("number", range(len(PROVOKING)))
def test_a_start_that_fails_says_what_the_page_has(number, tmp_path):
    message = rows("It does not start")[number][0].strip("`")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = PROVOKING[number](tmp_path, taken.getsockname()[1])
        done = subprocess.run([server.binary(), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    if "CUDA" in message and done.returncode == 0:
        pytest.skip("there is a card here")
    pattern = ".*".join(map(re.escape, message.split("…")))
    assert done.returncode != 0 and re.search(pattern, done.stderr), done.stderr


@functools.cache
def sources():
    """All of the server's code, with its long texts on one line."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((server.REPO / "server").rglob("*.rs")))
    return re.sub(r"\\\n\s*", "", text)


@pytest.mark.parametrize("row", rows("It refuses requests"), ids=lambda row: re.sub(r"\W+", "-", row[0]))
def test_what_clients_are_told_is_in_the_sources(row):
    code = re.match(r"`(\w+)`", row[0])
    looked_for = [f'"{code[1]}"'] if code else []
    looked_for += [part.strip() for part in row[1].strip("`").split("…") if len(part.strip()) > 1]
    assert looked_for and all(part in sources() for part in looked_for), looked_for
