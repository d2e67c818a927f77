"""What the output items of an OpenAI response say, each text, call, citation and image once.

Owns how an item's own events become ours: deltas as they come; what an event repeats whole, only where no delta told
it; what stands in the last snapshot, only where nothing did. Must not know which item an event speaks of
(`responses_items`), or how a response begins and ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sidecar.dialects.lenient_json import as_dict, as_int, as_list, as_text
from sidecar.dialects.payloads import named_extension
from sidecar.dialects.responses_items import (
    CALL,
    MESSAGE,
    REASONING,
    Entry,
    Item,
    Items,
    family_of,
    items_of,
)
from sidecar.dialects.tool_calls import argument_text
from sidecar.events import Annotation, Event, Media, Reasoning, Refusal, Token, ToolCall

_TEXT, _REFUSAL, _THOUGHT, _SUMMARY = "text", "refusal", "thought", "summary"
_ANNOTATIONS, _ARGUMENTS, _SIGNATURE, _IMAGE = "annotations", "arguments", "signature", "image"
_UNKNOWN = "unknown"
"""The group of all parts of a type not known here: groups are as few as these, whatever the upstream sends."""

_GROUP_OF_STEM: Final = {
    "response.output_text": _TEXT,
    "response.refusal": _REFUSAL,
    "response.reasoning_text": _THOUGHT,
    "response.reasoning": _THOUGHT,
    "response.reasoning_summary_text": _SUMMARY,
    "response.reasoning_summary": _SUMMARY,
}
_GROUP_OF_PART: Final = {
    "output_text": _TEXT,
    "text": _TEXT,
    "refusal": _REFUSAL,
    "reasoning_text": _THOUGHT,
    "summary_text": _SUMMARY,
}
_FAMILY: Final = {_TEXT: MESSAGE, _REFUSAL: MESSAGE, _THOUGHT: REASONING, _SUMMARY: REASONING}
_ARGUMENTS_KEY: Final = {"response.function_call_arguments": "arguments", "response.custom_tool_call_input": "input"}
_PART_STEMS: Final = frozenset({"response.content_part", "response.reasoning_part", "response.reasoning_summary_part"})
_ANNOTATION_ADDED: Final = frozenset({"response.output_text.annotation.added", "response.output_text_annotation.added"})


class Output:
    """The output of one response so far."""

    __slots__ = ("_call_count", "_last_call", "_last_text", "items")

    def __init__(self) -> None:
        self.items = Items()
        self._call_count = 0
        # Where they lie among all items.
        self._last_call = self._last_text = -1

    @property
    def has_calls(self) -> bool:
        """There is a call that the client has to make: one with a text behind it was made by the server, which then
        went on."""
        return self._last_call > self._last_text

    def has_told_text(self, place: int | None, item_id: str, part: int) -> bool:
        """Whether a delta of this part of a message would not be its first."""
        item = self.items.find(MESSAGE, place, item_id)
        return item is not None and item.is_told(_TEXT, part)

    def events(self, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        """The events of one upstream event of type ``kind``; an extension where no item's own words are in it."""
        stem, _, step = kind.rpartition(".")
        if stem in _ARGUMENTS_KEY and self.items.is_hosted(fields):
            yield named_extension(kind, fields)
        elif (
            step == "delta"
            and isinstance(fields.get("delta"), str)
            and (stem in _GROUP_OF_STEM or stem in _ARGUMENTS_KEY)
        ):
            yield from self._delta(stem, fields, fields["delta"])
        elif step == "done" and stem in _GROUP_OF_STEM:
            group = _GROUP_OF_STEM[stem]
            item = self.items.of_event(_FAMILY[group], fields)
            yield from self._pieces(item, [(group, _part_place(group, fields), fields)])
        elif step == "done" and stem in _ARGUMENTS_KEY:
            yield from self._whole_call(self.items.of_event(CALL, fields), fields, fields.get(_ARGUMENTS_KEY[stem]))
        elif stem in _PART_STEMS:
            yield from self._part(kind, fields)
        elif kind == "response.output_item.added":
            yield from self._added(fields, as_dict(fields.get("item")))
        elif kind == "response.output_item.done":
            whole = as_dict(fields.get("item"))
            yield from self._whole(self.items.finished(fields, whole), whole, fields)
        elif kind in _ANNOTATION_ADDED and fields.get("annotation") is not None:
            self.items.of_event(MESSAGE, fields).tell(_ANNOTATIONS, _part_place(_TEXT, fields))
            yield Annotation(0, fields["annotation"])
        elif kind == "response.image_generation_call.partial_image" and as_text(fields.get("partial_image_b64")):
            yield Media(0, "partial_image", _image_type(fields), fields["partial_image_b64"])
        else:
            yield named_extension(kind, fields)

    def rest(self, output: Any) -> Iterator[Event]:
        """What a snapshot of all items holds that was never told."""
        snapshot = items_of(output)
        matched = self.items.matched(snapshot)
        for fields, item in zip(snapshot, matched, strict=True):
            if item is not None:
                yield from self._whole(item, fields, None)
            elif not self.items.is_resumed:
                yield from self._whole(self.items.open(family_of(fields), None, {}, is_midway=False), fields, fields)
        families = [
            family_of(fields) if family_of(fields) != MESSAGE or _entries(fields) else "" for fields in snapshot
        ]
        if CALL in families:
            self._last_call, self._last_text = (_last_place(families, family) for family in (CALL, MESSAGE))

    def _delta(self, stem: str, fields: dict[str, Any], delta: str) -> Iterator[Event]:
        group = _GROUP_OF_STEM.get(stem)
        item = self.items.of_event(CALL if group is None else _FAMILY[group], fields)
        if not delta:
            return
        if group is None:
            item.tell(_ARGUMENTS)
            yield from self._call(item, {}, delta)
        else:
            item.tell(group, _part_place(group, fields))
            yield self._piece(item, group, delta, fields)

    def _added(self, fields: dict[str, Any], announced: dict[str, Any]) -> Iterator[Event]:
        item = self.items.announced(fields, announced)
        if item.family == CALL:
            item.held = _arguments_of(announced)
            yield from self._call(item, announced, "")
        elif item.family in {MESSAGE, REASONING}:
            # What a message is for (its phase) is told nowhere else.
            if announced.get("phase"):
                yield named_extension("response.output_item.added", fields)
            yield from self._pieces(item, _entries(announced))
        else:
            yield named_extension("response.output_item.added", fields)

    def _part(self, kind: str, fields: dict[str, Any]) -> Iterator[Event]:
        part = as_dict(fields.get("part"))
        group = _GROUP_OF_PART.get(as_text(part.get("type")))
        if group is not None:
            item = self.items.of_event(_FAMILY[group], fields)
            yield from self._pieces(item, _entries_of_part(_part_place(group, fields), part))
            return
        place, item_id = as_int(fields.get("output_index")), as_text(fields.get("item_id"))
        holder = self.items.find(MESSAGE, place, item_id) or self.items.find(REASONING, place, item_id)
        if holder is not None:
            holder.tell(_UNKNOWN, _part_place(_TEXT, fields))
        yield named_extension(kind, fields)

    def _whole(self, item: Item, fields: dict[str, Any], event: dict[str, Any] | None) -> Iterator[Event]:
        """What of a whole item was never told; one of no family known here passes as ``event``, if that is any."""
        if item.family == CALL:
            yield from self._whole_call(item, fields, _arguments_of(fields))
        elif item.family in {MESSAGE, REASONING}:
            yield from self._pieces(item, item.untold(_entries(fields)))
            # The proof that a reasoning item is announced with is not its final one.
            proof = as_text(fields.get("encrypted_content")) or as_text(fields.get("signature"))
            if proof and item.family == REASONING and item.tell(_SIGNATURE):
                yield Reasoning(0, "", proof)
        elif item.family == "image_generation_call" and as_text(fields.get("result")):
            if item.tell(_IMAGE):
                yield Media(0, "image", _image_type(fields), fields["result"])
        elif event is not None:
            yield named_extension(as_text(event.get("type")), event)

    def _pieces(self, item: Item, entries: list[Entry]) -> Iterator[Event]:
        """Those of ``entries`` that hold anything and have not been told."""
        for group, place, holder in entries:
            if item.is_midway or item.is_told(group, place):
                continue
            text = as_text(holder.get("refusal" if group == _REFUSAL else "text"))
            if group in _FAMILY and not text:
                continue
            item.tell(group, place)
            if group in _FAMILY:
                yield self._piece(item, group, text, holder)
            elif group == _ANNOTATIONS:
                for annotation in as_list(holder.get("annotations")):
                    yield Annotation(0, annotation)
            else:
                yield named_extension("", holder)

    def _piece(self, item: Item, group: str, text: str, holder: dict[str, Any]) -> Event:
        if item.family == MESSAGE:
            self._last_text = max(self._last_text, item.serial)
        if group == _TEXT:
            return Token(0, text, holder.get("logprobs") or None)
        return Refusal(0, text, holder.get("logprobs") or None) if group == _REFUSAL else Reasoning(0, text)

    def _whole_call(self, item: Item, fields: dict[str, Any], arguments: Any) -> Iterator[Event]:
        """The rest of a call: its arguments where no delta told them, its id and name where nothing did."""
        text = ""
        if not item.is_told(_ARGUMENTS):
            if item.is_midway:
                return
            # vLLM announces a call with its first fragment and sends the same as a delta, so those count last.
            text = argument_text(arguments) or item.held
        if text:
            item.tell(_ARGUMENTS)
        yield from self._call(item, fields, text)

    def _call(self, item: Item, fields: dict[str, Any], arguments: str) -> Iterator[ToolCall]:
        """A fragment of a call, with its id and name where ``fields`` are the first that tell them."""
        self._last_call = max(self._last_call, item.serial)
        is_first = item.number is None
        if item.number is None:
            item.number = self._call_count
            self._call_count += 1
        new_id = new_name = None
        if not item.told_id and (call_id := as_text(fields.get("call_id")) or as_text(fields.get("id"))):
            item.told_id = new_id = call_id
        if not item.name and (name := as_text(fields.get("name"))):
            item.name = new_name = name
        if is_first or arguments or new_id or new_name:
            yield ToolCall(0, item.number, arguments, new_id, new_name)


def _last_place(families: list[str], family: str) -> int:
    return max((place for place, other in enumerate(families) if other == family), default=-1)


def _entries(whole: dict[str, Any]) -> list[Entry]:
    """The pieces of a whole message or reasoning item."""
    entries: list[Entry] = []
    for place, part in enumerate(as_list(whole.get("content"))):
        entries += _entries_of_part(place, as_dict(part))
    for place, part in enumerate(as_list(whole.get("summary"))):
        entries.append((_SUMMARY, place, as_dict(part)))
    return entries


def _entries_of_part(place: int, part: dict[str, Any]) -> list[Entry]:
    entries = [(_GROUP_OF_PART.get(as_text(part.get("type")), _UNKNOWN), place, part)] if part else []
    return [*entries, (_ANNOTATIONS, place, part)] if as_list(part.get("annotations")) else entries


def _part_place(group: str, fields: dict[str, Any]) -> int:
    return as_int(fields.get("summary_index" if group == _SUMMARY else "content_index")) or 0


def _arguments_of(call: dict[str, Any]) -> str:
    """A whole call's arguments; a custom tool's input is free text."""
    return argument_text(call.get("input" if call.get("type") == "custom_tool_call" else "arguments"))


def _image_type(fields: dict[str, Any]) -> str:
    kind = as_text(fields.get("output_format")) or "png"
    return "image/svg+xml" if kind == "svg" else f"image/{kind}"
