"""What the simulated upstream may be told to do: how much, how fast, and what to get wrong.

Owns the knobs, their names and the three places they are set: command line, `X-Simulate-*` headers, and the
`?simulate=name:value,…` query. Must not know dialects or sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any

_HEADER_PREFIX = "x-simulate-"
_QUERY_KEY = "simulate"


def _amount(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{text} is not zero or more")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(f"{text} is not zero or more")
    return value


def _status(text: str) -> int:
    value = int(text)
    if value != 200 and not 400 <= value <= 599:
        raise ValueError(f"{text} is neither 200 nor an error status")
    return value


def _switch(text: str) -> bool:
    states = {"": True, "1": True, "true": True, "on": True, "0": False, "false": False, "off": False}
    if text.lower() not in states:
        raise ValueError(f"{text} is neither on nor off")
    return states[text.lower()]


def _knob(default: Any, parse: Callable[[str], Any], says: str) -> Any:
    return field(default=default, metadata={"parse": parse, "says": says})


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How one request is answered. None and 0 mean "not at all"; counted positions begin at 0."""

    tokens: int = _knob(20, _count, "content frames in an answer")
    interval_ms: float = _knob(0.0, _amount, "pause between content frames")
    first_token_delay_ms: float = _knob(0.0, _amount, "pause between the headers and the first content frame")
    slow_headers_ms: float = _knob(0.0, _amount, "pause before the headers")
    cut_after_bytes: int | None = _knob(None, _count, "end the connection (FIN) after this much of the body")
    reset_after_bytes: int | None = _knob(None, _count, "reset the connection (RST) after this much of the body")
    stall_after_tokens: int | None = _knob(None, _count, "fall silent for good after this many content frames")
    malformed_frame_at: int | None = _knob(None, _count, "put a frame of broken JSON before this content frame")
    error_event_at: int | None = _knob(
        None, _count, "send the dialect's error in place of this content frame, then end"
    )
    status: int = _knob(200, _status, "answer with this HTTP status and the dialect's error body")
    garbage: bool = _knob(False, _switch, "answer with bytes that are not HTTP")
    html: bool = _knob(False, _switch, "answer 200 with an HTML page")
    no_done: bool = _knob(False, _switch, "leave the dialect's terminator out")
    gzip: bool = _knob(False, _switch, "compress the stream, whatever the request accepts")
    close_delimited: bool = _knob(False, _switch, "let nothing but the end of the connection end the body")
    huge_frame_bytes: int = _knob(0, _count, "make the first content frame's text this long")
    repeat_mib: int = _knob(0, _count, "stream content frames as fast as they go until they are this many MiB")


def knobs() -> Iterable[tuple[str, Callable[[str], Any], str]]:
    """Name, parser and description of every knob, in order."""
    for knob in _table().values():
        yield knob.name, knob.metadata["parse"], knob.metadata["says"]


def adjusted(defaults: Behaviour, headers: Mapping[str, str], query: Mapping[str, str]) -> Behaviour:
    """``defaults`` as one request changes them; the query outranks the headers.

    ``headers`` has lower-case names. Raises ValueError, naming the knob, for an unknown one or a value it cannot take.
    """
    told = {
        name.removeprefix(_HEADER_PREFIX).replace("-", "_"): value
        for name, value in headers.items()
        if name.startswith(_HEADER_PREFIX)
    }
    for item in filter(None, query.get(_QUERY_KEY, "").split(",")):
        name, _, value = item.partition(":")
        told[name.strip().replace("-", "_")] = value
    return (
        replace(defaults, **{name: _parsed(name, value.strip()) for name, value in told.items()}) if told else defaults
    )


def _parsed(name: str, value: str) -> Any:
    knob = _table().get(name)
    if knob is None:
        raise ValueError(f"unknown knob {name!r}; known are {', '.join(_table())}")
    try:
        return knob.metadata["parse"](value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _table() -> dict[str, Field[Any]]:
    return {knob.name: knob for knob in fields(Behaviour)}
