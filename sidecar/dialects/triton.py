"""Triton's generate extension and KServe's, ``/v2/models/…/generate_stream``.

Owns the output tensors that language models are served with. Must not know a backend: whether ``text_output`` is a
piece or all of the text so far is a setting of the model, which nothing in the stream tells, so each has its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Final

import msgspec

from sidecar.dialects.done_mark import DoneMarked
from sidecar.dialects.growing_text import GrowingText
from sidecar.dialects.lenient_json import as_dict, as_int, as_text
from sidecar.dialects.numbered import Numbered, within_bounds
from sidecar.dialects.payloads import named_extension, object_of
from sidecar.dialects.upstream_errors import told_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, FinishReason, Frame, Token, Usage

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "abort": "error",
    "error": "error",
}
"""vLLM's words and KServe's; any other is a stop."""

_NOT_YET: Final = frozenset({"", "None", "null"})
"""How a tensor of finish reasons says that there is none yet."""


class Triton(DoneMarked):
    """One stream whose ``text_output`` is the next piece of text.

    Triton has no end mark: a whole HTTP body is a whole stream. That holds only while nothing in the stream promised
    one. Where KServe's ``done`` was false, ``done: true`` has to come; where a finish reason was none yet, there has to
    be one; a body without a single object, or one that ends within an object, was cut.
    """

    name: ClassVar[str] = "triton"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = (
        "/v2/models/*/generate_stream",
        "/v2/models/*/versions/*/generate_stream",
    )
    streams_by_default: ClassVar[bool] = True

    __slots__ = ("_finishes", "_has_begun", "_input_tokens", "_output_tokens", "_promises_done")

    def __init__(self) -> None:
        super().__init__()
        self._has_begun = False
        self._promises_done = False
        self._finishes: Numbered[int, str] = Numbered()
        self._input_tokens: int | None = None
        self._output_tokens = 0

    @property
    def has_terminator(self) -> bool:  # type: ignore[override]  # known only once a frame has told
        """``done`` has been spoken of."""
        return self._promises_done

    @property
    def completes_on_clean_end(self) -> bool:  # type: ignore[override]  # known only once a frame has told
        """There has been an object, and nothing promised a mark that would come at the end."""
        return self._has_begun and not self._promises_done and not self._finishes

    @property
    def is_finished(self) -> bool:
        """A finish reason has come for every choice, where the server was asked for them."""
        return bool(self._finishes) and all(self._finishes.values())

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """Output of a named model."""
        fields = object_of(frame)
        return "text_output" in fields and "model_name" in fields

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """An object with nothing but ``error``, as Triton says it once the status has been sent."""
        return b"data: " + msgspec.json.encode({"error": failure.message}) + b"\n\n"

    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        model = as_text(fields.get("model_name"))
        return as_text(fields.get("id")), model, bool(model)

    def _object(self, fields: dict[str, Any], name: str) -> Iterator[Event]:
        if name == "error" or fields.get("error"):
            yield told_error(fields)
            return
        self._has_begun = True
        texts = _elements(fields.get("text_output"))
        yield from within_bounds(self._sequences(fields, texts), name, fields)
        yield from self._usage(fields)
        if not texts and "done" not in fields:
            yield named_extension(name, fields)
        if isinstance(fields.get("done"), bool):
            self._promises_done = True
            self.terminated = fields["done"]

    def _sequences(self, fields: dict[str, Any], texts: list[Any]) -> Iterator[Event]:
        details = as_dict(fields.get("details"))
        first = as_int(fields.get("sequence_index")) or 0
        logprobs = _elements(fields.get("logprobs") or details.get("token"))
        for at, text in enumerate(texts):
            if isinstance(text, str) and text:
                yield from self._text(first + at, text, _told(logprobs, at))
        for at, reason in enumerate(_elements(fields.get("finish_reason", details.get("finish_reason")))):
            yield from self._finish(first + at, as_text(reason))

    def _text(self, index: int, text: str, logprobs: Any) -> Iterator[Event]:
        yield Token(index, text, logprobs)

    def _finish(self, index: int, native: str) -> Iterator[Event]:
        if native in _NOT_YET:
            self._finishes[index] = self._finishes.get(index, "")
        elif self._finishes.get(index) != native:
            self._finishes[index] = native
            yield Finish(index, FINISH_REASONS.get(native, "stop"), native)

    def _usage(self, fields: dict[str, Any]) -> Iterator[Event]:
        """vLLM's counts, where they were asked for: output tokens are those of each response alone."""
        prompt = as_int(fields.get("num_input_tokens"))
        news = [count for count in map(as_int, _elements(fields.get("num_output_tokens"))) if count is not None]
        if prompt is None and not news:
            return
        self._input_tokens = prompt if prompt is not None else self._input_tokens
        self._output_tokens += sum(news)
        native = {"num_input_tokens": self._input_tokens, "num_output_tokens": self._output_tokens}
        total = None if self._input_tokens is None else self._input_tokens + self._output_tokens
        yield Usage(self._input_tokens, self._output_tokens, total, native=native)


class TritonAccumulated(Triton):
    """The same, where ``text_output`` is all of the text so far. No path says so: it has to be configured."""

    name: ClassVar[str] = "triton-accumulated"
    paths: ClassVar[tuple[str, ...]] = ()

    __slots__ = ("_texts",)

    def __init__(self) -> None:
        super().__init__()
        self._texts: Numbered[int, GrowingText] = Numbered()

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """Never: its frames look like the other's."""
        return False

    def _text(self, index: int, text: str, logprobs: Any) -> Iterator[Event]:
        told = self._texts.get(index)
        if told is None:
            told = self._texts[index] = GrowingText()
        news, does_extend = told.news(text)
        if not does_extend:
            yield Extension("text_output", {"index": index, "text_output": text})
        if news:
            yield Token(index, news, logprobs)


def _elements(value: Any) -> list[Any]:
    """The elements of a tensor, which is written as a bare value where it has only one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _told(logprobs: list[Any], at: int) -> Any:
    """What a response tells of its ``at``-th text, None where it says "null"."""
    told = logprobs[at] if at < len(logprobs) else None
    return None if isinstance(told, str) and told in _NOT_YET else told
