"""Arguments that come value by value: any object in any pieces, and values that have no place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.dialects.numbered import Room
from sidecar.dialects.partial_arguments import PartialArguments

NAMES = st.text(min_size=1, max_size=4) | st.sampled_from(["a", "b", "it's", 'say "x"', "a.b", "[0]", "\\", "\n"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(NAMES, inner, min_size=1, max_size=3),
    max_leaves=12,
)


def leaves(value: Any, path: str = "$") -> Iterator[tuple[str, Any]]:
    """Every scalar of a value, front to back, with its path; in turn in each of the ways to write a name."""
    if isinstance(value, dict):
        for number, (name, member) in enumerate(value.items()):
            if name.isascii() and name.isalpha():
                step = f".{name}"
            elif number % 2:
                step = f"[{json.dumps(name)}]"
            else:
                inside = json.dumps(name)[1:-1].replace('\\"', '"').replace("'", "\\'")
                step = f"['{inside}']"
            yield from leaves(member, path + step)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from leaves(member, f"{path}[{index}]")
    else:
        yield path, value


@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=4), st.data())
def test_any_object_comes_back(value: dict[str, Any], data: st.DataObject) -> None:
    arguments = PartialArguments(Room())
    text = ""
    for path, leaf in leaves(value):
        pieces = [leaf]
        if isinstance(leaf, str):
            cuts = sorted(data.draw(st.sets(st.integers(0, len(leaf)), max_size=3)))
            pieces = [leaf[start:end] for start, end in zip([0, *cuts], [*cuts, len(leaf)], strict=True)]
        for piece in pieces:
            added = arguments.add(path, piece)
            assert added is not None, path
            text += added
    assert json.loads(text + arguments.close()) == value


@given(st.lists(st.tuples(st.sampled_from(["$.a", "$.a.b", "$.a[0]", "$.a[2].c", "$.b", "$.b[1]", "$['c']"]), SCALARS)))
def test_whatever_is_refused_what_is_told_is_one_object(values: list[tuple[str, Any]]) -> None:
    arguments = PartialArguments(Room())
    text = "".join([arguments.add(path, value) or "" for path, value in values])
    names: list[str] = []

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names.extend(name for name, _ in pairs)
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    assert isinstance(json.loads(text + arguments.close(), object_pairs_hook=without_repeats), dict)
    assert bool(names) == any(True for _ in values)


@pytest.mark.parametrize(
    "path",
    ["", "$", "a", "$..a", "$.a[*]", "$.a[-1]", "$[0]", "$.a[", "$.a['b]", "$.a[101]", "$.a[99999999999]", '$["\\x"]'],
)
def test_a_path_that_leads_nowhere_adds_nothing(path: str) -> None:
    arguments = PartialArguments(Room())
    assert arguments.add(path, 1) is None
    assert not arguments.has_begun
    assert arguments.close() == "{}"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["$.a", "$.b"], "$.a"),
        (["$.a.x", "$.b"], "$.a.y"),
        (["$.a"], "$.a"),
        (["$.a"], "$.a.b"),
        (["$.a.b"], "$.a"),
        (["$.a[1]"], "$.a[0]"),
        (["$.a[0]"], "$.a.b"),
        (["$.a.b"], "$.a[0]"),
        (["$.a[0].x", "$.a[1].x"], "$.a[0].y"),
    ],
)
def test_what_would_have_to_be_taken_back_is_refused(first: list[str], second: str) -> None:
    arguments = PartialArguments(Room())
    text = "".join([arguments.add(path, 1) or "" for path in first])
    assert arguments.add(second, 2) is None
    assert "2" not in json.dumps(json.loads(text + arguments.close()))


def test_elements_that_are_passed_over_are_null() -> None:
    arguments = PartialArguments(Room())
    text = "".join([arguments.add(path, 1) or "" for path in ("$.a[2]", "$.a[4]")])
    assert json.loads(text + arguments.close()) == {"a": [None, None, 1, None, 1]}


def test_text_goes_on_until_another_value_comes() -> None:
    arguments = PartialArguments(Room())
    assert arguments.add("$.a", "x") == '{"a":"x'
    assert arguments.add("$.a", "") == ""
    assert arguments.add("$.a", 'y"\n') == 'y\\"\\n'
    assert arguments.add("$.a", 1) is None
    assert arguments.add("$.b.c", True) == '","b":{"c":true'
    assert arguments.close() == "}}"
