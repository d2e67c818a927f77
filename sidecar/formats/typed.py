"""The typed format over server-sent events: one vocabulary, whatever the upstream speaks.

Owns the order of events (start first, done last), their numbers and their bytes. Must not know dialects, time, or
how a stream came to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import msgspec
from msgspec import UNSET

from sidecar.events import Reasoning, Start, Token
from sidecar.formats.payloads import StartData, done_data, error_data, payload_of, usage_data
from sidecar.formats.safe_json import encode_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.events import Event, Frame
    from sidecar.ports import Ended

_TOKEN: Final = b'%b%d\nevent: token\ndata: {"index":%d,"text":%b}\n\n'
_REASONING: Final = b'%b%d\nevent: reasoning\ndata: {"index":%d,"text":%b}\n\n'
_encode: Final = msgspec.json.Encoder().encode


class TypedFormat:
    """Events of one stream as ``id: <stream>-<number>``, ``event`` and one ``data`` line; numbers are gapless from 1.

    ``model`` is the one asked for, told where the upstream names none; ``created`` is in seconds since the epoch.
    """

    __slots__ = ("_created", "_has_started", "_head", "_model", "_route", "_sequence", "_stream_id", "_upstream")

    name: ClassVar[str] = "typed"
    content_type: str | None = "text/event-stream; charset=utf-8"
    heartbeat: bytes = b": keep-alive\n\n"
    passes_raw: ClassVar[bool] = False

    def __init__(self, stream_id: str, route: str, upstream: str, model: str, created: int) -> None:
        self._stream_id = stream_id
        self._route = route
        self._upstream = upstream
        self._model = model
        self._created = created
        self._head = b"id: %b-" % stream_id.encode()
        self._sequence = 0
        self._has_started = False

    def text_template(self, kind: type[Token | Reasoning], index: int) -> bytes:
        """All of such an event but its number and its text."""
        template = _TOKEN if kind is Token else _REASONING
        return template.replace(b"%b%d", self._head + b"%d", 1).replace(b'"index":%d', b'"index":%d' % index)

    def encode_text(self, template: bytes, literal: bytes) -> bytes:
        """One token or reasoning event, its text as the upstream wrote it."""
        self._sequence += 1
        return template % (self._sequence, literal)

    def encode_one(self, event: Event) -> bytes:
        """One typed event of a stream that has begun."""
        # Nearly every event is one of these two; a template filled in takes a quarter of the general way's time.
        kind = event.__class__
        if kind is Token and event.logprobs is None:  # type: ignore[union-attr]  # narrowed by class, for speed
            template = _TOKEN
        elif kind is Reasoning and event.signature is None:  # type: ignore[union-attr]  # as above
            template = _REASONING
        else:
            return self._write(event)
        self._sequence += 1
        try:
            return template % (self._head, self._sequence, event.index, _encode(event.text))  # type: ignore[union-attr]
        except UnicodeEncodeError:
            return template % (self._head, self._sequence, event.index, encode_json(event.text))  # type: ignore[union-attr]

    def encode(self, frame: Frame, events: Sequence[Event]) -> bytes:
        """The typed events of one frame, joined; b"" for nothing. Usage, finish marks and errors wait for `close`."""
        if self._has_started and len(events) == 1:
            return self.encode_one(events[0])
        return b"".join([self._write(event) for event in events])

    def close(self, ended: Ended) -> bytes:
        """Error and usage where there are any, then done; start before them where nothing was sent yet."""
        parts = [] if self._has_started else [self._start(Start())]
        if ended.failure is not None:
            parts.append(self._event("error", error_data(ended.failure)))
        if ended.usage is not None:
            parts.append(self._event("usage", usage_data(ended.usage)))
        parts.append(self._event("done", done_data(ended)))
        return b"".join(parts)

    def _write(self, event: Event) -> bytes:
        if type(event) is Start:
            return b"" if self._has_started else self._start(event)
        named = payload_of(event)
        if named is None:
            return b""
        start = b"" if self._has_started else self._start(Start())
        return start + self._event(*named)

    def _start(self, start: Start) -> bytes:
        self._has_started = True
        data = StartData(
            self._stream_id,
            self._route,
            self._upstream,
            start.model or self._model,
            self._created,
            start.response_id or UNSET,
        )
        return self._event("start", data)

    def _event(self, name: str, data: msgspec.Struct) -> bytes:
        self._sequence += 1
        return b"%b%d\nevent: %b\ndata: %b\n\n" % (self._head, self._sequence, name.encode(), encode_json(data))
