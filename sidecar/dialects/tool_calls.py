"""Numbers the tool calls of one choice from 0, whatever the upstream counts by.

Owns which fragment belongs to which call. Must not know a dialect's payloads beyond id, name and index.
"""

from __future__ import annotations

from typing import Any

from sidecar.dialects.lenient_json import compact
from sidecar.dialects.numbered import Room
from sidecar.events import ToolCall


class _Call:
    __slots__ = ("id", "name", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.id = ""
        self.name = ""


class ToolCalls:
    """The tool calls of one choice, so far. ``room`` is for those that fragments may still follow of."""

    __slots__ = ("_by_id", "_by_index", "_count", "_last", "_room", "choice")

    def __init__(self, choice: int, room: Room) -> None:
        self.choice = choice
        self._room = room
        self._count = 0
        self._last: _Call | None = None
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}

    def fragment(self, index: int | None, call_id: str, name: str, arguments: str) -> ToolCall | None:
        """The event of one fragment; None for a continuation that says nothing.

        ``index`` is the upstream's own number, None where it sent none; "" stands for an id or name not given. Raises
        TooManyError.
        """
        call = self._find(index, call_id, name)
        is_first = call is None
        if call is None:
            self._room.take()
            call = self._open()
        if index is not None:
            self._by_index[index] = call
        self._last = call
        new_id = new_name = None
        if call_id and not call.id:
            call.id = new_id = call_id
            self._by_id[call_id] = call
        if name and not call.name:
            call.name = new_name = name
        if not (is_first or arguments or new_id or new_name):
            return None
        return ToolCall(self.choice, call.number, arguments, new_id, new_name)

    def whole(self, call_id: str, name: str, arguments: str) -> ToolCall:
        """The event of a call that comes in one piece."""
        self._last = call = self._open()
        call.id, call.name = call_id, name
        return ToolCall(self.choice, call.number, arguments, call_id or None, name or None)

    def _open(self) -> _Call:
        call = _Call(self._count)
        self._count += 1
        return call

    def _find(self, index: int | None, call_id: str, name: str) -> _Call | None:
        if index is None:
            return self._find_without_index(call_id, name)
        call = self._by_index.get(index)
        if call is None or not call_id or not call.id or call.id == call_id:
            return call
        # Some servers send index 0 for every call: another id then means another call, if it is named as one.
        # A changed id alone does not, because others make up a new id for each fragment.
        return self._by_id.get(call_id) or (None if name else call)

    def _find_without_index(self, call_id: str, name: str) -> _Call | None:
        if call_id:
            known = self._by_id.get(call_id)
            if known is not None or self._last is None or self._last.id or self._last.name:
                return known
            return self._last
        if name and self._last is not None and self._last.name:
            return None
        return self._last


def argument_text(arguments: Any) -> str:
    """A call's arguments as JSON text: a fragment as it is, a whole value encoded, "" where there are none."""
    if arguments is None:
        return ""
    return arguments if isinstance(arguments, str) else compact(arguments)
