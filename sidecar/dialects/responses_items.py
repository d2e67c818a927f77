"""The output items of one OpenAI response: which of them an upstream event speaks of.

Owns how items are told apart, and which piece of each has been told. Must not know what a piece means.

Items are known by their place, since Copilot gives an item another id with every event. llama.cpp numbers nothing: its
items are known by id, and where even that is missing, the newest of the kind is meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sidecar.dialects.lenient_json import as_dict, as_int, as_text
from sidecar.dialects.numbered import Room

MESSAGE: Final = "message"
REASONING: Final = "reasoning"
CALL: Final = "call"

CALL_TYPES: Final = frozenset({"function_call", "custom_tool_call"})
"""Items that are calls for the client to make; every other tool is hosted."""
HOSTED: Final = "hosted call"
_HOSTED_PREFIX: Final = "xs_call_"
"""How xAI calls the calls of its own tools, which come as custom ones: it makes them itself and then answers."""

Entry = tuple[str, int, dict[str, Any]]
"""A piece of a whole item: its group, its place there, and the object that holds it."""


def family_of(fields: dict[str, Any]) -> str:
    """The kind of an item: places and ids are unique within one, whatever the server."""
    kind = as_text(fields.get("type"))
    if kind not in CALL_TYPES:
        return kind
    return HOSTED if as_text(fields.get("call_id")).startswith(_HOSTED_PREFIX) else CALL


class Item:
    """One output item. ``is_midway``: a resumed stream began within it, and repeats at its end what was told before."""

    __slots__ = (
        "_room",
        "_told",
        "call_id",
        "family",
        "held",
        "id",
        "is_done",
        "is_midway",
        "name",
        "number",
        "serial",
        "told_id",
    )

    def __init__(self, family: str, fields: dict[str, Any], room: Room, serial: int, *, is_midway: bool) -> None:
        self._room = room
        self.family = family
        self.serial = serial
        """Its number among all items, as they began."""
        self.id = as_text(fields.get("id"))
        self.call_id = as_text(fields.get("call_id"))
        self.is_midway = is_midway
        self.is_done = False
        self.number: int | None = None
        """A call's own, once anything has been told of it."""
        self.told_id = self.name = ""
        """A call's, as the client was told them."""
        self.held = ""
        """The arguments a call was announced with."""
        self._told: dict[str, set[int]] = {}

    def is_told(self, group: str, place: int = 0) -> bool:
        """Whether this piece has been told."""
        return place in self._told.get(group, ())

    def tell(self, group: str, place: int = 0) -> bool:
        """Take note that this piece is told now; False where it was already. Raises TooManyError."""
        if self.is_told(group, place):
            return False
        self._room.take()
        self._told.setdefault(group, set()).add(place)
        return True

    def untold(self, entries: list[Entry]) -> list[Entry]:
        """Those of all the item's pieces that have not been told.

        vLLM counts the parts of one item on from those of the item before, so what was told in places that the whole
        item does not have stands for the first ones that it seems to lack.
        """
        places_of: dict[str, set[int]] = {}
        for group, place, _ in entries:
            places_of.setdefault(group, set()).add(place)
        strays = {group: len(told - places_of.get(group, set())) for group, told in self._told.items()}
        rest = []
        for entry in entries:
            if self.is_told(entry[0], entry[1]):
                continue
            if strays.get(entry[0]):
                strays[entry[0]] -= 1
            else:
                rest.append(entry)
        return rest


class Items:
    """The items of one response so far. ``is_resumed``: the stream began somewhere in the middle of them."""

    __slots__ = ("_all", "_by_key", "_room", "is_resumed")

    def __init__(self) -> None:
        self._room = Room()
        self.is_resumed = False
        self._all: list[Item] = []
        self._by_key: dict[tuple[str, int | str], Item] = {}

    def find(self, family: str, place: int | None, item_id: str) -> Item | None:
        """The item of ``family`` that an event with this place and item id belongs to, as far as it has either."""
        if place is not None:
            found = self._by_key.get((family, place))
            return found or (self._by_key.get((family, item_id)) if item_id else None)
        if item_id and (found := self._by_key.get((family, item_id))) is not None:
            return found
        newest = self._by_key.get((family, ""))
        # An unknown id is the newest item's under a new name, but of two calls it would make one that means neither.
        return None if newest is None or (item_id and (newest.is_done or family == CALL)) else newest

    def of_event(self, family: str, fields: dict[str, Any]) -> Item:
        """The item of ``family`` that an event within one speaks of; a new one where none is known."""
        place, item_id = as_int(fields.get("output_index")), as_text(fields.get("item_id"))
        found = self.find(family, place, item_id)
        return found or self.open(family, place, {"id": item_id}, is_midway=self.is_resumed)

    def is_hosted(self, fields: dict[str, Any]) -> bool:
        """Whether an event within a call speaks of one that the server makes itself."""
        keys = (as_text(fields.get("item_id")), as_int(fields.get("output_index")))
        return any((HOSTED, key) in self._by_key for key in keys if key not in ("", None))

    def announced(self, fields: dict[str, Any], announced: dict[str, Any]) -> Item:
        """The item that an ``added`` event announces."""
        family, place = family_of(announced), as_int(fields.get("output_index"))
        new_id = as_text(announced.get("id"))
        item = self._by_key.get((family, new_id if place is None else place))
        if item is None or family == CALL or (item.id != new_id if item.id and new_id else item.is_done):
            return self.open(family, place, announced, is_midway=False)
        item.is_midway = False
        return item

    def finished(self, fields: dict[str, Any], whole: dict[str, Any]) -> Item:
        """The item that a ``done`` event tells whole."""
        family, place = family_of(whole), as_int(fields.get("output_index"))
        item_id, call_id = as_text(whole.get("id")), as_text(whole.get("call_id"))
        item = self._by_key.get((family, call_id)) if call_id else None
        item = item or self.find(family, place, item_id or as_text(fields.get("item_id")) or call_id)
        if item is None or (item.is_done and item.call_id != call_id):
            item = self.open(family, place, whole, is_midway=self.is_resumed)
        item.is_done = True
        return item

    def open(self, family: str, place: int | None, fields: dict[str, Any], *, is_midway: bool) -> Item:
        """A new item, known from now on by all that ``fields`` say of it. Raises TooManyError."""
        self._room.take()
        item = Item(family, fields, self._room, len(self._all), is_midway=is_midway)
        self._all.append(item)
        for key in (item.id, item.call_id, "", place):
            if key is not None:
                self._by_key[family, key] = item
        return item

    def matched(self, snapshot: list[dict[str, Any]]) -> list[Item | None]:
        """The item that each element of a snapshot of them all is: by id, else by place, else in order.

        vLLM makes up new ids for its snapshot, and places have gaps where a server announced an item in vain.
        """
        free = dict.fromkeys(self._all)
        found: list[Item | None] = [None] * len(snapshot)
        for number, fields in enumerate(snapshot):
            found[number] = self._take(free, family_of(fields), (fields.get("call_id"), fields.get("id")))
        for number, fields in enumerate(snapshot):
            found[number] = found[number] or self._take(free, family_of(fields), (number,))
        if self.is_resumed:
            return found
        in_order: dict[str, list[Item]] = {}
        for item in reversed(free):
            in_order.setdefault(item.family, []).append(item)
        return [item or _next(in_order.get(family_of(fields))) for item, fields in zip(found, snapshot, strict=True)]

    def _take(self, free: dict[Item, None], family: str, keys: Iterable[Any]) -> Item | None:
        for key in keys:
            item = self._by_key.get((family, key)) if isinstance(key, int) or as_text(key) else None
            if item is not None and item in free:
                del free[item]
                return item
        return None


def _next(items: list[Item] | None) -> Item | None:
    return items.pop() if items else None


def items_of(output: Any) -> list[dict[str, Any]]:
    """A snapshot's items, as far as they are any."""
    return [as_dict(element) for element in output if isinstance(element, dict)] if isinstance(output, list) else []
