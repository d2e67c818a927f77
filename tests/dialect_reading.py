"""How the dialect tests read a stream: by our dialects and framings, cut up in any way, into one comparable summary."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from sidecar.dialects import DIALECTS
from sidecar.errors import Failure
from sidecar.events import (
    Event,
    Finish,
    Frame,
    Reasoning,
    Refusal,
    Start,
    Token,
    ToolCall,
    UpstreamError,
    Usage,
)
from sidecar.framing import make_framing
from sidecar.ports import Dialect

MAX_FRAME_BYTES = 1 << 20
FIXTURES = Path(__file__).parent / "fixtures"

EndMarks = tuple[re.Pattern[bytes], re.Pattern[bytes]]
_NEVER = re.compile(rb"(?!)")
OPENAI_END_MARKS: EndMarks = (
    re.compile(rb'"(?:finish_reason|stop_reason)": ?"\w|"done": ?true'),
    re.compile(rb'\[DONE\]|"message_stop"|"done": ?true'),
)
_RESPONSE_END = re.compile(rb'"type": ?"response\.(?:completed|incomplete|failed)"')
END_MARKS: dict[str, EndMarks] = {
    "openai-responses": (_RESPONSE_END, _RESPONSE_END),
    "gemini": (re.compile(rb'"(?:finishReason|blockReason)": ?["\d]'), _NEVER),
    "gemini-interactions": (
        re.compile(rb'"status": ?"(?!in_progress|queued)\w'),
        re.compile(rb'\[DONE\]|"interaction\.completed"'),
    ),
    "cohere": (re.compile(rb'"type": ?"message-end"'), re.compile(rb"\[DONE\]")),
    "triton": (
        re.compile(rb'"finish_reason": ?\[?"(?!None")\w|"done": ?true'),
        re.compile(rb'"done": ?true'),
    ),
    "tgi": (re.compile(rb'"generated_text": ?"'), re.compile(rb'"generated_text": ?"')),
    "llamacpp": (re.compile(rb'"stop": ?true'), _NEVER),
    "sglang": (re.compile(rb'"finish_reason": ?\{'), re.compile(rb"\[DONE\]")),
    "replicate": (re.compile(rb"event: ?done"), re.compile(rb"event: ?done")),
}
"""By dialect, where its first finish mark and its terminator begin; `OPENAI_END_MARKS` serve all others."""
END_MARKS["triton-accumulated"] = END_MARKS["triton"]


@dataclass
class Summary:
    """What a user of a stream is left with, per choice."""

    text: dict[int, str] = field(default_factory=dict)
    reasoning: dict[int, str] = field(default_factory=dict)
    refusal: dict[int, str] = field(default_factory=dict)
    calls: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    finish: dict[int, str] = field(default_factory=dict)
    usage: Any = None
    error: str | None = None

    def add_text(self, into: dict[int, str], index: int, text: str | None) -> None:
        """Append ``text``; nothing is kept for a choice without any."""
        if text:
            into[index] = into.get(index, "") + text


def framing_in(name: str, body: bytes) -> str:
    """The framing that a body of dialect ``name`` is in: its commonest one, unless it is plain JSON."""
    framings = DIALECTS[name].framings
    is_json = "json-array" in framings and body.lstrip().startswith((b"[", b"{"))
    return "json-array" if is_json else framings[0]


def read(name: str, pieces: Iterable[bytes], framing_name: str = "") -> tuple[list[Event], Dialect]:
    """Every event of a body that came in ``pieces`` and ended, and the dialect that read it."""
    dialect = DIALECTS[name]()
    framing = make_framing(framing_name or DIALECTS[name].framings[0], MAX_FRAME_BYTES, strict=True)
    events: list[Event] = []
    for piece in pieces:
        events += decode_all(dialect, framing.feed(piece))
    events += decode_all(dialect, framing.flush())
    events += dialect.finish()
    return events, dialect


def handmade_streams() -> list[tuple[str, Path]]:
    """The dialect and file of every handmade stream of a known language; a dialect's lie in the folder of its name."""
    names = [name for name in DIALECTS if name != "raw" and not name.startswith("opaque-")]
    return [(name, path) for name in names for path in sorted((FIXTURES / name).glob("*"))]


def body_of(name: str, path: Path) -> bytes:
    """A stream's body, its SSE framing put back where the recording lacks it."""
    body = path.read_bytes()
    is_stripped = path.suffix == ".ndjson" and "sse" in DIALECTS[name].framings
    return FRAMED_AGAIN.get(name, as_sse)(body.splitlines()) if is_stripped else body


def error_frame(name: str, failure: Failure, framing: str = "") -> bytes:
    """How a dialect tells ``failure`` in the framing it is commonly spoken in."""
    return DIALECTS[name]().error_frame(failure, framing or DIALECTS[name].framings[0])


def decode_all(dialect: Dialect, frames: Iterable[Frame]) -> list[Event]:
    """The events of every frame that has data."""
    return [event for frame in frames if frame.data is not None for event in dialect.decode(frame)]


def decode_payloads(name: str, payloads: Sequence[Any]) -> list[Event]:
    """The events of JSON payloads (or bytes as they are), each in an unnamed frame, finish included."""
    dialect = DIALECTS[name]()
    datas = [payload if isinstance(payload, bytes) else msgspec.json.encode(payload) for payload in payloads]
    return [*decode_all(dialect, [Frame(data, data) for data in datas]), *dialect.finish()]


def summarise(events: Iterable[Event]) -> Summary:
    """The texts joined, the calls put together, the last finish and usage, the first error."""
    summary = Summary()
    for event in events:
        match event:
            case Token(index, text):
                summary.add_text(summary.text, index, text)
            case Reasoning(index, text):
                summary.add_text(summary.reasoning, index, text)
            case Refusal(index, text):
                summary.add_text(summary.refusal, index, text)
            case ToolCall(index, call, arguments, call_id, name):
                known = summary.calls.setdefault((index, call), ["", "", ""])
                known[0], known[1], known[2] = call_id or known[0], name or known[1], known[2] + arguments
            case Finish(index, _, native):
                summary.finish[index] = native
            case Usage():
                summary.usage = event.native
            case UpstreamError() if summary.error is None:
                summary.error = event.message
            case _:
                pass
    return summary


def only_start_first(events: Sequence[Event]) -> bool:
    """Whether `Start` came once, before all else."""
    return [isinstance(event, Start) for event in events] == [True] + [False] * (len(events) - 1)


def as_crlf_sse(payloads: Iterable[bytes]) -> bytes:
    """The same from a server that ends its lines with CRLF and marks no end."""
    return b"".join(b"data: " + line + b"\r\n\r\n" for line in payloads if line.strip())


def as_sse(payloads: Iterable[bytes]) -> bytes:
    """Payload lines as the SSE body they were recorded from."""
    return b"".join(b"data: " + line + b"\n\n" for line in payloads if line.strip()) + b"data: [DONE]\n\n"


def as_named_sse(payloads: Iterable[bytes]) -> bytes:
    """Payload lines as the SSE body they were recorded from, where each event is named by its ``type``."""
    lines = [line for line in payloads if line.strip()]
    names = [msgspec.json.decode(line)["type"].encode() for line in lines]
    return b"".join(b"event: " + name + b"\ndata: " + line + b"\n\n" for name, line in zip(names, lines, strict=True))


def as_named_sse_with_done(payloads: Iterable[bytes]) -> bytes:
    """The same, with OpenAI's end mark behind it."""
    return as_named_sse(payloads) + b"data: [DONE]\n\n"


FRAMED_AGAIN: dict[str, Callable[[Iterable[bytes]], bytes]] = {
    "openai-responses": as_named_sse,
    "gemini": as_crlf_sse,
    "gemini-interactions": as_crlf_sse,
    "cohere": as_named_sse_with_done,
}
"""By dialect, how payloads that were recorded one a line become the body they were; `as_sse` serves all others."""


def openai_chunk(delta: Any = None, finish: Any = None, *, index: Any = 0, **extra: Any) -> dict[str, Any]:
    """A chunk of one choice, or of none."""
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": finish}]
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **extra}
