"""When the tokens of many streams reach their clients' sockets, by the kernel's clock: what the server and the kernel took, without
what a client beside them takes to read."""
import contextlib
import re
import socket
import struct
import time

from lib import server, talk

# Of Linux; Python does not name it. The kernel tells when what is read had come.
SO_TIMESTAMPNS = 35
STAMP = struct.Struct("qq")
SILENCE_S_MAX = 30
# One letter for each token: that is how the model that computes nothing answers.
TOKEN, END = re.compile(rb'"content":"[a-z]"'), b"data: [DONE]"


class Stream:
    """An answer that is streamed, and when each of its tokens came, in seconds."""

    def __init__(self, port, request):
        self.times, self.whole, self.held = [], False, b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SILENCE_S_MAX)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.sendall(request)
        self.socket.setblocking(False)

    def read(self):
        """Takes what has come, and returns whether that was anything. Of two tokens that nobody read in between, both came when the
        later one did."""
        try:
            got, ancillary, _, _ = self.socket.recvmsg(1 << 16, socket.CMSG_SPACE(STAMP.size))
        except BlockingIOError:
            return False
        if not self.times and got.startswith(b"HTTP/") and not got.startswith(b"HTTP/1.1 200 ") or not got:
            raise server.ServerError(f"a stream was not answered, or ended early: {got[:300]!r}")
        events, parted, self.held = (self.held + got).rpartition(b"\n\n")
        stamps = [STAMP.unpack(data) for _, kind, data in ancillary if kind == SO_TIMESTAMPNS]
        # The kernel begins to look at its clock some time after the first socket asks it to.
        came = [seconds + 1e-9 * nanoseconds for seconds, nanoseconds in stamps] or [time.time()]
        self.times += came * len(TOKEN.findall(events))
        self.whole = END in events
        return True


def streams(port, count, tokens, step_s):
    """So many streams of so many tokens at one time, read to their ends: when each token came, of each stream."""
    body = talk.asked(talk.CHAT, "hollow", "Say letters.", tokens, stream=True) | {"ignore_eos": True}
    request = talk.raw(port, talk.CHAT, body)
    with contextlib.ExitStack() as opened:
        found = []
        for _ in range(count):
            found.append(Stream(port, request))
            opened.enter_context(found[-1].socket)
        going, latest, heard = list(found), 0, time.monotonic()
        while going:
            # In the middle between one step and the next. Nobody waits at the sockets, so that what comes wakes nobody: the server
            # has the machine for itself, as if its clients were elsewhere.
            time.sleep(min(1.5 * step_s, max(step_s / 4, latest + 1.5 * step_s - time.time())))
            if any([one.read() for one in going]):
                heard = time.monotonic()
                latest = max((one.times[-1] for one in going if one.times), default=latest)
            elif time.monotonic() > heard + SILENCE_S_MAX:
                raise server.ServerError("streams fell silent")
            going = [one for one in going if not one.whole]
    short = [len(one.times) for one in found if len(one.times) != tokens]
    if short:
        raise server.ServerError(f"{len(short)} streams without all of their {tokens} tokens: of {min(short)}")
    return [one.times for one in found]


def between(times):
    """Milliseconds between two tokens of a stream, those of all streams together, while all of them are under way."""
    began, ended = max(first for first, *_ in times), min(last for *_, last in times)
    found = [1e3 * (after - before) for stream in times for before, after in zip(stream, stream[1:], strict=False)
             if began <= before and after <= ended]
    if not found:
        raise server.ServerError("the streams were never all under way: longer ones are")
    return found
