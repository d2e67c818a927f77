"""Streams to replay, handmade and recorded, and the upstream that replays them."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from sidecar.settings import Address
from tests.app_support import CHAT, MESSAGES, OLLAMA_CHAT, answering, stream
from tests.dialect_reading import body_of, framing_in
from tests.official_bedrock import MODEL
from tests.test_dialects_recordings import HANDMADE, RECORDED, SYNTHETIC_OPENAI

PATHS = {
    "openai-chat": CHAT,
    "openai-completions": "/v1/completions",
    "openai-responses": "/v1/responses",
    "anthropic": MESSAGES,
    "ollama-chat": OLLAMA_CHAT,
    "ollama-generate": "/api/generate",
    "gemini": "/v1beta/models/m:streamGenerateContent?alt=sse",
    "gemini-interactions": "/v1beta/interactions",
    "bedrock-converse": f"/model/{quote(MODEL, safe='')}/converse-stream",
    "bedrock-invoke": f"/model/{quote(MODEL, safe='')}/invoke-with-response-stream",
    "cohere": "/v2/chat",
    "triton": "/v2/models/m/generate_stream",
    "tgi": "/generate_stream",
    "llamacpp": "/completion",
    "sglang": "/generate",
    "replicate": "/v1/streams/abc",
}
CONTENT_TYPES = {
    "sse": "text/event-stream",
    "ndjson": "application/x-ndjson",
    "json-array": "application/json; charset=UTF-8",
    "aws-event-stream": "application/vnd.amazon.eventstream",
}


@dataclass(frozen=True)
class Recording:
    """One stream's body and whose it is."""

    name: str
    dialect: str
    body: bytes

    @property
    def path(self) -> str:
        return PATHS[self.dialect]

    @property
    def content_type(self) -> str:
        return CONTENT_TYPES[framing_in(self.dialect, self.body)]

    def answer(self, cuts: Sequence[int] = ()) -> list[bytes]:
        """The HTTP answer, its body in chunks between ``cuts``."""
        marks = [0, *sorted(cuts), len(self.body)]
        pieces = [self.body[start:end] for start, end in itertools.pairwise(marks)]
        return stream([piece for piece in pieces if piece], self.content_type)

    def random_cuts(self, seed: int) -> list[int]:
        chance = random.Random(seed)
        return [chance.randrange(len(self.body)) for _ in range(20)]


def handmade() -> list[Recording]:
    """The streams that come with the project, of the dialects that a path tells."""
    return [_recording(dialect, path) for dialect, path in HANDMADE if dialect in PATHS]


def recorded(streams_dir: Path) -> list[Recording]:
    """Every stream of these dialects in the folder of recordings."""
    found = [
        _recording(dialect, path)
        for dialect, globs in RECORDED.items()
        for glob in globs
        for path in sorted(streams_dir.glob(glob))
    ]
    found += [_recording("openai-chat", streams_dir / "synthetic" / f"{stem}.sse") for stem in SYNTHETIC_OPENAI]
    assert len(found) > 50
    return found


def _recording(dialect: str, path: Path) -> Recording:
    return Recording(path.name, dialect, body_of(dialect, path))


class Replay:
    """An upstream that answers every request with the stream it was last told."""

    def __init__(self) -> None:
        self.answer: list[bytes] = []
        self.address = Address()


@asynccontextmanager
async def replaying() -> AsyncIterator[Replay]:
    replay = Replay()
    async with answering(lambda _received: replay.answer) as upstream:
        replay.address = upstream.address
        yield replay
