"""The sidecar before llmock, which fails in ways of its own: nothing is left, and nobody is deceived."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from sidecar.app import App
from sidecar.settings import KIB, Limits, Match, Route
from tests.app_support import MESSAGES, Reply, on_uvloop, running, settings_for, upstream_at
from tests.chaos.answers import says_error
from tests.chaos.arrangements import TIMEOUTS
from tests.chaos.clients import Visitor
from tests.chaos.ledger import Got, Ledger
from tests.chaos.oracle import Witness, bugs_of, left_over
from tests.chaos.rounds import Round, let_visit, on_a_loop_of_its_own, settle
from tests.llmock_server import Llmock, echo_of, running_llmock

VISITS = 150
SEED = 5
FAULTS = [
    *("--error-rate", "429=0.05", "--error-rate", "500=0.05", "--error-rate", "503=0.05"),
    *("--stream-fault", "disconnect=0.1", "--stream-fault", "truncate=0.1"),
    *("--stream-fault", "malformed=0.1", "--stream-fault", "stall=0.03", "--stream-chunk-delay-ms", "2"),
]
QUESTION = "what is a sidecar"

pytestmark = pytest.mark.usefixtures("llmock_installed")


def before(llmock: Llmock, witness: Witness | None = None) -> AbstractAsyncContextManager[App]:
    """An app before llmock, which has its Anthropic API below a path of its own."""
    upstreams = [
        upstream_at(llmock.address, "openai", timeouts=TIMEOUTS),
        upstream_at(llmock.address, "anthropic", timeouts=TIMEOUTS, base_path="/anthropic"),
    ]
    limits = Limits(buffer_bytes=64 * KIB, stall_timeout_s=1.0)
    routes = [
        Route("anthropic", ("anthropic",), Match(f"{MESSAGES}/**"), limits=limits),
        Route("anthropic-messages", ("anthropic",), Match(MESSAGES), limits=limits),
        Route("rest", ("openai",), limits=limits),
    ]
    return running(settings_for(*upstreams, routes=routes), observer=witness)


# The clients of the chaos run.


def test_a_round_of_chaos_before_llmock(tmp_path: Path) -> None:
    played, ledger, witness = Round(SEED), Ledger(), Witness()

    async def play(llmock: Llmock) -> None:
        async with before(llmock, witness) as app:
            always = left_over(app)
            visitors = [Visitor(number, SEED, app.address, ledger) for number in range(VISITS)]
            await let_visit(visitors, played)
            await settle(app, always, [], played)

    with running_llmock(tmp_path, FAULTS) as llmock:
        on_a_loop_of_its_own(lambda: play(llmock), played)
    played.broken += bugs_of(witness)
    whole = [got for got in ledger.got if looks_complete(got)]
    played.broken += [f"FALSE COMPLETION: {got}" for got in whole if not is_complete(got)]
    assert played.broken == []
    assert len(whole) > VISITS / 5


def looks_complete(got: Got) -> bool:
    """Whether a client takes it for a whole answer: the body's own end, and `done.status` where it is typed."""
    if got.kind != "stream" or got.status != 200 or not got.is_whole or got.is_until_close:
        return False
    if got.format == "typed":
        name, data = Reply(200, "", [], b"", [got.answer]).events()[-1]
        return name == "done" and data["status"] == "completed"
    return not says_error(got.answer)


def is_complete(got: Got) -> bool:
    """Whether it tells all that llmock was to say, but for the text of one frame that llmock itself cut in half."""
    said, broken = "", 0
    for text in texts_of(got):
        said += text or ""
        broken += text is None
    wanted = echo_of(json.loads(got.body)["messages"][0]["content"])
    lost = len(wanted) - len(said) if broken == 1 else 0
    return any(said == wanted[:at] + wanted[at + lost :] for at in range(len(said) + 1))


def texts_of(got: Got) -> Iterator[str | None]:
    """The pieces of text in an answer, None for a frame that is no JSON."""
    if got.format == "typed":
        for name, data in Reply(200, "", [], b"", [got.answer]).events():
            if name == "token":
                yield data["text"]
            elif name == "extension" and isinstance(data["data"], str):
                yield None
        return
    for line in got.answer.decode().split("\n"):
        if line.startswith("data: ") and line != "data: [DONE]":
            try:
                said = json.loads(line[6:])
            except ValueError:
                yield None
            else:
                choices = said.get("choices") or [said]
                delta: dict[str, Any] = choices[0].get("delta") or {}
                yield delta.get("content") or delta.get("text") or ""


# The official packages, which read a stream that ends too early as if nothing were amiss.


def ask_openai(url: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="sk-test", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": QUESTION}]
        chunks = client.chat.completions.create(model="m", messages=messages, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def ask_anthropic(url: str) -> str:
    with anthropic.Anthropic(base_url=url, api_key="sk-test", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": QUESTION}]
        events = client.messages.create(model="m", max_tokens=100, messages=messages, stream=True)
        return "".join(getattr(event.delta, "text", "") for event in events if event.type == "content_block_delta")


Ask = Callable[[str], str]
PACKAGES = pytest.mark.parametrize(
    ("ask", "path", "error"),
    [(ask_openai, "", openai.APIError), (ask_anthropic, "/anthropic", anthropic.APIError)],
    ids=["openai", "anthropic"],
)


@PACKAGES
@on_uvloop
async def test_an_official_package_reads_llmock_through_the_sidecar(
    ask: Ask, path: str, error: type[Exception], tmp_path: Path
) -> None:
    with running_llmock(tmp_path) as llmock:
        async with before(llmock) as app:
            assert await asyncio.to_thread(ask, f"http://{app.address}") == echo_of(QUESTION)
            llmock.do_next({"type": "fail", "status": 503})
            with pytest.raises(error) as refused:
                await asyncio.to_thread(ask, f"http://{app.address}")
            assert getattr(refused.value, "status_code", None) == 503


@PACKAGES
@on_uvloop
async def test_a_cut_that_a_package_does_not_notice_raises_through_the_sidecar(
    ask: Ask, path: str, error: type[Exception], tmp_path: Path
) -> None:
    cut = {"type": "stream_fault", "kind": "truncate", "after_chunks": 4}
    with running_llmock(tmp_path) as llmock:
        llmock.do_next(cut)
        unnoticed = await asyncio.to_thread(ask, f"http://{llmock.address}{path}")
        assert len(unnoticed) < len(echo_of(QUESTION))
        async with before(llmock) as app:
            llmock.do_next(cut)
            with pytest.raises(error):
                await asyncio.to_thread(ask, f"http://{app.address}")
