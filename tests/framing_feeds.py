"""Ways to feed the same bytes to a framing, shared by the tests of all of them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from sidecar.events import Frame
from sidecar.ports import Framing

NO_LIMIT = 1 << 30


def read_all(framing: Framing, pieces: Iterable[bytes]) -> list[Frame]:
    """Every frame of a body that came in ``pieces`` and then ended."""
    frames: list[Frame] = []
    for piece in pieces:
        frames.extend(framing.feed(piece))
    frames.extend(framing.flush())
    return frames


def observed(frames: Iterable[Frame]) -> list[tuple[bytes | None, bytes]]:
    """Names and data of the frames that have any: what must not depend on how the bytes were split."""
    return [(frame.name, frame.data) for frame in frames if frame.data is not None]


def joined(frames: Iterable[Frame]) -> bytes:
    return b"".join([frame.raw for frame in frames])


def splits(body: bytes, *, seed: int = 7) -> Iterator[list[bytes]]:
    """``body`` whole, byte by byte, in halves, and at random."""
    yield [body] if body else []
    yield [body[at : at + 1] for at in range(len(body))]
    yield [piece for piece in (body[: len(body) // 2], body[len(body) // 2 :]) if piece]
    random_source = random.Random(seed)
    for _ in range(5):
        yield random_split(body, random_source)


def random_split(body: bytes, random_source: random.Random) -> list[bytes]:
    pieces = []
    at = 0
    while at < len(body):
        size = random_source.choice((1, 2, 3, 7, 30, 200))
        pieces.append(body[at : at + size])
        at += size
    return pieces
