"""R5: SIGTERM while answers are streamed. None may be cut, and the process ends by itself."""
import asyncio
import signal
import subprocess
import time

from lib import server, stream
from lib.reliability import figures
from lib.reliability.programs import LOGS

STREAMS = 50
# Of each answer: so many that the first still runs when the last begins, and that all end within the drain.
TOKENS = 96
DRAIN_S = 30
# What the end may take beyond the drain's own time.
MORE_S = 2
PROMPT = "Count to one thousand: {}, 2, 3,"


async def streams_and_a_signal(running):
    """Streams at one time, and SIGTERM once each has begun. Returns the answers or errors, how many still ran then, and when that
    was."""
    name = running.model_name()
    begun, ended, all_begun = set(), set(), asyncio.Event()

    async def one(number):
        def on_piece(_):
            begun.add(number)
            if len(begun) == STREAMS:
                all_begun.set()
        body = {"model": name, "prompt": PROMPT.format(number), "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        try:
            return await stream.stream(running.port, "/v1/completions", body, on_piece)
        finally:
            ended.add(number)
            # One that ended in an error would never begin: the others are then not waited for.
            if number not in begun:
                all_begun.set()

    tasks = [asyncio.create_task(one(number)) for number in range(STREAMS)]
    await all_begun.wait()
    running.process.send_signal(signal.SIGTERM)
    signalled, running_then = time.monotonic(), STREAMS - len(ended)
    return await asyncio.gather(*tasks, return_exceptions=True), running_then, signalled


def check(programs):
    """Figures of R5, with the real model: the signal is what the command `serve` makes of it."""
    arguments = ["--sequences-max", STREAMS, "--drain-timeout-s", DRAIN_S, "--context-length", 1024]
    with server.Server(programs.model, LOGS / "drain.log", arguments=arguments, executable=programs.rempart) as running:
        running.wait_ready(300)
        answers, running_then, signalled = asyncio.run(streams_and_a_signal(running))
        try:
            code = running.process.wait(DRAIN_S + 30)
        except subprocess.TimeoutExpired:
            raise server.ServerError(f"the server still ran {DRAIN_S + 30} s after its last answer") from None
        took = time.monotonic() - signalled
    whole = [answer for answer in answers
             if isinstance(answer, stream.Answer) and (answer.finish, answer.completion_tokens) == ("length", TOKENS)]
    causes = sorted({str(answer) for answer in answers if isinstance(answer, BaseException)})
    return [
        figures.exactly("streams that ran at SIGTERM", running_then, STREAMS),
        figures.exactly("answers that were cut", STREAMS - len(whole), 0),
        figures.exactly("exit status", code, 0),
        figures.at_most("from SIGTERM to the end", took, DRAIN_S + MORE_S, " s"),
        *(figures.told("an answer's error", cause) for cause in causes[:3]),
    ]
