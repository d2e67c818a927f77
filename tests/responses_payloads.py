"""The events of a response, as the tests of that dialect put them together."""

from __future__ import annotations

from typing import Any

from sidecar.events import Event, Start
from tests.dialect_reading import decode_payloads

CREATED = {"type": "response.created", "response": {"id": "resp_1", "model": "m", "status": "in_progress"}}
START = Start("resp_1", "m")


def events(*payloads: Any) -> list[Event]:
    """The events of ``payloads`` after a ``response.created``, without its Start."""
    decoded = decode_payloads("openai-responses", [CREATED, *payloads])
    assert decoded[0] == START
    return decoded[1:]


def message(item_id: str, *texts: str, **extra: Any) -> dict[str, Any]:
    """A message item with these texts, each a part."""
    content = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {"id": item_id, "type": "message", "role": "assistant", "content": content, **extra}


def call(call_id: str, name: str, arguments: str = "", **extra: Any) -> dict[str, Any]:
    """A function call item."""
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **extra}


def added(place: int | None, item: dict[str, Any]) -> dict[str, Any]:
    """An item is announced; ``place`` is None for a server that numbers nothing."""
    return _placed("response.output_item.added", place, item=item)


def finished(place: int | None, item: dict[str, Any]) -> dict[str, Any]:
    """An item is whole."""
    return _placed("response.output_item.done", place, item=item)


def delta(
    text: str, place: int | None = 0, number: int = 0, *, kind: str = "output_text", **extra: Any
) -> dict[str, Any]:
    """A piece of a part's text."""
    extra.setdefault("item_id", "msg_1")
    return _placed(f"response.{kind}.delta", place, content_index=number, delta=text, **extra)


def done(
    text: str, place: int | None = 0, number: int = 0, *, kind: str = "output_text", **extra: Any
) -> dict[str, Any]:
    """A part's text, whole."""
    extra.setdefault("item_id", "msg_1")
    return _placed(f"response.{kind}.done", place, content_index=number, text=text, **extra)


def part(step: str, text: str, place: int = 0, number: int = 0, **extra: Any) -> dict[str, Any]:
    """A text part is announced or whole."""
    holder = {"type": "output_text", "text": text, "annotations": [], **extra}
    return _placed(f"response.content_part.{step}", place, content_index=number, part=holder)


def arguments(
    text: str, place: int | None = 0, *, kind: str = "function_call_arguments", **extra: Any
) -> dict[str, Any]:
    """A piece of a call's arguments."""
    return _placed(f"response.{kind}.delta", place, delta=text, **extra)


def completed(output: list[Any], **extra: Any) -> dict[str, Any]:
    """The end, with its snapshot."""
    return {
        "type": "response.completed",
        "response": {"id": "resp_1", "status": "completed", "output": output, **extra},
    }


def _placed(kind: str, place: int | None, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **({} if place is None else {"output_index": place}), **fields}
