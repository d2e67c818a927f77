"""Whole streams, handmade and recorded, against what the official packages read from the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.dialects import DIALECTS
from sidecar.framing import make_framing
from tests.dialect_reading import (
    END_MARKS,
    MAX_FRAME_BYTES,
    OPENAI_END_MARKS,
    Summary,
    body_of,
    framing_in,
    handmade_streams,
    only_start_first,
    read,
    summarise,
)
from tests.official_bedrock import end_offsets_in_messages, narrow_to_bedrock_user, read_converse, read_invoke
from tests.official_google import narrow_to_google_user, narrow_to_interactions_user, read_gemini, read_interactions
from tests.official_openai import read_completions, read_responses
from tests.official_others import (
    narrow_to_hugging_face_user,
    read_cohere,
    read_llamacpp,
    read_replicate,
    read_sglang,
    read_tgi,
    read_triton,
    read_triton_accumulated,
)
from tests.official_packages import read_anthropic, read_ollama_chat, read_ollama_generate, read_openai

RECORDED = {
    "openai-chat": ("openai-chat/*", "openai-compatible/*", "tgi/chat*"),
    "openai-completions": ("openai-completions/*",),
    "openai-responses": ("openai-responses/*", "synthetic/openai_responses*"),
    "anthropic": ("anthropic/*", "synthetic/anthropic*"),
    "ollama-chat": ("ollama/*", "synthetic/ollama*"),
    "gemini": ("gemini/*",),
    "gemini-interactions": ("gemini-interactions/*",),
    "bedrock-converse": ("bedrock/converse*", "synthetic/bedrock_exception*", "synthetic/bedrock_unmodeled*"),
    "bedrock-invoke": ("bedrock/invoke*",),
    "cohere": ("cohere-v2/*_payloads.ndjson", "cohere-v2/*.sse", "synthetic/cohere*"),
    "triton": ("synthetic/triton*", "synthetic/kserve*"),
    "tgi": ("tgi/generate*", "synthetic/tgi_validation*"),
    "llamacpp": ("synthetic/llamacpp_completion*",),
    "sglang": ("synthetic/sglang_*generate*",),
    "replicate": ("sse-parsing/replicate*",),
}
SYNTHETIC_OPENAI = (
    "azure_async_filter",
    "deepseek_keepalive_comments",
    "llamacpp_chat_ping_then_error_no_done",
    "openai_chat_audio",
    "openai_chat_error_midstream",
    "openrouter_error_finish_error",
    "perplexity_concise",
    "sglang_error_then_done",
    "sglang_named_ids_event",
    "tgi_chat_error_then_done",
    "vllm_error_then_done",
)
MAX_CUTS = 100
"""Cuts tried in one body, evenly spread."""
HANDMADE = handmade_streams()


def _recorded(streams_dir: Path) -> list[tuple[str, Path]]:
    globs = [(name, glob) for name, globs in RECORDED.items() for glob in globs]
    found = [(name, path) for name, glob in globs for path in sorted(streams_dir.glob(glob))]
    found += [("openai-chat", streams_dir / "synthetic" / f"{stem}.sse") for stem in SYNTHETIC_OPENAI]
    assert len(found) > 50
    return found


def _check_split_independence(name: str, body: bytes) -> None:
    framing = framing_in(name, body)
    whole, _ = read(name, [body], framing)
    single, _ = read(name, [body[at : at + 1] for at in range(len(body))], framing)
    odd, _ = read(name, [body[at : at + 37] for at in range(0, len(body), 37)], framing)
    assert whole == single == odd
    assert only_start_first(whole)


def _check_cuts(name: str, body: bytes) -> None:
    """Fed byte by byte, a stream may call itself ended only once the bytes that say so have come."""
    dialect = DIALECTS[name]()
    framing = make_framing(framing_in(name, body), MAX_FRAME_BYTES, strict=True)
    finish_at, terminator_at = end_offsets(name, body)
    for at in range(len(body)):
        for frame in framing.feed(body[at : at + 1]):
            if frame.data is not None:
                dialect.decode(frame)
        assert not dialect.is_finished or at >= finish_at
        assert not dialect.terminated or at >= terminator_at


def _check_cut_bodies(name: str, body: bytes) -> None:
    """Cut anywhere and closed, a stream is no more ended than the bytes it had."""
    finish_at, terminator_at = end_offsets(name, body)
    for cut in range(0, len(body), max(1, len(body) // MAX_CUTS)):
        _, dialect = read(name, [body[:cut]], framing_in(name, body))
        assert not dialect.is_finished or cut > finish_at
        assert not dialect.terminated or cut > terminator_at


def end_offsets(name: str, body: bytes) -> tuple[int, int]:
    """Where the first finish word and the terminator's word begin (the body's end where there is none)."""
    if name.startswith("bedrock"):  # whose words are coded within its messages
        return end_offsets_in_messages(body)
    finish, terminator = (mark.search(body) for mark in END_MARKS.get(name, OPENAI_END_MARKS))
    return finish.start() if finish else len(body), terminator.start() if terminator else len(body)


def _check_against_package(name: str, body: bytes) -> None:
    events, _ = read(name, [body], framing_in(name, body))
    ours, theirs = summarise(events), PACKAGES[name](body)
    if theirs.error is not None:
        # The package raises before it hands out what else the failing chunk held.
        assert ours.error == theirs.error
        assert ours.text.get(0, "").startswith(theirs.text.get(0, ""))
        assert ours.reasoning == theirs.reasoning
        return
    if name in NARROWED:
        NARROWED[name](ours)
    ours.calls = _renumbered(ours)
    theirs.calls = _renumbered(theirs)
    assert ours == theirs


def _narrow_to_ollama_user(summary: Summary) -> None:
    """The package hands out neither a call's id nor counts other than these two."""
    for call in summary.calls.values():
        call[0] = ""
    summary.usage = (summary.usage.get("prompt_eval_count"), summary.usage.get("eval_count")) if summary.usage else None


def _renumbered(summary: Summary) -> dict[tuple[int, int], list[str]]:
    """Calls in order from 0: the package keeps the upstream's own numbers."""
    ordered = [call for _, call in sorted(summary.calls.items())]
    return {(0, number): call for number, call in enumerate(ordered)}


PACKAGES: dict[str, Callable[[bytes], Summary]] = {
    "openai-chat": read_openai,
    "openai-completions": read_completions,
    "openai-responses": read_responses,
    "anthropic": read_anthropic,
    "ollama-chat": read_ollama_chat,
    "ollama-generate": read_ollama_generate,
    "gemini": read_gemini,
    "gemini-interactions": read_interactions,
    "bedrock-converse": read_converse,
    "bedrock-invoke": read_invoke,
    "cohere": read_cohere,
    "triton": read_triton,
    "triton-accumulated": read_triton_accumulated,
    "tgi": read_tgi,
    "llamacpp": read_llamacpp,
    "sglang": read_sglang,
    "replicate": read_replicate,
}
NARROWED: dict[str, Callable[[Summary], None]] = {
    "ollama-chat": _narrow_to_ollama_user,
    "ollama-generate": _narrow_to_ollama_user,
    "gemini": narrow_to_google_user,
    "gemini-interactions": narrow_to_interactions_user,
    "bedrock-converse": narrow_to_bedrock_user,
    "tgi": narrow_to_hugging_face_user,
}
"""Takes out of our summary what a package does not hand out."""
CHECKS = [_check_split_independence, _check_cuts, _check_cut_bodies, _check_against_package]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("name", "path"), HANDMADE, ids=[path.name for _, path in HANDMADE])
def test_handmade_streams(check: Callable[[str, bytes], None], name: str, path: Path) -> None:
    check(name, body_of(name, path))


@pytest.mark.parametrize("check", CHECKS)
def test_recorded_streams(check: Callable[[str, bytes], None], streams_dir: Path) -> None:
    for name, path in _recorded(streams_dir):
        try:
            check(name, body_of(name, path))
        except AssertionError as error:
            error.add_note(f"in {path.name}")
            raise


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_split_gives_the_same_events(data: st.DataObject) -> None:
    name, path = data.draw(st.sampled_from(HANDMADE))
    body = body_of(name, path)
    framing = framing_in(name, body)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(body)), max_size=20)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    assert read(name, [piece for piece in pieces if piece], framing)[0] == read(name, [body], framing)[0]
