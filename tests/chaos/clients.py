"""Clients that come, go and stop reading, at random but by a seed, and write down exactly what they got.

Owns who asks what and how each behaves. Must not know what upstreams do, nor what is made of the answers.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from sidecar.settings import Address
from tests.app_support import Client, request
from tests.chaos.answers import LANGUAGES
from tests.chaos.ledger import Got, Ledger
from tests.chaos.upstreams import NUMBER
from tests.departures import DEPARTURES, leave

CALLER = "X-Chaos-Caller"
VISIT_TIMEOUT_S = 25.0
"""Far beyond every deadline of the run: whoever waits so long has been forgotten."""
SMALL_BUFFER_BYTES = 8 * 1024
_PIECE_BYTES = 32 * 1024

Manner = Literal["single", "row", "pipeline", "leaving", "pausing"]
MANNERS: dict[Manner, int] = {"single": 45, "row": 15, "pipeline": 8, "leaving": 20, "pausing": 12}
KINDS = {"stream": 75, "plain": 10, "computed": 8, "upload": 7}


class AnswerOverError(Exception):
    """The connection ended where an answer was awaited."""


@dataclass(frozen=True)
class Wish:
    """One request as it will be sent, in pieces, and where its answer will be noted."""

    pieces: list[bytes]
    got: Got


def make_wish(number: int, chance: random.Random, *, kind: str = "", version: str = "") -> Wish:
    """Something to ask for."""
    kind = kind or chance.choices(list(KINDS), weights=list(KINDS.values()))[0]
    version = version or chance.choice(["1.1"] * 9 + ["1.0"])
    headers = [(NUMBER, str(number)), (CALLER, chance.choice(["a", "b", "c"]))]
    if version == "1.1" and chance.random() < 0.1:
        headers.append(("Connection", "close"))
    if kind == "plain":
        got = Got(number, kind)
        return Wish([request("GET", "/v1/models", None, headers, version=version)], got)
    if kind == "upload":
        return _upload(number, chance, headers)
    language = chance.choice(LANGUAGES)
    got = Got(number, kind, language, is_typed=kind == "stream" and chance.random() < 0.5)
    if got.is_typed:
        headers.append(("X-Stream-Format", "typed"))
    content = "x" * chance.choice([1, 10, 10, 40_000])
    asked = {
        "model": "m",
        "stream": kind == "stream",
        "max_tokens": 999,
        "messages": [{"role": "user", "content": content}],
    }
    got.body = json.dumps(asked).encode()
    headers.append(("Content-Type", "application/json"))
    data = request("POST", language.path, got.body, headers, version=version)
    middle = chance.randrange(len(data)) if chance.random() < 0.2 else 0
    return Wish([data[:middle], data[middle:]] if middle else [data], got)


def _upload(number: int, chance: random.Random, headers: list[tuple[str, str]]) -> Wish:
    got = Got(number, "upload", body=chance.randbytes(chance.choice([0, 10, 3000, 300_000])))
    headers.append(("Content-Type", "application/octet-stream"))
    pieces = [got.body[at : at + _PIECE_BYTES] for at in range(0, len(got.body), _PIECE_BYTES)]
    if chance.random() < 0.5:
        head = request("POST", "/v1/files", None, [*headers, ("Content-Length", str(len(got.body)))])
        return Wish([head, *pieces], got)
    head = request("POST", "/v1/files", None, [*headers, ("Transfer-Encoding", "chunked")])
    return Wish([head, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"], got)


async def ask(client: Client, wish: Wish, chance: random.Random) -> None:
    """Send one request."""
    for piece in wish.pieces:
        await client.send(piece)
        await asyncio.sleep(chance.choice([0, 0, 0.002]) if len(wish.pieces) > 1 else 0)
    wish.got.began = True


def go(client: Client, how: str) -> None:
    """Leave, if the connection has not gone first."""
    with suppress(OSError):
        leave(client, how)
    if how != "half-close":
        client.writer.transport.abort()


async def hear(client: Client, got: Got, pause_s: float = 0.0) -> None:
    """Read one answer as far as it comes. For ``pause_s`` nothing is read between its head and its body.

    Raises AnswerOverError where no other can follow on this connection."""
    try:
        await _hear(client, got, pause_s)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        if isinstance(error, asyncio.IncompleteReadError) and got.status:
            got.answer += error.partial
        raise AnswerOverError from None


async def _hear(client: Client, got: Got, pause_s: float) -> None:
    reply = await client.head()
    while reply.status < 200:
        reply = await client.head()
    got.stream_id = reply.header("X-Stream-Id") or ""
    got.format = reply.header("X-Stream-Format") or ""
    got.status = reply.status
    if pause_s:
        await asyncio.sleep(pause_s)
    reader = client.reader
    if (reply.header("Transfer-Encoding") or "") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            got.answer += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    elif (length := reply.header("Content-Length")) is not None:
        got.answer += await reader.readexactly(int(length))
    else:
        got.is_until_close = True
        while piece := await reader.read(65536):
            got.answer += piece
    got.is_whole = True
    if got.is_until_close or (reply.header("Connection") or "").lower() == "close":
        raise AnswerOverError


class Visitor:
    """One client connection and its plan, made of ``number`` and ``seed``."""

    def __init__(self, number: int, seed: int, address: Address, ledger: Ledger) -> None:
        self._chance = random.Random(f"{seed}/client/{number}")
        self._address = address
        self._ledger = ledger
        self._numbers = iter(range(number * 10, number * 10 + 10))
        self.manner: Manner = self._chance.choices(list(MANNERS), weights=list(MANNERS.values()))[0]

    async def visit(self) -> None:
        """Come, ask, and go."""
        chance = self._chance
        await asyncio.sleep(chance.random() / 20)
        async with asyncio.timeout(VISIT_TIMEOUT_S):
            client = await self._connect()
            try:
                with suppress(AnswerOverError):
                    await getattr(self, f"_{self.manner}")(client)
            finally:
                go(client, chance.choice(["fin", "reset"]))

    async def _connect(self) -> Client:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if self.manner == "pausing":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        await asyncio.get_running_loop().sock_connect(sock, (self._address.host, self._address.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=SMALL_BUFFER_BYTES * 4)
        return Client(reader, writer)

    def _wishes(self, count: int, **fixed: Any) -> Iterator[Wish]:
        for _ in range(count):
            wish = make_wish(next(self._numbers), self._chance, **fixed)
            self._ledger.got.append(wish.got)
            yield wish

    async def _exchange(self, client: Client, wish: Wish, pause_s: float = 0.0) -> None:
        with suppress(ConnectionError):  # whoever breaks off an upload may have answered it
            await ask(client, wish, self._chance)
        await hear(client, wish.got, pause_s)

    async def _single(self, client: Client) -> None:
        for wish in self._wishes(1):
            await self._exchange(client, wish)

    async def _row(self, client: Client) -> None:
        for wish in self._wishes(self._chance.randrange(2, 6)):
            await self._exchange(client, wish)
            await asyncio.sleep(self._chance.choice([0, 0, 0.01]))

    async def _pipeline(self, client: Client) -> None:
        kinds = [self._chance.choice(["plain", "plain", "stream"]) for _ in range(self._chance.randrange(2, 6))]
        wishes = [wish for kind in kinds for wish in self._wishes(1, kind=kind, version="1.1")]
        await client.send(b"".join(piece for wish in wishes for piece in wish.pieces))
        for wish in wishes:
            wish.got.began = True
            await hear(client, wish.got)

    async def _leaving(self, client: Client) -> None:
        (wish,) = self._wishes(1)
        how = self._chance.choice(DEPARTURES)
        try:
            async with asyncio.timeout(self._chance.choice([0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.4])):
                await self._exchange(client, wish)
        except TimeoutError:
            wish.got.left = how
            go(client, how)
            if how == "half-close":
                with suppress(ConnectionError):
                    await client.rest()

    async def _pausing(self, client: Client) -> None:
        (wish,) = self._wishes(1)
        await self._exchange(client, wish, self._chance.choice([0.05, 0.3, 0.6, 2.5]))
