"""Hugging Face Text Generation Inference, ``/generate_stream``, and the servers that answer like it.

Owns that stream's objects, new and old. Must not know TGI's chat endpoint, which speaks OpenAI's dialect.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

import msgspec

from sidecar.dialects.done_mark import DoneMarked
from sidecar.dialects.lenient_json import as_dict, as_int, as_text
from sidecar.dialects.payloads import named_extension, object_of
from sidecar.dialects.upstream_errors import told_error
from sidecar.errors import Failure, Outcome
from sidecar.events import Event, Finish, FinishReason, Frame, Token, Usage

FINISH_REASONS: Final[dict[str, FinishReason]] = {"eos_token": "stop", "stop_sequence": "stop", "length": "length"}
"""TGI's finish reasons; any other word is a stop."""

_ERROR_TYPES: Final[dict[Outcome, str]] = {
    Outcome.REFUSED: "overloaded",
    Outcome.SHUT_DOWN: "overloaded",
    Outcome.UPSTREAM_BROKEN: "incomplete_generation",
}


class Tgi(DoneMarked):
    """One stream of tokens of one choice, number 0. The object that repeats the whole text is its end."""

    name: ClassVar[str] = "tgi"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = ("/generate_stream",)
    streams_by_default: ClassVar[bool] = True

    __slots__ = ()

    @property
    def is_finished(self) -> bool:
        """The last object has come: its ``generated_text`` is finish mark and terminator in one."""
        return self.terminated

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """A token with its logprob or beside the place of the whole text, or an error with a type of TGI's own."""
        fields = object_of(frame)
        token = as_dict(fields.get("token"))
        return ("text" in token and ("generated_text" in fields or "logprob" in token)) or (
            isinstance(fields.get("error"), str) and isinstance(fields.get("error_type"), str)
        )

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The object that ``huggingface_hub`` raises its own errors on."""
        fields = {"error": failure.message, "error_type": _ERROR_TYPES.get(failure.outcome, "generation")}
        return b"data: " + msgspec.json.encode(fields) + b"\n\n"

    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        return "", "", True

    def _object(self, fields: dict[str, Any], name: str) -> Iterator[Event]:
        token = as_dict(fields.get("token"))
        text = as_text(token.get("text"))
        if text and not token.get("special"):
            yield Token(0, text, _logprobs(token, fields.get("top_tokens")))
        if name == "error" or fields.get("error"):
            yield told_error(fields)
        elif isinstance(fields.get("generated_text"), str):
            # The whole text again; with return_full_text the prompt, too. Both have been told, or never were asked for.
            self.terminated = True
            yield from _end(as_dict(fields.get("details")))
        elif not token:
            yield named_extension(name, fields)


def _end(details: dict[str, Any]) -> Iterator[Event]:
    """Finish mark and counts, which are only there where the request asked for details."""
    native = as_text(details.get("finish_reason"))
    if native:
        yield Finish(0, FINISH_REASONS.get(native, "stop"), native)
    completion = as_int(details.get("generated_tokens"))
    prompt = as_int(details.get("input_length"))
    if completion is not None or prompt is not None:
        total = None if prompt is None or completion is None else prompt + completion
        yield Usage(prompt, completion, total, native=details)


def _logprobs(token: dict[str, Any], alternatives: Any) -> dict[str, Any] | None:
    """The token's own object, and the others it was chosen from."""
    if alternatives:
        return {**token, "top_tokens": alternatives}
    return token if token.get("logprob") is not None else None
