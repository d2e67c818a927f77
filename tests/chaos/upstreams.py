"""Upstreams that fail in every way there is, at random but by a seed, and write down exactly what they sent.

Owns the faults and their odds. Must not know who asks, nor what is made of the answers.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from sidecar.settings import Address
from tests.app_support import LAST_CHUNK, SSE_HEAD, chunk
from tests.chaos.answers import (
    LANGUAGES,
    SSE,
    Answer,
    broken_frame,
    error_frame,
    huge_frame,
    large_answer,
    make_answer,
)
from tests.chaos.ledger import Ledger, Sent

NUMBER = "X-Chaos-Number"
SILENCE_S = 4.0
"""Longer than any deadline of the run."""
HUGE_FRAME_BYTES = 200_000
NO_HTTP = [
    b"220 mail.test ESMTP\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"HTTP/1.1 banana\r\n\r\n",
    b"\0" * 500,
]
REFUSALS = ["429 Too Many Requests", "500 Internal Server Error", "503 Service Unavailable"]


class Over(Exception):  # noqa: N818 - it is how a conversation ends, and no error
    """Nothing more is said on this connection."""


@dataclass(frozen=True)
class Asked:
    """One request's head."""

    method: str
    target: str
    headers: dict[str, str]


class Conversation:
    """One connection of the sidecar's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._is_chunked = False
        self._length: int | None = None
        self.sent = Sent("", "")
        self.closes = False

    # Hearing.

    async def request(self) -> Asked:
        """The next request's head."""
        raw = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        return Asked(
            method, target, {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        )

    async def body(self, headers: dict[str, str]) -> bytes:
        """The request's body, once it is whole."""
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(headers.get("content-length", "0")))
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
        return body

    async def silence(self, seconds: float = SILENCE_S) -> None:
        """Say nothing until the other side has left, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while await self._reader.read(65536):
                    pass
        self.hang_up()

    # Saying.

    async def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: str, content_type: str, length: int | None = None, extra: str = "") -> None:
        """An answer's head; without a length its body comes in chunks, or until the end if the connection is to close
        and ``extra`` says so."""
        self.sent.status = int(status.split()[0])
        lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}"]
        self._length = length
        self._is_chunked = length is None and not self.sent.is_unproven
        if self._is_chunked:
            lines.append("Transfer-Encoding: chunked")
        elif length is not None:
            lines.append(f"Content-Length: {length}")
        if self.closes or self.sent.is_unproven:
            lines.append("Connection: close")
        await self.raw(("\r\n".join(lines) + f"\r\n{extra}\r\n").encode())

    async def piece(self, data: bytes, text: str = "") -> None:
        """A part of the body, and what it tells."""
        if data:
            self.sent.body += data
            self.sent.text += text
            self.sent.is_framed_whole = len(self.sent.body) == self._length
            await self.raw(chunk(data) if self._is_chunked else data)

    async def end(self) -> None:
        """The body is whole."""
        self.sent.is_framed_whole = True
        if self._is_chunked:
            await self.raw(LAST_CHUNK)
        if self.closes or self.sent.is_unproven:
            self.hang_up()

    def hang_up(self) -> None:
        """FIN."""
        self._writer.close()
        raise Over

    def reset(self) -> None:
        """RST."""
        if not self._writer.transport.is_closing():
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()
        raise Over


async def _hang_up(talk: Conversation) -> None:
    talk.hang_up()


async def _reset(talk: Conversation) -> None:
    talk.reset()


_STOPS = (_hang_up, _reset, Conversation.silence)
Fault = Callable[[Conversation, Answer, random.Random], Awaitable[None]]


async def _some(talk: Conversation, answer: Answer, chance: random.Random) -> int:
    """The head and a few frames; how many. At least the last one is missing."""
    await talk.head("200 OK", answer.language.content_type)
    count = chance.randrange(len(answer.frames))
    for frame, text in zip(answer.frames[:count], answer.texts, strict=False):
        await talk.piece(frame, text)
    talk.sent.is_finished = count > answer.finish_at
    return count


async def _half(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    """As `_some`, and a part of the next frame."""
    frame = answer.frames[await _some(talk, answer, chance)]
    await talk.piece(frame[: chance.randrange(1, len(frame) - 2)])


async def whole(talk: Conversation, answer: Answer, chance: random.Random, frames: Sequence[bytes] = ()) -> None:
    """Everything as it should be, cut into reads anywhere."""
    frames = frames or answer.frames
    if chance.random() < 0.05:
        await talk.raw(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
    talk.sent.is_unproven = chance.random() < 0.1
    talk.sent.has_end_mark = True
    await talk.head("200 OK", answer.language.content_type)
    talk.sent.text = "".join(answer.texts)
    body = b"".join(frames)
    manner = chance.choice(["frames", "frames", "one", "anywhere"])
    if manner == "frames":
        for frame in frames:
            await talk.piece(frame)
            await asyncio.sleep(0)
    elif manner == "one":
        await talk.piece(body)
    else:
        cuts = sorted(chance.sample(range(1, len(body)), min(len(body) - 1, 40)))
        for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            await talk.piece(body[start:end])
            await asyncio.sleep(0)
    await talk.end()


async def large(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    await whole(talk, large_answer(answer.language, chance), chance)


async def slow(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    talk.sent.has_end_mark = True
    await talk.head("200 OK", answer.language.content_type)
    for frame, text in zip(answer.frames, answer.texts, strict=True):
        middle = chance.randrange(len(frame))
        await talk.piece(frame[:middle])
        await asyncio.sleep(chance.choice([0, 0.005, 0.03]))
        await talk.piece(frame[middle:], text)
    await talk.end()


async def broken(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    talk.sent.broken_frames = 1
    at = chance.randrange(len(answer.frames))
    frames = [*answer.frames[:at], broken_frame(answer.language, chance), *answer.frames[at:]]
    await whole(talk, answer, chance, frames)


async def huge(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    at = chance.randrange(len(answer.frames))
    frames = [*answer.frames[:at], huge_frame(answer.language, HUGE_FRAME_BYTES), *answer.frames[at:]]
    await whole(talk, answer, chance, frames)


async def cut(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    await chance.choice([_some, _half])(talk, answer, chance)
    chance.choice([talk.hang_up, talk.reset])()


async def cut_clean(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    await chance.choice([_some, _half])(talk, answer, chance)
    await talk.end()


async def stall(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    await chance.choice([_some, _half])(talk, answer, chance)
    await talk.silence()


async def no_chunk(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    await _half(talk, answer, chance)
    framed, told = chance.choice(
        [(b"no size\r\n", b""), (b"f" * 18 + b"\r\n", b""), (b"5\r\nhelloworld\r\n", b"hello")]
    )
    talk.sent.body += told
    await talk.raw(framed)
    await talk.silence()


async def error(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    await _some(talk, answer, chance)
    await talk.piece(error_frame(answer.language))
    if chance.random() < 0.5:
        await talk.end()
    chance.choice([talk.hang_up, talk.reset])()


async def no_end(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    """All of the answer, and then not the end of its body."""
    await talk.head("200 OK", answer.language.content_type)
    talk.sent.has_end_mark = True
    for frame, text in zip(answer.frames, answer.texts, strict=True):
        await talk.piece(frame, text)
    await chance.choice(_STOPS)(talk)


async def mute(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    """Not one byte of an answer."""
    await chance.choice(_STOPS)(talk)


async def no_http(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    await talk.raw(chance.choice(NO_HTTP))
    await chance.choice(_STOPS)(talk)


async def cut_head(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    head = SSE_HEAD.replace(SSE.encode(), answer.language.content_type.encode())
    await talk.raw(head[: chance.randrange(1, len(head) - 1)])
    await chance.choice(_STOPS)(talk)


async def page(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    body = b"<html>Log in</html>"
    await talk.head("200 OK", "text/html", len(body))
    await talk.piece(body)
    await talk.end()


async def refuse(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    status = chance.choice(REFUSALS)
    body, kind = chance.choice(
        [(b'{"error": {"message": "no", "type": "x"}}', "application/json"), (b"<html>", "text/html")]
    )
    extra = chance.choice(["", "Retry-After: 1\r\n", "Retry-After: 0\r\n"])
    await talk.head(status, kind, chance.choice([None, len(body)]), extra)
    await talk.piece(body)
    if chance.random() < 0.8:
        await talk.end()
    talk.reset()


async def plain(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    """A JSON body that is no stream, framed in one of three ways."""
    body = json.dumps({"data": chance.choices(["x", "Grüß", "😄"], k=chance.choice([1, 50, 20_000]))}).encode()
    length = chance.choice([len(body), len(body), None])
    talk.sent.is_unproven = length is None and chance.random() < 0.3
    await talk.head("200 OK", "application/json", length)
    await talk.piece(body[: len(body) // 2])
    await asyncio.sleep(chance.choice([0, 0.01]))
    await talk.piece(body[len(body) // 2 :])
    await talk.end()


async def cut_plain(talk: Conversation, answer: Answer, chance: random.Random) -> None:
    body = b'{"data": "%b"}' % (b"x" * 3000)
    await talk.head("200 OK", "application/json", chance.choice([len(body), None]))
    await talk.piece(body[: chance.randrange(len(body) - 1)])
    await chance.choice(_STOPS)(talk)


_BEFORE_A_BODY: dict[Fault, float] = {mute: 5, no_http: 3, cut_head: 3, refuse: 8}
STREAM_ODDS: dict[Fault, float] = {
    **_BEFORE_A_BODY,
    page: 2,
    whole: 45,
    large: 6,
    slow: 6,
    broken: 4,
    huge: 2,
    cut: 8,
    cut_clean: 5,
    stall: 5,
    no_chunk: 2,
    error: 4,
    no_end: 4,
}
PLAIN_ODDS: dict[Fault, float] = {**_BEFORE_A_BODY, plain: 60, cut_plain: 8}


class ChaosUpstream:
    """One listening upstream. What it does about a request is settled by ``seed``, the request's number and how often
    it has been asked before; what it does about a connection, by ``seed`` and the connection's number."""

    def __init__(self, name: str, seed: int, ledger: Ledger) -> None:
        self.name = name
        self.address = Address()
        self.is_calm = False
        """From now on it does everything as it should."""
        self._seed = seed
        self._ledger = ledger
        self._connections = 0
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def open_connections(self) -> int:
        """How many the sidecar has here now."""
        return len(self._open)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to its end."""
        self._connections += 1
        self._open.add(writer)
        try:
            with suppress(Over, OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._talk(
                    Conversation(reader, writer), random.Random(f"{self._seed}/{self.name}/{self._connections}")
                )
        except RuntimeError:  # uvloop's word for a transport that has gone while its reader was to be resumed
            if not writer.is_closing():
                raise
        finally:
            self._open.discard(writer)
            writer.close()

    async def _talk(self, talk: Conversation, chance: random.Random) -> None:
        if chance.random() < 0.04 and not self.is_calm:
            talk.reset()
        while True:
            idle_s = chance.choice([SILENCE_S * 4] * 4 + [0.0, 0.01, 0.05])
            try:
                async with asyncio.timeout(None if self.is_calm else idle_s):
                    asked = await talk.request()
            except TimeoutError:
                talk.hang_up()
            number = int(asked.headers.get(NUMBER.lower(), "-1"))
            talk.sent = Sent(self.name, "")
            talk.closes = chance.random() < 0.1
            self._ledger.sent[number].append(talk.sent)
            await self._answer(talk, asked, number)

    async def _answer(self, talk: Conversation, asked: Asked, number: int) -> None:
        tries = len(self._ledger.sent[number])
        chance = random.Random(f"{self._seed}/{number}/{self.name}/{tries}")
        language = next((each for each in LANGUAGES if asked.target.startswith(each.path)), LANGUAGES[0])
        is_early = "octet-stream" in asked.headers.get("content-type", "") and chance.random() < 0.15
        body = b""
        if not is_early:
            body = await talk.body(asked.headers)
            self._ledger.received[number].append(body)
        odds = STREAM_ODDS if b'"stream": true' in body else PLAIN_ODDS
        fault: Fault = chance.choices(list(odds), weights=list(odds.values()))[0]
        if self.is_calm or number < 0:
            fault = whole if odds is STREAM_ODDS else plain
        elif is_early:
            fault = chance.choice([refuse, mute])
        talk.sent.fault = fault.__name__
        self._ledger.faults[fault.__name__] += 1
        await fault(talk, make_answer(language, chance), chance)
        if is_early:
            talk.hang_up()


@asynccontextmanager
async def chaotic(name: str, seed: int, ledger: Ledger) -> AsyncIterator[ChaosUpstream]:
    """An upstream that is there until the block ends."""
    upstream = ChaosUpstream(name, seed, ledger)
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=2**20, backlog=512)
    upstream.address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    try:
        yield upstream
    finally:
        server.close()
        for writer in tuple(upstream._open):
            writer.transport.abort()
        while upstream._open:
            await asyncio.sleep(0.002)
