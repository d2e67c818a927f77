"""SGLang's own generation streams, ``/generate``.

Owns their objects and the numbering of a batch. Must not know the APIs of others that the same server speaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Final

import msgspec

from sidecar.dialects.choice_usage import ChoiceUsage
from sidecar.dialects.done_mark import DoneMarked
from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.numbered import Numbered, within_bounds
from sidecar.dialects.payloads import event_name, named_extension, read_object
from sidecar.dialects.sglang_text import ChoiceText
from sidecar.dialects.upstream_errors import told_error, upstream_error
from sidecar.errors import Failure
from sidecar.events import Event, Extension, Finish, FinishReason, Frame, Token, Usage

FINISH_REASONS: Final[dict[str, FinishReason]] = {"stop": "stop", "length": "length", "abort": "error"}
"""SGLang's finish types; any other word is a stop."""

_COUNTS: Final = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
_LOGPROBS: Final = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")


class _Choice:
    __slots__ = ("finish_native", "logprobs_told", "text")

    def __init__(self) -> None:
        self.text = ChoiceText()
        self.finish_native = ""
        self.logprobs_told = 0


class Sglang(DoneMarked):
    """One stream. Its choices are the requests of a batch, or the samples of one, told apart by ``index``."""

    name: ClassVar[str] = "sglang"
    framings: ClassVar[tuple[str, ...]] = ("sse",)
    paths: ClassVar[tuple[str, ...]] = ("/generate",)

    __slots__ = ("_choices", "_usage")

    def __init__(self) -> None:
        super().__init__()
        self._choices: Numbered[int, _Choice] = Numbered()
        self._usage = ChoiceUsage()

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one frame, which holds an object or a list of them; nothing more once ``[DONE]`` has come."""
        data = frame.data
        if self.terminated or not data or not data.startswith(b"[") or data.startswith(b"[DONE]"):
            return super().decode(frame)
        name = event_name(frame)
        read = read_object(data, name)
        if not isinstance(read, Extension) or not isinstance(read.data, list):
            return super().decode(frame)
        events: list[Event] = []
        response_id = ""
        for at, element in enumerate(read.data):
            fields = as_dict(element)
            response_id = response_id or self._name(fields)[0]
            told = self._object(fields, name, at) if fields else iter((named_extension(name, element),))
            events += within_bounds(told, name, element)
        return self._gate.admit(events, response_id=response_id, named=True)

    def finish(self) -> Sequence[Event]:
        """What was held back until a text that never came would have told its meaning."""
        tails = [(index, choice.text.release()) for index, choice in self._choices.items()]
        tokens = [Token(index, tail) for index, tail in tails if tail]
        return [*self._gate.release(), *tokens]

    @property
    def is_finished(self) -> bool:
        """Every choice that began has its finish reason."""
        return bool(self._choices) and all(choice.finish_native for choice in self._choices.values())

    @classmethod
    def recognises(cls, frame: Frame) -> bool:
        """Text or token ids with what SGLang tells beside them, or a list of such objects."""
        read = read_object(frame.data or b"")
        elements = as_list(read.data) if isinstance(read, Extension) else [read]
        fields = as_dict(elements[0]) if elements else {}
        return isinstance(fields.get("meta_info"), dict) and not fields.keys().isdisjoint(("text", "output_ids"))

    @classmethod
    def error_frame(cls, failure: Failure, framing: str) -> bytes:
        """The error object that the server itself sends."""
        error = {"message": failure.message, "type": failure.code, "code": failure.http_status}
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"

    def _name(self, fields: dict[str, Any]) -> tuple[str, str, bool]:
        return as_text(as_dict(fields.get("meta_info")).get("id")), "", True

    def _object(self, fields: dict[str, Any], name: str, position: int = 0) -> Iterator[Event]:
        if name == "error" or fields.get("error"):
            yield told_error(fields)
            return
        meta = as_dict(fields.get("meta_info"))
        if not meta and not isinstance(fields.get("text"), str):
            yield named_extension(name, fields)
            return
        index = as_int(fields.get("index"))
        index = position if index is None else index
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice()
        yield from _content(index, choice, fields, meta)
        yield from self._ends(index, choice, meta)

    def _ends(self, index: int, choice: _Choice, meta: dict[str, Any]) -> Iterator[Event]:
        finish = meta.get("finish_reason")
        native = as_text(as_dict(finish).get("type")) or as_text(finish)
        if native and native != choice.finish_native:
            choice.finish_native = native
            yield Finish(index, FINISH_REASONS.get(native, "stop"), native)
        usage = _usage(meta)
        if usage is not None:
            yield self._usage.add(index, usage)
        if as_dict(finish).get("status_code"):
            # An abort with a status is the server's failure; one without was asked for.
            yield upstream_error(finish)


def _content(index: int, choice: _Choice, fields: dict[str, Any], meta: dict[str, Any]) -> Iterator[Event]:
    ids, text = fields.get("output_ids"), fields.get("text")
    completion = as_int(meta.get("completion_tokens"))
    if not isinstance(text, str):
        if ids:
            # A server without a tokenizer: the ids are all there is.
            yield Extension("output_ids", fields, is_output=True)
        return
    holds_all = None if completion is None or not isinstance(ids, list) else len(ids) >= completion
    news, does_extend = choice.text.news(text, holds_all=holds_all, is_last=bool(meta.get("finish_reason")))
    if not does_extend:
        yield Extension("text", {"index": index, "text": text})
    if news:
        yield Token(index, news, _logprobs(choice, meta, completion))


def _logprobs(choice: _Choice, meta: dict[str, Any], completion: int | None) -> dict[str, Any] | None:
    """Those not told yet; lists as long as the completion hold all from its start."""
    lists = {key: as_list(meta.get(key)) for key in _LOGPROBS}
    length = max(map(len, lists.values()))
    told = choice.logprobs_told if length == completion else 0
    choice.logprobs_told = length
    news = {key: values[told:] for key, values in lists.items() if values[told:]}
    return news or None


def _usage(meta: dict[str, Any]) -> Usage | None:
    """The counts of one choice so far."""
    native = {key: meta[key] for key in _COUNTS if meta.get(key) is not None}
    prompt, completion = as_int(native.get("prompt_tokens")), as_int(native.get("completion_tokens"))
    if prompt is None and completion is None:
        return None
    total = None if prompt is None or completion is None else prompt + completion
    cached, reasoning = as_int(native.get("cached_tokens")), as_int(native.get("reasoning_tokens"))
    return Usage(prompt, completion, total, cached, reasoning, native)
