"""YAML text to a plain tree that knows its lines.

Owns syntax: one document, UTF-8, no duplicate keys, no tags, bounded size and depth (aliases included). Must not know
what any key means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import yaml

if TYPE_CHECKING:
    from sidecar.configuration.problems import Problems

MAX_TEXT_BYTES: Final = 1024 * 1024
MAX_NODES: Final = 20_000
MAX_DEPTH: Final = 32

_KINDS: Final = {"str": "text", "int": "number", "float": "number", "bool": "boolean", "null": "nothing"}
_TAG_PREFIX: Final = "tag:yaml.org,2002:"
_QUOTED: Final = re.compile(r"'[^'<]{2,}'")
_SHOWABLE_KEY: Final = re.compile(r"[A-Za-z_]{1,32}|(?!sk[-_])[A-Za-z0-9_.*-]{1,16}")


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as written. ``kind`` is what YAML takes it for: text, number, boolean, nothing, or a date."""

    line: int
    kind: str
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    line: int
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """Keys, each with its own line and its value."""

    line: int
    entries: dict[str, tuple[int, Node]]


Node = Scalar | Sequence | Mapping


def parse(text: str | bytes, problems: Problems) -> Mapping | None:
    """The tree of a configuration file; None, with problems noted, where there is none to read on with."""
    if len(text) > MAX_TEXT_BYTES:
        problems.add(1, "", "is larger than 1 MiB")
        return None
    decoded = _decoded(text, problems) if isinstance(text, bytes) else text
    root = None if decoded is None else _compose(decoded, problems)
    if root is None:
        return None
    tree = _Builder(problems).build(root)
    if isinstance(tree, Mapping):
        return tree
    if tree is not None:
        problems.add(tree.line, "", "must be keys and values, such as upstreams: ...")
    return None


def _decoded(text: bytes, problems: Problems) -> str | None:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        problems.add(text.count(b"\n", 0, error.start) + 1, "", "is not UTF-8 text")
        return None


def _compose(text: str, problems: Problems) -> yaml.Node | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.add(mark.line + 1 if mark else 1, "", _explain(error.problem or "cannot be read"))
    except yaml.reader.ReaderError as error:
        problems.add(text.count("\n", 0, int(error.position)) + 1, "", "holds a character that YAML does not allow")
    except (OverflowError, ValueError):
        # PyYAML hands an escape such as "\UFFFFFFFF" to chr() unchecked.
        problems.add(1, "", "holds an escape for a character that does not exist")
    except RecursionError:
        problems.add(1, "", f"is nested deeper than {MAX_DEPTH} levels")
    else:
        if root is None:
            problems.add(1, "", "is empty: at least upstreams is needed")
        return root
    return None


def _explain(problem: str) -> str:
    if "\\t" in problem:
        return "is not YAML: a tab cannot indent, use spaces"
    if "expected a single document" in problem or "another document" in problem:
        return "holds several documents; write one"
    # What YAML quotes may be any text of the file, a secret too; what it names in <> is its own.
    return f"is not YAML: {_QUOTED.sub('...', problem)}"


class _Builder:
    """Turns composed nodes into ours. Aliases make the composed graph a knot, so the nodes visited are counted."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._visited = 0

    def build(self, root: yaml.Node) -> Node | None:
        """The tree; None, with one problem noted, where aliases or nesting run away."""
        try:
            return self._node(root, "", 0)
        except _RunawayError as error:
            self._problems.add(error.line, "", str(error))
            return None

    def _node(self, node: yaml.Node, path: str, depth: int) -> Node:
        line = node.start_mark.line + 1
        self._visited += 1
        if self._visited > MAX_NODES:
            raise _RunawayError(f"holds more than {MAX_NODES} values, aliases counted each time", line)
        if depth > MAX_DEPTH:
            raise _RunawayError(f"is nested deeper than {MAX_DEPTH} levels", line)
        if isinstance(node, yaml.MappingNode):
            return Mapping(line, self._entries(node, path, depth))
        if isinstance(node, yaml.SequenceNode):
            return Sequence(
                line, tuple(self._node(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value))
            )
        return Scalar(line, self._kind(node, path, line), node.value)

    def _kind(self, node: yaml.Node, path: str, line: int) -> str:
        name = node.tag.removeprefix(_TAG_PREFIX)
        if name not in _KINDS and name != "timestamp" and not (name == "value" and node.value == "="):
            self._problems.add(line, path, "tags and merge keys are not used here")
        return _KINDS.get(name, "date")

    def _entries(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, tuple[int, Node]]:
        entries: dict[str, tuple[int, Node]] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._problems.add(line, path, "has a key that is not plain text")
                continue
            below = f"{path}.{shown_key(key.value)}" if path else shown_key(key.value)
            if key.tag == _TAG_PREFIX + "merge":
                self._problems.add(line, path, "merge keys (<<) are not used here; alias whole values instead")
            elif key.value in entries:
                self._problems.add(line, below, f"is given twice, first in line {entries[key.value][0]}")
            else:
                entries[key.value] = (line, self._node(value, below, depth + 1))
        return entries


class _RunawayError(Exception):
    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def shown_key(key: str) -> str:
    """A key as problems may show it: "?" for one that looks like no name, since it may be a secret gone astray."""
    return key if _SHOWABLE_KEY.fullmatch(key) else "?"
