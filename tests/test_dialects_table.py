"""The published page of dialects is what the code reads, and every dialect has streams to be known by."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.dialects import DIALECTS
from sidecar.dialects.table import read_all, render, streams_in
from sidecar.events import Extension, Finish, Token, ToolCall, UpstreamError, Usage
from tests.dialect_reading import FIXTURES

PUBLISHED = Path(__file__).parent.parent / "docs" / "dialects.md"


def test_published_page_is_the_generated_one() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == render(streams_in(FIXTURES)), (
        "run: python -m sidecar.dialects.table > docs/dialects.md"
    )


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_has_handmade_streams(name: str) -> None:
    reading = read_all(streams_in(FIXTURES))[name]
    assert reading.kinds & {Token, ToolCall, Extension}
    assert reading.ends
    if not DIALECTS[name].paths and not name.endswith("-accumulated"):
        assert not reading.is_recognised


def test_nothing_stands_in_the_page_that_no_stream_shows() -> None:
    nothing, *_ = read_all([]).values()
    assert (nothing.kinds, nothing.has_logprobs, nothing.is_recognised, nothing.ends) == (set(), False, False, set())
    end = b'{"type":"message-end","delta":{"finish_reason":"COMPLETE"}}'
    body = b'data: {"type":"message-start","id":"m"}\n\ndata: ' + end + b"\n\n"
    reading = read_all([("cohere", "sse", body)])["cohere"]
    assert reading.kinds >= {Finish}
    assert not reading.kinds & {Token, Usage, UpstreamError}
    assert (reading.is_recognised, reading.ends) == (True, {"finish marks"})


def test_the_framing_is_told_by_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "openai-chat").mkdir()
    for suffix in ("sse", "odd"):
        (tmp_path / "openai-chat" / f"a.{suffix}").write_bytes(b"data: [DONE]\n\n")
    assert [framing for _, framing, _ in streams_in(tmp_path)] == ["sse", "sse"]
