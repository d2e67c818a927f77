"""What our own Python costs per token: the whole line in one process, without a kernel in it.

Owns fake transports around the real upstream connection, stream and subscriber. Feeds the bytes of one read per token
and counts the time until the client's transport has been written to. Not a comparison: a quick look for regressions.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Final

import uvloop

from sidecar.answer import Asked
from sidecar.settings import KIB, Address, Route, Upstream
from sidecar.streams import Streams
from sidecar.subscribers import HttpSubscriber
from sidecar.upstream.connection import Connection

FORMATS: Final = ("native", "typed")
_TOKENS: Final = 50_000
_HOT_AFTER: Final = 2_000
_BEST_OF: Final = 5
_DIFFERENT_TOKENS: Final = 997


@dataclass(frozen=True, slots=True)
class Spoken:
    """One dialect on the wire: where it is asked, its content type, what comes first, a token with room for text."""

    path: str
    content_type: str
    first: bytes
    token: bytes


_OPENAI: Final = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1763800000,"model":"bench",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,'
    b'"finish_reason":null}]}\n\n'
)
_ANTHROPIC_START: Final = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant",'
    b'"model":"bench","content":[],"stop_reason":null,"stop_sequence":null,'
    b'"usage":{"input_tokens":7,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
)
_ANTHROPIC: Final = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"%b"}}\n\n'
)
_OLLAMA: Final = (
    b'{"model":"bench","created_at":"2026-01-01T00:00:00Z",'
    b'"message":{"role":"assistant","content":"%b"},"done":false}\n'
)

DIALECTS: Final = {
    "openai": Spoken("/v1/chat/completions", "text/event-stream", _OPENAI % b"", _OPENAI),
    "anthropic": Spoken("/v1/messages", "text/event-stream", _ANTHROPIC_START, _ANTHROPIC),
    "ollama": Spoken("/api/chat", "application/x-ndjson", _OLLAMA % b"a", _OLLAMA),
    "raw": Spoken("/generate", "text/plain", b"a", b"%b"),
}


class _Transport(asyncio.Transport):
    """Takes everything at once and counts the writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, data: object) -> None:
        self.writes += 1

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There is no buffer."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return None

    def abort(self) -> None:
        """There is nothing to drop."""

    def pause_reading(self) -> None:
        """Bytes are fed by hand."""

    def resume_reading(self) -> None:
        """Bytes are fed by hand."""


class _Owner:
    """A pool that keeps nothing."""

    def give_back(self, connection: Connection) -> None:
        """It is not used again."""

    def forget(self, connection: Connection) -> None:
        """It was never remembered."""


def _word(number: int) -> bytes:
    """Text as models send it: some characters, never twice the same in a row."""
    return b" word%d" % number + b"s" * (number % 7)


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


async def _microseconds_per_token(spoken: Spoken, format_name: str, tokens: int) -> float:
    loop = asyncio.get_running_loop()
    client = _Transport()
    asked = Asked("0" * 26, "POST", spoken.path, (1, 1), True, format_name, True, "bench", 1)
    stream = Streams(time.monotonic, loop).open(
        asked, Route("all", ("llm",)), HttpSubscriber(client, lambda later: later(), is_ready=True), time.monotonic()
    )
    stream.begin(Upstream("llm", "http", Address("127.0.0.1", 1), "127.0.0.1:1"))
    connection = Connection(loop, _Owner(), 64 * KIB)
    connection.connection_made(_Transport())
    stream.sent(connection.send(stream, method=b"POST", head=b"", body=b"", chunked_body=False))
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {spoken.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.data_received(head.encode())
    connection.data_received(_chunk(spoken.first))
    words = [_chunk(spoken.token % _word(number)) for number in range(_DIFFERENT_TOKENS)]
    receive = connection.data_received
    best = float("inf")
    for count in (_HOT_AFTER, *[tokens] * _BEST_OF):
        writes = client.writes
        began = time.perf_counter()
        for token in islice(cycle(words), count):
            receive(token)
        best = min(best, (time.perf_counter() - began) / count)
        if client.writes - writes != count:
            raise AssertionError(f"{count} tokens led to {client.writes - writes} writes")
    return best * 1e6


def measure_line(tokens: int = _TOKENS) -> dict[str, dict[str, float]]:
    """Microseconds per token by dialect and format: the best of five, since noise only ever adds."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return {
            dialect: {name: runner.run(_microseconds_per_token(spoken, name, tokens)) for name in FORMATS}
            for dialect, spoken in DIALECTS.items()
        }
