"""SIGTERM lets running answers finish; a second one ends at once."""
import asyncio
import signal
import time
import urllib.error
import urllib.request

from lib import stream

LONG = {"prompt": "Count to one thousand: 1, 2, 3,", "temperature": 0, "ignore_eos": True}


async def signal_after_pieces(server, body, signals, pieces=4):
    """Streams an answer and sends the signals once it has begun."""
    seen = 0

    def on_piece(_):
        nonlocal seen
        seen += 1
        if seen == pieces:
            for number in signals:
                server.process.send_signal(number)

    return await stream.stream(server.port, "/v1/completions", body | {"model": server.model_name()}, on_piece)


def test_sigterm_drains(own_server):
    server = own_server("smollm2", "drain.log")
    answer = asyncio.run(signal_after_pieces(server, LONG | {"max_tokens": 96}, [signal.SIGTERM]))
    assert (answer.finish, answer.completion_tokens) == ("length", 96)
    assert server.process.wait(30) == 0


def test_no_new_request_while_draining(own_server):
    server = own_server("smollm2", "drain-new.log")
    name = server.model_name()
    refused = []

    def ask():
        try:
            urllib.request.urlopen(f"{server.root}/readyz", timeout=5)
            return "green"
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return "refused"

    def until_it_ends():
        """Its first answer that is none of a server that goes on: pieces may be read faster than a signal is."""
        until = time.monotonic() + 5
        while (found := ask()) == "green" and time.monotonic() < until:
            time.sleep(0.02)
        return found

    async def run():
        seen = 0

        def on_piece(_):
            nonlocal seen
            seen += 1
            if seen == 4:
                server.process.send_signal(signal.SIGTERM)
            if seen == 40:
                refused.append(until_it_ends())

        return await stream.stream(server.port, "/v1/completions", LONG | {"max_tokens": 128, "model": name}, on_piece)

    answer = asyncio.run(run())
    assert answer.completion_tokens == 128
    assert refused and refused[0] in (503, "refused")
    assert server.process.wait(30) == 0


def test_a_second_signal_ends_at_once(own_server):
    server = own_server("smollm2", "second.log")
    began = time.monotonic()
    try:
        asyncio.run(signal_after_pieces(server, LONG | {"max_tokens": 8000}, [signal.SIGTERM, signal.SIGINT]))
    except (stream.StreamError, asyncio.IncompleteReadError, ConnectionError):
        pass
    server.process.wait(20)
    assert time.monotonic() - began < 60
