"""`rempart traces send`: every line reaches a collector, whatever happens on the way, and goes on where it was."""
import contextlib
import http.server
import json
import os
import signal
import subprocess
import threading
import time

import pytest
from google.protobuf import json_format
from lib.server import binary
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from test_traces import CANARY, parent, traced, until_written  # noqa: F401

SECRET = "tok-of-the-collector"
SOON_S = 20


class Collector:
    """Takes OTLP over HTTP, and answers as it is told to, `200 {}` when it is not."""

    def __init__(self, port=0):
        self.answers, self.asked, self.delay_s = [], [], 0.0
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                time.sleep(collector.delay_s)
                status, headers, answer = collector.answers.pop(0) if collector.answers else (200, {}, b"{}")
                # Before the answer: whoever has that may look at once.
                collector.asked.append((self.path, dict(self.headers), body, status))
                self.send_response(status)
                for name, value in {"content-type": "application/json", "content-length": str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def taken(self):
        """The lines that it said it has."""
        return [body.decode() for _, _, body, status in self.asked if status == 200]


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def command(file, collector, *more):
    return [binary(), "traces", "send", file, "--endpoint", collector.url, *more]


def ran(typed, settings=None):
    return subprocess.run(typed, env=settings, capture_output=True, text=True, timeout=60, check=False)


def once(file, collector, *more):
    settings = os.environ | {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRET}"}
    return ran(command(file, collector, "--once", *more), settings)


@contextlib.contextmanager
def running(file, collector):
    """The command, which must end well when it is asked to; the list has what it told then."""
    told = []
    with subprocess.Popen(command(file, collector), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield told
            process.send_signal(signal.SIGTERM)
            told.append(process.communicate(timeout=SOON_S)[1])
            assert process.returncode == 0, told
        finally:
            process.kill()


def until(true):
    end = time.monotonic() + SOON_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def lines(*names):
    return [json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [{"name": name}]}]}]}) for name in names]


def add(file, *texts):
    with file.open("a", encoding="utf-8") as out:
        out.writelines(f"{text}\n" for text in texts)


def test_a_collector_gets_the_spans_of_a_server(traced, collector):  # noqa: F811
    served, file, client = traced
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": CANARY}]
    client.chat.completions.create(model=model, max_tokens=4, messages=messages, extra_headers=parent())
    until_written(served, file, 4)
    done = once(file, collector)
    assert done.returncode == 0, done.stderr
    spans = []
    for path, headers, body, _ in collector.asked:
        assert path == "/v1/traces" and headers["content-type"] == "application/json"
        assert headers["authorization"] == f"Bearer {SECRET}"
        request = json_format.Parse(body, trace_service_pb2.ExportTraceServiceRequest())
        spans += [span.name for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
    assert sorted(spans) == sorted([f"chat {model}", "queue", "prefill", "decode"])
    assert SECRET not in done.stderr and CANARY not in done.stderr
    again = once(file, collector)
    assert again.returncode == 0 and again.stderr.startswith("0 lines sent"), "each once"


def test_what_can_not_be_taken_now_is_taken_later(tmp_path, collector):
    file = tmp_path / "traces.jsonl"
    said = lines("one", "two", "three")
    add(file, said[0], "", "{half", said[1])
    late = (503, {"retry-after": "1"}, b"busy")
    collector.answers = [late, late, (200, {}, b""), (400, {}, b"what?"),
                         (200, {}, b'{"partialSuccess": {"rejectedSpans": "1", "errorMessage": "old"}}')]
    with running(file, collector) as told:
        until(lambda: len(collector.taken()) == 2)
        # Put aside while it is read.
        file.rename(f"{file}.1")
        add(file, said[2])
        until(lambda: len(collector.taken()) == 3)
        # The note comes after the answer.
        until(lambda: int(file.with_name("traces.jsonl.sent").read_text().split()[-1]) == file.stat().st_size)
    assert collector.taken() == said
    told, = told
    assert "HTTP 503" in told and "a line is left out: HTTP 400" in told and "did not keep 1 spans" in told
    assert told.endswith("3 lines sent; 1 spans of them not kept by the collector, 1 lines left out\n"), told


def test_it_goes_on_where_it_was_killed(tmp_path, collector):
    """At least once, in order: what was taken before a kill may come again, and nothing is missing."""
    file = tmp_path / "traces.jsonl"
    said = lines(*(f"span {number}" for number in range(400)))
    add(file, *said)
    collector.delay_s = 0.005
    for _ in range(8):
        before = len(collector.asked)
        with subprocess.Popen(command(file, collector), stderr=subprocess.DEVNULL) as process:
            try:
                until(lambda: len(collector.asked) > before + 5)
            finally:
                process.kill()
    collector.delay_s = 0.0
    assert once(file, collector).returncode == 0
    taken = collector.taken()
    assert list(dict.fromkeys(taken)) == said
    assert len(taken) <= len(said) + 8


def test_a_collector_that_reads_nothing_is_none(tmp_path, collector):
    """Another server behind the address answers 400, and a clumsy one with a page: neither takes away what waits."""
    file = tmp_path / "traces.jsonl"
    said = lines(*map(str, range(20)))
    add(file, *said)
    collector.answers = [(400, {}, b"x" * 100_000)] * 8
    done = once(file, collector)
    assert done.returncode == 1 and "none of 8 lines in a row was read" in done.stderr, done.stderr
    collector.answers = [(200, {}, b"x" * 100_000)]
    assert once(file, collector).returncode == 0
    assert collector.taken() == said


@pytest.mark.parametrize(("status", "reason"), [(401, "HTTP 401: are --endpoint and the headers right?"), (503, "HTTP 503")])
def test_a_collector_that_takes_nothing_is_told_and_nothing_is_lost(tmp_path, collector, status, reason):
    file = tmp_path / "traces.jsonl"
    add(file, *lines("one"))
    collector.answers = [(status, {}, b"")] * 9
    done = once(file, collector, "--give-up-after-s", "2")
    assert done.returncode == 1 and f"nothing more is sent: {reason}" in done.stderr, done.stderr
    collector.answers = []
    assert once(file, collector).returncode == 0
    assert collector.taken() == lines("one")


def test_one_sender_and_a_file(tmp_path, collector):
    file = tmp_path / "traces.jsonl"
    add(file, *lines("one"))
    with running(file, collector):
        until(collector.taken)
        second = once(file, collector)
        assert second.returncode == 1 and "another process sends these traces" in second.stderr
    missing = tmp_path / "missing.jsonl"
    for wrong, reason in (("/dev/null", "no file"), (tmp_path / "missing" / "traces.jsonl", "missing"), (missing, "no such file")):
        done = once(wrong, collector)
        assert done.returncode == 1 and reason in done.stderr, done.stderr
    to_nobody = [binary(), "traces", "send", file, "--once", "--give-up-after-s", "1", "--endpoint", "http://127.0.0.1:9"]
    assert ran(to_nobody).returncode == 0, "all has been sent"
    add(file, *lines("two"))
    nobody = ran(to_nobody)
    assert nobody.returncode == 1 and "could not connect" in nobody.stderr
