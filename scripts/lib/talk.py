"""A small asyncio client for all endpoints that generate: it sees status, headers and times, and can hang up in the middle."""
import asyncio
import json
import time

CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
ENDPOINTS = (CHAT, COMPLETIONS, MESSAGES, RESPONSES)
# The fewest tokens that /v1/responses may be asked for.
TOKENS_MIN = 16
ENDS = {"message_stop", "response.completed", "response.incomplete"}
READ_BYTES = 1 << 20


class TalkError(Exception):
    """The answer is an error, or breaks the protocol."""


def asked(path, model, text, tokens, stream=False):
    """The body that asks this endpoint for so many tokens."""
    body = {"model": model, "temperature": 0, "stream": stream}
    if path == COMPLETIONS:
        return body | {"prompt": text, "max_tokens": tokens}
    if path == RESPONSES:
        return body | {"input": text, "max_output_tokens": max(tokens, TOKENS_MIN)}
    return body | {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}


def raw(port, path, body):
    """The same bytes for each request, for clients that are to cost little."""
    body = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode() + body


def brings_text(event):
    """Whether an event of a stream, of any endpoint, has a piece of the answer."""
    if event.get("type") in ("content_block_delta", "response.output_text.delta"):
        return True
    choices = event.get("choices") or [{}]
    return bool(choices[0].get("text") or (choices[0].get("delta") or {}).get("content"))


class Exchange:
    """One request on a connection of its own. Times are of `time.perf_counter`, in seconds, from before the connection is opened."""

    def __init__(self, reader, writer, started):
        self.reader, self.writer, self.started = reader, writer, started
        self.status, self.headers, self.answered = 0, {}, 0.0
        # Whether a stream has come to its end.
        self.whole = False

    @classmethod
    async def begin(cls, port, path, body, trust=None):
        """Asks 127.0.0.1, and returns when the head of the answer is there."""
        data = json.dumps(body).encode()
        started = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, limit=READ_BYTES)
        self = cls(reader, writer, started)
        try:
            writer.write(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
                         f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
            await self._head()
        except BaseException:
            self.hang_up()
            raise
        self.answered = time.perf_counter()
        return self

    async def _head(self):
        status = (await self.reader.readline()).split()
        if len(status) < 2:
            raise TalkError("the connection was closed without an answer")
        self.status = int(status[1])
        while line := (await self.reader.readline()).decode().strip():
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()

    async def _parts(self):
        if self.headers.get("transfer-encoding") != "chunked":
            while part := await self.reader.read(READ_BYTES):
                yield part
            return
        while size := int((await self.reader.readline()).split(b";")[0] or b"0", 16):
            yield (await self.reader.readexactly(size + 2))[:-2]

    async def document(self):
        """The JSON of an answer that is none of a stream."""
        text = b"".join([part async for part in self._parts()])
        self.hang_up()
        try:
            return json.loads(text)
        except ValueError:
            raise TalkError(f"{self.status}: no JSON but {text[:200]!r}") from None

    async def pieces(self):
        """The events of a stream that bring text, each when it comes; sets `whole` at its proper end."""
        if self.status != 200:
            raise TalkError(f"{self.status}: {await self.document()}")
        held = b""
        async for part in self._parts():
            *lines, held = (held + part).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                event = {} if data == b"[DONE]" else json.loads(data)
                if event.get("error") or event.get("type") == "response.failed":
                    raise TalkError(f"error event: {data.decode()[:300]}")
                if brings_text(event):
                    yield event
                self.whole |= data == b"[DONE]" or event.get("type") in ENDS

    def hang_up(self):
        """Closes the connection at once, whatever is still to come."""
        self.writer.transport.abort()
