"""The page of dialects: what is recognised of each, found out by letting it read.

Owns how the dialects are published. Must not know what any of them means: what a dialect tells is what it told of the
streams it was given, and how its streams end is how those ended.
``python -m sidecar.dialects.table > docs/dialects.md`` publishes it, from the handmade streams of the tests.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure
from sidecar.events import (
    Annotation,
    Event,
    Extension,
    Finish,
    Frame,
    Media,
    Reasoning,
    Refusal,
    Token,
    ToolCall,
    UpstreamError,
    Usage,
)
from sidecar.framing import make_framing
from sidecar.ports import DialectKind

_FRAMING_OF_SUFFIX: Final = {
    ".sse": "sse",
    ".ndjson": "ndjson",
    ".txt": "raw",
    ".json": "json-array",
    ".bin": "aws-event-stream",
}
_MAX_FRAME_BYTES: Final = 1 << 24

_COLUMNS: Final[dict[str, type[Event]]] = {
    "text": Token,
    "reasoning": Reasoning,
    "tool calls": ToolCall,
    "refusals": Refusal,
    "annotations": Annotation,
    "media": Media,
    "usage": Usage,
    "finish": Finish,
    "errors": UpstreamError,
    "extensions": Extension,
}

_INTRODUCTION: Final = """\
# Dialects

What the sidecar recognises of each upstream language. This page is made by the code: `python -m
sidecar.dialects.table > docs/dialects.md` lets every dialect read the handmade streams in `tests/fixtures/` and writes
down what it told, so that nothing stands here that no stream shows. A test compares.

Any other stream passes unchanged in `native` and as `extension` events in `typed`. In `native` every stream is the
upstream's own bytes, whatever is recognised of it.
"""
_WHERE: Final = """
## Where each is spoken

`auto` knows a dialect by the end of the request's path (`*`: any part of one segment, `**`: any number of segments) and
the answer's content type; at a path nobody knows, or that several servers have (`/generate`, `/generate_stream`,
`/completion`, `/infill`, a bare `/completions`), by the first of its frames that tells. A path marked with † streams
unless the request says otherwise. A name in the first column is a value of an upstream's
[`dialect`](configuration.md#upstreamsname).

"""
_TOLD: Final = """
## What is told

`logprobs` is marked where text comes with the provider's own. Fields of these events:
[typed-events.md](typed-events.md#events).

"""
_ENDS: Final = """
## How a stream ends

A stream is `completed` by any of these: the **end mark**, a frame of the dialect's own; a **finish mark** for every
choice that began (where an end mark should have followed, with the warning `terminator_missing`); the end of a **whole
body**, which the HTTP framing has to prove. The last column is what a native client is told inside a stream that
failed.

"""


class Reading:
    """What one dialect told of its streams."""

    def __init__(self) -> None:
        self.kinds: set[type[Event]] = set()
        self.has_logprobs = False
        self.is_recognised = False
        self.ends: set[str] = set()

    def read(self, kind: DialectKind, framing_name: str, body: bytes) -> None:
        """Take note of one stream."""
        framing, dialect = make_framing(framing_name, _MAX_FRAME_BYTES, strict=True), kind()
        frames = [frame for frame in (*framing.feed(body), *framing.flush()) if frame.data is not None]
        self.is_recognised = self.is_recognised or any(map(kind.recognises, _first(frames)))
        events = [event for frame in frames for event in dialect.decode(frame)]
        events += dialect.finish()
        self.kinds.update(map(type, events))
        self.has_logprobs = self.has_logprobs or any(getattr(event, "logprobs", None) for event in events)
        if any(isinstance(event, UpstreamError) for event in events):
            return
        if dialect.terminated:
            self.ends.add("end mark")
        elif dialect.is_finished:
            self.ends.add("finish marks")
        elif dialect.completes_on_clean_end:
            self.ends.add("whole body")


def _first(frames: list[Frame]) -> list[Frame]:
    return [frame for frame in frames if frame.data][:1]


def read_all(streams: Iterable[tuple[str, str, bytes]]) -> dict[str, Reading]:
    """By dialect, what it told. ``streams``: the dialect, framing and body of each."""
    readings = {name: Reading() for name in DIALECTS}
    for name, framing, body in streams:
        readings[name].read(DIALECTS[name], framing, body)
    return readings


def render(streams: Iterable[tuple[str, str, bytes]]) -> str:
    """The page as it is published."""
    readings = read_all(streams)
    return "".join((_INTRODUCTION, _WHERE, _where(readings), _TOLD, _told(readings), _ENDS, _ends(readings)))


def _where(readings: dict[str, Reading]) -> str:
    rows = []
    for name, kind in DIALECTS.items():
        paths = [f"`{path}`" + (" †" if kind.streams_by_default else "") for path in kind.paths]
        frame = inspect.getdoc(kind.recognises) if readings[name].is_recognised else None
        rows.append([f"`{name}`", ", ".join(kind.framings), ", ".join(paths), (frame or "").replace("\n", " ")])
    return _table(["dialect", "framing", "paths", "first frame"], rows)


def _told(readings: dict[str, Reading]) -> str:
    rows = []
    for name, reading in readings.items():
        cells = ["yes" if kind in reading.kinds else "" for kind in _COLUMNS.values()]
        if reading.has_logprobs:
            cells[0] += ", logprobs"
        rows.append([f"`{name}`", *cells])
    return _table(["dialect", *_COLUMNS], rows)


def _ends(readings: dict[str, Reading]) -> str:
    failure = Failure("upstream_reset", "…")
    rows = []
    for name, kind in DIALECTS.items():
        error = _shown(kind().error_frame(failure, kind.framings[0]))
        rows.append([f"`{name}`", ", ".join(sorted(readings[name].ends)), error])
    return _table(["dialect", "completed by", "error frame"], rows)


def _shown(frame: bytes) -> str:
    """Bytes as they may stand in a cell of the page."""
    text = frame.decode("utf-8", "backslashreplace").rstrip("\r\n").replace("\n", " ⏎ ").replace("|", "\\|")
    return "`" + "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in text) + "`" if text else ""


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell or "–" for cell in row] for row in rows)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def streams_in(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """The streams in ``folder``: each dialect's lie in the folder of its name, their framing told by their suffix."""
    for name, kind in DIALECTS.items():
        for path in sorted((folder / name).glob("*")):
            framing = _FRAMING_OF_SUFFIX.get(path.suffix, "")
            yield name, framing if framing in kind.framings else kind.framings[0], path.read_bytes()


if __name__ == "__main__":
    sys.stdout.write(render(streams_in(Path(*sys.argv[1:]) if sys.argv[1:] else Path("tests/fixtures"))))
