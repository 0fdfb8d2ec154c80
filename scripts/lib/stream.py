"""A small asyncio client for streamed answers: costs little of the processor that it shares with the server."""
import asyncio
import dataclasses
import json
import time


class StreamError(Exception):
    """The server answered with an error, or the stream broke the protocol."""


@dataclasses.dataclass
class Answer:
    """What a streamed answer gave, with the times of its pieces in seconds of `time.perf_counter`."""

    started: float
    stamps: list = dataclasses.field(default_factory=list)
    pieces: list = dataclasses.field(default_factory=list)
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    cancelled: bool = False

    @property
    def text(self):
        return "".join(self.pieces)

    @property
    def first_token_s(self):
        return self.stamps[0] - self.started

    @property
    def tokens_per_s(self):
        """Of the tokens after the first."""
        seconds = self.stamps[-1] - self.stamps[0]
        return (self.completion_tokens - 1) / seconds if seconds > 0 else 0.0


async def stream(port, path, body, on_piece=lambda text: None, cancel_after=None, key=None):
    """POSTs a streaming request to 127.0.0.1 and reads the answer to its end.

    `cancel_after`: hangs up after so many pieces.  `key`: sent as the bearer's.  Raises StreamError for an error answer, an error event, or a stream
    without `[DONE]`.
    """
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    credentials = f"Authorization: Bearer {key}\r\n" if key else ""
    answer = Answer(time.perf_counter())
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        writer.write(f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{credentials}Content-Type: application/json\r\n"
                     f"Accept: text/event-stream\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode())
        writer.write(data)
        await writer.drain()
        chunked = await _read_head(reader)
        async for event in _events(reader, chunked):
            _take(answer, event, on_piece)
            if cancel_after is not None and len(answer.pieces) >= cancel_after:
                answer.cancelled = True
                return answer
    finally:
        writer.close()
    if answer.finish is None:
        raise StreamError("the stream ended without a finish_reason")
    return answer


async def _read_head(reader):
    """Reads status line and headers; returns whether the body is chunked."""
    status = (await reader.readline()).split()
    chunked = False
    while line := (await reader.readline()).strip().lower():
        chunked |= line == b"transfer-encoding: chunked"
    if len(status) < 2 or status[1] != b"200":
        code = status[1].decode() if len(status) > 1 else "no status"
        raise StreamError(f"{code}: {(await reader.read(2000)).decode(errors='replace')}")
    return chunked


async def _bodies(reader, chunked):
    while True:
        if not chunked:
            part = await reader.read(1 << 16)
            if not part:
                return
            yield part
            continue
        size = int((await reader.readline()).split(b";")[0] or b"0", 16)
        if size == 0:
            return
        yield (await reader.readexactly(size + 2))[:-2]


async def _events(reader, chunked):
    """The JSON of each event up to `[DONE]`."""
    buffer = b""
    async for part in _bodies(reader, chunked):
        buffer += part
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            line = line.strip()
            if not line.startswith(b"data:"):
                continue
            payload = line[5:].strip()
            if payload == b"[DONE]":
                return
            yield json.loads(payload)
    raise StreamError("the stream ended without [DONE]")


def _take(answer, event, on_piece):
    if "error" in event:
        raise StreamError(f"error event: {event['error'].get('message')}")
    for choice in event.get("choices") or []:
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        if text:
            answer.stamps.append(time.perf_counter())
            answer.pieces.append(text)
            on_piece(text)
        answer.finish = choice.get("finish_reason") or answer.finish
    if usage := event.get("usage"):
        answer.prompt_tokens = usage["prompt_tokens"]
        answer.completion_tokens = usage["completion_tokens"]
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
