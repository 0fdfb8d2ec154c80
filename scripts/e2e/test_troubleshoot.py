"""docs/troubleshoot.md: messages of the start are provoked, and those of a machine and of refusals are looked up in the sources."""
import functools
import os
import pathlib
import re
import socket
import subprocess

import models
import pytest
from lib import server

PAGE = server.REPO / "docs" / "troubleshoot.md"
# The number of who owns nothing.
NOBODY = 65534
# The first port that is for everybody.
FIRST = pathlib.Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


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


def closed(folder):
    path = folder / "closed.db"
    path.touch(mode=0)
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
    lambda folder, taken: ("serve", "nosuch.gguf", "--bind", "127.0.0.1:1"),
    lambda folder, taken: ("serve", "nosuch.gguf", "--bind", "127.0.0.1:0", "--database", closed(folder)),
    # It takes connections, and says nothing.
    lambda folder, taken: ("serve", "nosuch.gguf", "--bind", "127.0.0.1:0", "--database", f"postgres://a@127.0.0.1:{taken}/a"),
)


def rempart(arguments, as_nobody):
    """Carries out a command. Nothing is closed to root, and nobody may not reach the binary's folder: it is opened before."""
    nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if as_nobody and os.geteuid() == 0 else {}
    with server.binary().open("rb") as binary:
        return subprocess.run([f"/proc/self/fd/{binary.fileno()}", *map(str, arguments)], pass_fds=[binary.fileno()], capture_output=True,
                              text=True, timeout=60, check=False, **nobody)


def test_every_message_of_the_start_is_provoked():
    assert len(rows("It does not start")) == len(PROVOKING)


@pytest.mark.parametrize("number", range(len(PROVOKING)))
def test_a_start_that_fails_says_what_the_page_has(number, tmp_path):
    message = rows("It does not start")[number][0].strip("`")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = PROVOKING[number](tmp_path, taken.getsockname()[1])
        done = rempart(arguments, as_nobody=message.endswith("Permission denied"))
    if message.startswith("listening") and "denied" in message and int(FIRST.read_text()) <= 1:
        pytest.skip("every port is for everybody here")
    if "CUDA" in message and done.returncode == 0:
        pytest.skip("there is a card here")
    pattern = ".*".join(map(re.escape, message.split("…")))
    assert done.returncode != 0 and re.search(pattern, done.stderr), done.stderr


@functools.cache
def sources():
    """All of the server's code, with its long texts on one line."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((server.REPO / "server").rglob("*.rs")))
    return re.sub(r"\\\n\s*", "", text)


@pytest.mark.parametrize("row", rows("The machine is in its way"), ids=lambda row: re.sub(r"\W+", "-", row[0])[:40])
def test_what_a_machine_lacks_is_in_the_sources(row):
    # What is put in stands between braces there.
    parts = [part.strip(" ,") for part in row[0].strip("`").split("…")]
    assert parts and all(part in sources() for part in parts), parts


@pytest.mark.parametrize("row", rows("It refuses requests"), ids=lambda row: re.sub(r"\W+", "-", row[0]))
def test_what_clients_are_told_is_in_the_sources(row):
    code = re.match(r"`(\w+)`", row[0])
    looked_for = [f'"{code[1]}"'] if code else []
    looked_for += [part.strip() for part in row[1].strip("`").split("…") if len(part.strip()) > 1]
    assert looked_for and all(part in sources() for part in looked_for), looked_for
