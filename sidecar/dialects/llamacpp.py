"""llama.cpp's own completion streams, ``/completion`` and ``/infill``.

Owns their objects, of today and of older servers. Must not know the APIs of others that the same server speaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

import msgspec

from sidecar.dialects.choice_usage import ChoiceUsage
from sidecar.dialects.done_mark import DoneMarked
from sidecar.dialects.lenient_json import as_dict, as_int, as_text
from sidecar.dialects.numbered import Numbered
from sidecar.dialects.payloads import named_extension, object_of
from sidecar.dialects.upstream_errors import told_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, FinishReason, Frame, Token, Usage

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "eos": "stop",
    "word": "stop",
    "limit": "length",
    "none": "error",
    "stopped_eos": "stop",
    "stopped_word": "stop",
    "stopped_limit": "length",
}
"""llama.cpp's stop types, and the flags that older servers had in their place; any other word is a stop."""

_FLAGS: Final = ("stopped_eos", "stopped_word", "stopped_limit")
_COUNTS: Final = ("tokens_evaluated", "tokens_predicted", "tokens_cached", "timings")


class LlamaCpp(DoneMarked):
    """One stream. Its choices are the prompts, or the samples of one prompt, and each ends with an object of its own.

    Nothing says how many there are, so the end of the body ends the stream.
    """

    name: ClassVar[str] = "llamacpp"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = ("/completion", "/infill")
    has_terminator: ClassVar[bool] = False

    __slots__ = ("_finished", "_usage")

    def __init__(self) -> None:
        super().__init__()
        self._finished: Numbered[int, bool] = Numbered()
        self._usage = ChoiceUsage()

    @property
    def is_finished(self) -> bool:
        """Every choice that began has stopped."""
        return bool(self._finished) and all(self._finished.values())

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """A piece of content with the server's own word on whether it is the last."""
        fields = object_of(frame)
        return (
            isinstance(fields.get("content"), str)
            and isinstance(fields.get("stop"), bool)
            and not fields.keys().isdisjoint(("id_slot", "slot_id", "tokens_predicted"))
        )

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The error object that the server's own page shows."""
        error = {"code": failure.http_status, "message": failure.message, "type": "server_error"}
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"

    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        return "", as_text(fields.get("model")), True

    def _object(self, fields: dict[str, Any], name: str) -> Iterator[Event]:
        if name == "error" or fields.get("error"):
            yield told_error(fields)
        elif "content" in fields or "stop" in fields:
            yield from self._piece(fields)
        else:
            yield named_extension(name, fields)

    def _piece(self, fields: dict[str, Any]) -> Iterator[Event]:
        index = as_int(fields.get("index")) or 0
        self._finished[index] = has_finished = self._finished.get(index, False)
        if fields.get("prompt_progress"):
            yield Extension("prompt_progress", fields["prompt_progress"])
        text = as_text(fields.get("content"))
        if text:
            yield Token(index, text, fields.get("completion_probabilities") or None)
        if fields.get("stop") is True and not has_finished:
            self._finished[index] = True
            native = as_text(fields.get("stop_type")) or next((flag for flag in _FLAGS if fields.get(flag) is True), "")
            if native:
                yield Finish(index, FINISH_REASONS.get(native, "stop"), native)
        usage = _usage(fields)
        if usage is not None:
            yield self._usage.add(index, usage)


def _usage(fields: dict[str, Any]) -> Usage | None:
    """The counts of one choice so far. The prompt's include what the cache saved evaluating."""
    prompt, completion = as_int(fields.get("tokens_evaluated")), as_int(fields.get("tokens_predicted"))
    if prompt is None and completion is None:
        return None
    total = None if prompt is None or completion is None else prompt + completion
    cached = as_int(as_dict(fields.get("timings")).get("cache_n"))
    return Usage(prompt, completion, total, cached, native={key: fields[key] for key in _COUNTS if key in fields})
