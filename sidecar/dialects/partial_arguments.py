"""A call's arguments that arrive value by value under JSONPaths, as JSON text that can be told at once.

Owns how such values nest. Must not know what a dialect calls them.

A model writes its arguments from front to back, so each value lies either in a container that is still open or in a new
one: the text of what came so far never has to be taken back. A value that would need that is refused.
"""

from __future__ import annotations

import re
from typing import Any, Final

from sidecar.dialects.lenient_json import UnparseableError, as_text, compact, parse
from sidecar.dialects.numbered import Room

_STEP: Final = re.compile(
    r"""\.(?P<name>[^.\[\]]+) | \[(?P<index>\d{1,9})\] | \[(?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\]""",
    re.VERBOSE | re.DOTALL,
)
_MAX_GAP: Final = 100
"""Elements that may be passed over: an empty container, say, has no value that could be sent. They are null."""


class PartialArguments:
    """The arguments of one call. The texts `add` and `close` give, joined, are one JSON object."""

    __slots__ = ("_is_string_open", "_names", "_path", "_room")

    def __init__(self, room: Room) -> None:
        self._room = room
        # Where the latest value lies: one step into each open container, the outermost first.
        self._path: list[str | int] = []
        # The members that each open object has had; nothing for an array, which counts them.
        self._names: list[set[str | int]] = []
        self._is_string_open = False

    @property
    def has_begun(self) -> bool:
        """Some text has been given."""
        return bool(self._path)

    def add(self, json_path: str, value: Any) -> str | None:
        """The text that ``value`` adds: a string at the latest path continues the one there. None where it has no
        place."""
        path = _steps(json_path)
        if path and path == self._path:
            return _inside(value) if self._is_string_open and isinstance(value, str) else None
        depth = self._depth_shared_with(path)
        if depth is None or len(path) - depth > self._room.left:
            return None
        text = self._closed_to(depth) + self._opened(path, depth)
        self._path = path
        self._is_string_open = isinstance(value, str)
        return text + ('"' + _inside(value) if isinstance(value, str) else compact(value))

    def close(self) -> str:
        """The text that makes the object whole."""
        text = self._closed_to(0) + "}" if self._path else "{}"
        self._forget(0)
        self._path = []
        return text

    def _depth_shared_with(self, path: list[str | int]) -> int | None:
        """How many containers a new ``path`` lies in that are open, beside the outermost; None where it cannot be told
        behind what has been told."""
        depth = 0
        for ours, theirs in zip(self._path, path, strict=False):
            if ours != theirs:
                break
            depth += 1
        is_out_of_reach = any(isinstance(step, int) and step > _MAX_GAP for step in path[depth + 1 :])
        if depth == len(path) or not isinstance(path[0], str) or is_out_of_reach:
            return None
        if not self._path:
            return depth
        step = path[depth]
        if depth == len(self._path) or isinstance(step, str) != isinstance(self._path[depth], str):
            return None
        before = self._path[depth]
        if isinstance(step, int) and isinstance(before, int):
            return depth if before < step <= before + _MAX_GAP else None
        return None if step in self._names[depth] else depth

    def _closed_to(self, depth: int) -> str:
        """The ends of the latest value and of every container deeper than ``depth``."""
        text = '"' if self._is_string_open else ""
        text += "".join(["}" if isinstance(step, str) else "]" for step in reversed(self._path[depth + 1 :])])
        self._forget(depth + 1)
        self._is_string_open = False
        return text

    def _opened(self, path: list[str | int], depth: int) -> str:
        """The beginnings of all that lies on ``path`` from ``depth`` on."""
        texts = []
        for level in range(depth, len(path)):
            step = path[level]
            is_new = level == len(self._names)
            if is_new:
                self._names.append(set())
            if isinstance(step, str):
                self._room.take()
                self._names[level].add(step)
                texts.append(("{" if is_new else ",") + compact(step) + ":")
            else:
                before = -1 if is_new else self._path[level]
                passed_over = step - before - 1 if isinstance(before, int) else 0
                texts.append(("[" if is_new else ",") + "null," * passed_over)
        return "".join(texts)

    def _forget(self, level: int) -> None:
        """The members of closed objects."""
        self._room.left += sum(map(len, self._names[level:]))
        del self._names[level:]


def _steps(json_path: str) -> list[str | int]:
    """The steps of a singular RFC 9535 path; none where it is not one."""
    steps: list[str | int] = []
    at = 1 if json_path.startswith("$") else len(json_path) + 1
    while at < len(json_path):
        match = _STEP.match(json_path, at)
        if match is None:
            return []
        at = match.end()
        name, index, quoted = match.group("name", "index", "quoted")
        if quoted is not None:
            name = _unquoted(quoted)
        if name is None and index is None:
            return []
        steps.append(int(index) if name is None else name)
    return steps


def _unquoted(quoted: str) -> str | None:
    text = quoted[1:-1]
    if quoted.startswith("'"):
        text = text.replace("\\'", "'").replace('"', '\\"')
    try:
        return as_text(parse(f'"{text}"'.encode()))
    except UnparseableError:
        return None


def _inside(text: str) -> str:
    """``text`` as it stands between the quotes of a JSON string."""
    return compact(text)[1:-1]
