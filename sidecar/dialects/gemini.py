"""Gemini's ``streamGenerateContent``, at the developer API and at Vertex, as server-sent events or as one JSON array.

Owns responses: their candidates, counts, feedback on the prompt, errors. Must not know what a candidate may hold
(`gemini_candidate`) or how counts are read (`token_usage`).

Nothing marks the end of such a stream but the finish reason of every candidate. Models of the first generation put one
on every chunk: then only the end of the body can be believed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

import msgspec

from sidecar.dialects.gemini_candidate import Candidate
from sidecar.dialects.json_stream import JsonStream
from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import Room, within_bounds
from sidecar.dialects.payloads import named_extension, object_of
from sidecar.dialects.token_usage import gemini_usage
from sidecar.dialects.upstream_errors import upstream_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Frame

_NAME_KEYS: Final = frozenset({"responseId", "modelVersion", "createTime"})
_TOLD_KEYS: Final = frozenset({"candidates", "usageMetadata", "promptFeedback", "error", *_NAME_KEYS})
_REPEATED_KEYS: Final = frozenset({"promptFeedback", "modelStatus"})
"""Keys that may come again with every chunk: each is told where its value has changed."""

_STATUSES: Final = {500: "INTERNAL", 504: "DEADLINE_EXCEEDED"}
"""Google's words for the HTTP statuses of our own failures in mid-stream; the rest of them are outages."""


class Gemini(JsonStream):
    """One ``streamGenerateContent`` stream."""

    name: ClassVar[str] = "gemini"
    framings: ClassVar[tuple[str, ...]] = ("sse", "json-array")
    paths: ClassVar[tuple[str, ...]] = (":streamGenerateContent",)
    streams_by_default: ClassVar[bool] = True
    has_terminator: ClassVar[bool] = False

    __slots__ = ("_candidates", "_has_spoken_on", "_room", "_told")

    def __init__(self) -> None:
        super().__init__()
        self._room = Room()
        self._candidates: dict[int, Candidate] = {}
        self._told: dict[str, Any] = {}
        # Some candidate went on behind its finish reason. Asked for with every frame, so not looked for each time.
        self._has_spoken_on = False

    @property
    def is_finished(self) -> bool:
        """Every candidate that began has its finish reason, and none went on behind it; or the prompt was blocked."""
        candidates = self._candidates.values()
        return bool(candidates) and not self._has_spoken_on and all(each.is_finished for each in candidates)

    @property
    def completes_on_clean_end(self) -> bool:  # type: ignore[override]  # of all the dialects only this one changes it
        """Only where finish reasons say nothing of the end."""
        return self._has_spoken_on

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """A response has candidates with content or a finish reason."""
        candidates = as_list(object_of(frame).get("candidates"))
        return bool(candidates) and not {"content", "finishReason"}.isdisjoint(as_dict(candidates[0]))

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The error response the official package raises on; in an array its last element."""
        status = failure.http_status
        error = {"code": status, "message": failure.message, "status": _STATUSES.get(status, "UNAVAILABLE")}
        payload = msgspec.json.encode({"error": error})
        return payload + b"]" if framing == "json-array" else b"data: " + payload + b"\r\n\r\n"

    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        response_id, model = as_text(fields.get("responseId")), as_text(fields.get("modelVersion"))
        return response_id, model, bool(response_id or model)

    def _object(self, fields: dict[str, Any], name: str) -> Iterator[Event]:
        if name == "error" and not fields.get("error"):
            yield upstream_error(fields)
            return
        if fields and _TOLD_KEYS.isdisjoint(fields):
            yield named_extension(name, fields)
            return
        for element in as_list(fields.get("candidates")):
            yield from within_bounds(self._element(as_dict(element)), "candidate", element)
        yield from self._prompt_feedback(as_dict(fields.get("promptFeedback")))
        for key, value in fields.items():
            if key not in _TOLD_KEYS and self._is_news(key, value):
                yield Extension(key, value)
        usage = as_dict(fields.get("usageMetadata"))
        if usage:
            yield gemini_usage(usage)
        if fields.get("error"):
            yield upstream_error(fields["error"])

    def _element(self, fields: dict[str, Any]) -> Iterator[Event]:
        candidate = self._candidate(as_int(fields.get("index")) or 0)
        yield from candidate.decode(fields)
        self._has_spoken_on = self._has_spoken_on or candidate.spoke_on

    def _candidate(self, index: int) -> Candidate:
        candidate = self._candidates.get(index)
        if candidate is None:
            self._room.take()
            candidate = self._candidates[index] = Candidate(index, self._room)
        return candidate

    def _prompt_feedback(self, feedback: dict[str, Any]) -> Iterator[Event]:
        """Ratings of the prompt; where it was blocked there will be no candidate."""
        if self._is_news("promptFeedback", feedback):
            yield Extension("promptFeedback", feedback)
        if feedback.get("blockReason") and not self._candidates:
            yield from self._candidate(0).block(feedback["blockReason"])

    def _is_news(self, key: str, value: Any) -> bool:
        if not value or value == self._told.get(key):
            return False
        if key in _REPEATED_KEYS:
            self._told[key] = value
        return True
