"""One section of the file, read key by key into typed values.

Owns what text, numbers with units, lists and sections look like, and the complaints when they do not. Must not know
which keys exist (`keys`) or what their values mean.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sidecar import units
from sidecar.configuration.keys import KEYS
from sidecar.configuration.yaml_tree import Mapping, Node, Scalar, Sequence, shown_key

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sidecar.configuration.problems import Problems

T = TypeVar("T")

_BOOLEANS: Final = {"true": True, "false": False}
_SECRET_KEYS: Final = frozenset(
    {
        "value",
        "secret",
        "token",
        "password",
        "api_key",
        "apikey",
        "key",
        "literal",
        "access_key_id",
        "secret_access_key",
        "session_token",
        "aws_access_key_id",
        "aws_secret_access_key",
        "aws_session_token",
    }
)
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_DIGITS: Final = re.compile(r"[0-9]{1,9}")
_HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]{0,4096}")

NOT_IN_THE_FILE: Final = (
    "a secret does not belong in the file: name a file or an environment variable, {file: ...} or {env: ...}"
)
MOST: Final = 999_999_999
"""No count in a configuration is larger."""


class Section:
    """A mapping of the file and its path; an absent one reads as empty.

    Every reading method takes a key of the section, notes a problem if its value is wrong, and returns ``default`` then
    as well as when the key is absent.
    """

    def __init__(self, node: Node | None, kind: str, path: str, line: int, problems: Problems) -> None:
        self.path = path
        self.line = line
        self.problems = problems
        self._kind = kind
        self._entries = node.entries if isinstance(node, Mapping) else {}
        if node is not None and not isinstance(node, Mapping):
            self.problems.add(node.line, path, f"must be keys and values: {', '.join(KEYS[kind])}")
        self._refuse_unknown_keys()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def complain(self, key: str, message: str) -> None:
        """Notes a problem with ``key``, at its own line, or at the section's where it is absent."""
        line = self._entries[key][0] if key in self._entries else self.line
        self.problems.add(line, self.below(key), message)

    def below(self, key: str) -> str:
        """The path of ``key``."""
        return f"{self.path}.{key}" if self.path else key

    def node(self, key: str) -> Node | None:
        """The raw value of ``key``."""
        return self._entries[key][1] if key in self._entries else None

    def section(self, key: str) -> Section:
        """The section under ``key``."""
        kind = f"{self._kind}.{key}" if self._kind else key
        line = self._entries[key][0] if key in self._entries else self.line
        return Section(self.node(key), kind, self.below(key), line, self.problems)

    def named_sections(self, key: str) -> Iterator[tuple[str, Section]]:
        """The sections under ``key``, each with the name its author chose."""
        for name, line, node in self._named(key):
            yield name, Section(node, f"{key}.*", f"{key}.{name}", line, self.problems)

    def listed_sections(self, key: str) -> Iterator[Section]:
        """The sections of the list under ``key``."""
        for position, item in enumerate(self._items(key)):
            yield Section(item, f"{key}.*", f"{key}[{position}]", item.line, self.problems)

    def text(self, key: str, default: str = "") -> str:
        """A non-empty text."""
        return self._scalar(key, default, _text_of, only_text=True)

    def checked(self, key: str, parse: Callable[[str], T], default: T) -> T:
        """A text that ``parse`` turns into the value; its ValueError is the complaint."""
        return self._scalar(key, default, parse)

    def duration(self, key: str, default: float, *, zero: bool = False) -> float:
        """Seconds, above zero unless ``zero``."""
        return self._scalar(key, default, lambda text: _above_zero(units.parse_duration(text), zero=zero))

    def size(self, key: str, default: int) -> int:
        """Bytes, above zero."""
        return self._scalar(key, default, lambda text: _above_zero(units.parse_size(text), zero=False))

    def count(self, key: str, default: int, least: int = 1, most: int = MOST) -> int:
        """A whole number."""
        return self._scalar(key, default, lambda text: whole_number(text, least, most))

    def boolean(self, key: str, default: bool) -> bool:
        """true or false."""
        return self._scalar(key, default, _boolean_of)

    def choice(self, key: str, allowed: Collection[str], default: Any) -> Any:
        """One of ``allowed``."""

        def chosen(text: str) -> str:
            if text not in allowed:
                raise ValueError(f"must be one of {', '.join(allowed)}")
            return text

        return self._scalar(key, default, chosen)

    def texts(self, key: str, parse: Callable[[str], T], *, only_text: bool = True) -> tuple[T, ...]:
        """A list of texts, or of anything that is one word, each made a value by ``parse``."""
        values = []
        for position, item in enumerate(self._items(key)):
            value = self._parsed(item, f"{self.below(key)}[{position}]", parse, only_text=only_text)
            if value is not None:
                values.append(value)
        return tuple(values)

    def pairs(self, key: str, parse: Callable[[str, str], tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Texts under names of their author's choice, each pair passed through ``parse``."""
        pairs = []
        for name, line, node in self._named(key, any_name=True):
            path = f"{self.below(key)}.{shown_key(name)}"
            value = self._parsed(node, path, str)
            if value is None:
                continue
            try:
                pairs.append(parse(name, value))
            except ValueError as error:
                self.problems.add(line, path, str(error))
        return tuple(pairs)

    def _scalar(self, key: str, default: T, parse: Callable[[str], T], *, only_text: bool = False) -> T:
        node = self.node(key)
        if node is None:
            return default
        value = self._parsed(node, self.below(key), parse, only_text=only_text)
        return default if value is None else value

    def _parsed(self, node: Node, path: str, parse: Callable[[str], T], *, only_text: bool = False) -> T | None:
        if not isinstance(node, Scalar):
            self.problems.add(node.line, path, "must be a single value")
            return None
        try:
            if node.kind == "nothing":
                raise ValueError("has no value")
            if only_text and node.kind != "text":
                raise ValueError(f"must be text, and YAML takes this for a {node.kind}: put it in quotes")
            return parse(node.text)
        except ValueError as error:
            self.problems.add(node.line, path, str(error))
            return None

    def _items(self, key: str) -> tuple[Node, ...]:
        node = self.node(key)
        if node is None:
            return ()
        if isinstance(node, Sequence):
            return node.items
        self.problems.add(node.line, self.below(key), "must be a list")
        return ()

    def _named(self, key: str, *, any_name: bool = False) -> Iterator[tuple[str, int, Node]]:
        node = self.node(key)
        if node is None:
            return
        if not isinstance(node, Mapping):
            self.problems.add(node.line, self.below(key), "must be keys and values")
            return
        for name, (line, value) in node.entries.items():
            if any_name or is_name(name):
                yield name, line, value
            else:
                self.problems.add(line, f"{self.below(key)}.{shown_key(name)}", NAME_RULE)

    def _refuse_unknown_keys(self) -> None:
        known = KEYS[self._kind]
        for key, (line, _) in self._entries.items():
            if key not in known:
                self.problems.add(line, self.below(shown_key(key)), _unknown_key(key, known))


NAME_RULE: Final = "is not a name: use letters, digits, '.', '_' and '-', at most 64"


def is_name(text: str) -> bool:
    """Whether ``text`` can name an upstream or a route: it will stand in logs, metrics and URLs."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) is not None


def header_name(text: str) -> str:
    """``text`` if it can be a header's name (RFC 9110 section 5.1), else ValueError."""
    if not _HEADER_NAME.fullmatch(text):
        raise ValueError("is not a header name")
    return text


def header_value(text: str) -> str:
    """``text`` if it can be a header's value in printable ASCII, else ValueError."""
    if not _HEADER_VALUE.fullmatch(text):
        raise ValueError("is not a header value: printable ASCII on one line is")
    return text


def _unknown_key(key: str, known: tuple[str, ...]) -> str:
    if key.lower() in _SECRET_KEYS and "file" in known:
        return NOT_IN_THE_FILE
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; did you mean {near[0]}?" if near else f"unknown key; known here: {', '.join(known)}"


def _text_of(text: str) -> str:
    if not text:
        raise ValueError("is empty")
    return text


def _boolean_of(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError("must be true or false")
    return _BOOLEANS[text.lower()]


def whole_number(text: str, least: int, most: int) -> int:
    """The number that ``text`` is. Raises ValueError for anything but digits, and beyond ``least`` and ``most``."""
    if not _DIGITS.fullmatch(text) or not least <= int(text) <= most:
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(text)


def _above_zero(value: T, *, zero: bool) -> T:
    if not value and not zero:
        raise ValueError("must be above zero")
    return value
