"""The official packages with their base URL at the sidecar.

Through native they see exactly what they see without it, and typed tells what they read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import ollama
import openai
import pytest
from botocore.exceptions import ClientError

from sidecar import simulator
from sidecar.settings import Address
from sidecar.simulator import Behaviour
from tests.app_support import ANY_PORT, CHAT, answering, asked, before, on_uvloop, plain, request
from tests.dialect_reading import Summary
from tests.official_bedrock import bedrock_client, converse_stream, invoke_stream, read_converse, read_invoke
from tests.official_packages import read_anthropic, read_ollama_chat, read_ollama_generate, read_openai
from tests.replays import Recording, handmade, recorded, replaying

Ask = Callable[[], Iterable[Any]]
READERS = {
    "openai-chat": read_openai,
    "anthropic": read_anthropic,
    "ollama-chat": read_ollama_chat,
    "ollama-generate": read_ollama_generate,
    "bedrock-converse": read_converse,
    "bedrock-invoke": read_invoke,
}
SIMULATED = ["openai-chat", "anthropic", "ollama-chat", "ollama-generate"]


class Packages:
    """The packages' clients of one base URL."""

    def __init__(self, address: Address, stack: ExitStack) -> None:
        base = f"http://{address}"
        http = stack.enter_context(httpx2.Client(trust_env=False))
        self.openai = openai.OpenAI(api_key="k", base_url=f"{base}/v1", http_client=http, max_retries=0)
        self.anthropic = anthropic.Anthropic(api_key="k", base_url=base, http_client=http, max_retries=0)
        self.ollama = ollama.Client(host=base, trust_env=False)
        stack.callback(self.ollama._client.close)
        self.bedrock = stack.enter_context(bedrock_client(base))

    def ask(self, dialect: str) -> Ask:
        """What streams an answer of this dialect."""
        messages: list[Any] = [{"role": "user", "content": "hi"}]
        asks: dict[str, Ask] = {
            "openai-chat": lambda: self.openai.chat.completions.create(model="m", messages=messages, stream=True),
            "anthropic": lambda: self.anthropic.beta.messages.create(
                model="m", messages=messages, max_tokens=9, stream=True
            ),
            "ollama-chat": lambda: self.ollama.chat(model="m", messages=messages, stream=True),
            "ollama-generate": lambda: self.ollama.generate(model="m", prompt="hi", stream=True),
            "bedrock-converse": lambda: converse_stream(self.bedrock),
            "bedrock-invoke": lambda: invoke_stream(self.bedrock),
        }
        return asks[dialect]


@contextmanager
def packages(address: Address) -> Iterator[Packages]:
    with ExitStack() as stack:
        yield Packages(address, stack)


def seen(ask: Ask) -> list[Any]:
    """Every object a package hands out, and the error it raises."""
    objects: list[Any] = []
    try:
        for part in ask():
            told = part if isinstance(part, dict) else part.model_dump(warnings=False)
            objects.append((type(part).__name__, told))
    except (openai.APIError, anthropic.APIError, ollama.ResponseError, ClientError) as error:
        objects.append((type(error).__name__, str(error), getattr(error, "body", None)))
    return objects


async def check_native(recordings: Iterable[Recording]) -> None:
    async with replaying() as replay, before(replay.address) as app:
        with packages(app.address) as through, packages(replay.address) as direct:
            for number, recording in enumerate(recordings):
                replay.answer = recording.answer(recording.random_cuts(number))
                expected = await asyncio.to_thread(seen, direct.ask(recording.dialect))
                assert expected, recording.name
                assert await asyncio.to_thread(seen, through.ask(recording.dialect)) == expected, recording.name


async def check_typed(recordings: Iterable[Recording]) -> None:
    async with replaying() as replay, before(replay.address, route={"format": "typed"}) as app:
        for number, recording in enumerate(recordings):
            replay.answer = recording.answer(recording.random_cuts(number))
            headers = [("Content-Type", "application/json")]
            reply = await asked(app, request("POST", recording.path, b'{"model":"m","stream":true}', headers))
            ours, theirs = summary(reply.events()), READERS[recording.dialect](recording.body)
            compare(recording, ours, theirs)


def summary(events: list[tuple[str, Any]]) -> Summary:
    """What a user of a typed stream is left with."""
    told = Summary()
    texts = {"token": told.text, "reasoning": told.reasoning, "refusal": told.refusal}
    for name, data in events:
        if name in texts:
            told.add_text(texts[name], data["index"], data["text"])
        elif name == "tool_call":
            call = told.calls.setdefault((data["index"], data["call"]), ["", "", ""])
            call[0], call[1] = data.get("id", call[0]), data.get("name", call[1])
            call[2] += data["arguments"]
        elif name == "usage":
            told.usage = data["native"]
        elif name == "error":
            told.error = told.error or data["message"]
        elif name == "done":
            told.finish = {each["index"]: each["native"] for each in data["finish_reasons"]}
    return told


def compare(recording: Recording, ours: Summary, theirs: Summary) -> None:
    if theirs.error is not None:
        # The package raises before it hands out what else the failing chunk held.
        assert ours.error == theirs.error, recording.name
        assert ours.text.get(0, "").startswith(theirs.text.get(0, "")), recording.name
        assert ours.reasoning == theirs.reasoning, recording.name
        return
    ours_calls = [call for _, call in sorted(ours.calls.items())]
    theirs_calls = [call for _, call in sorted(theirs.calls.items())]
    if recording.dialect.startswith("ollama"):
        # This package hands out neither a call's id nor counts other than these two.
        ours_calls = [["", *call[1:]] for call in ours_calls]
        ours.usage = ours.usage and (ours.usage.get("prompt_eval_count"), ours.usage.get("eval_count"))
    if recording.dialect == "bedrock-converse" and ours.usage:
        ours.usage.pop("serverToolUsage", None)  # this package's model of the service does not know it yet
    assert ours_calls == theirs_calls, recording.name
    ours.calls = theirs.calls
    assert ours == theirs, recording.name


@on_uvloop
async def test_handmade_streams_through_native() -> None:
    await check_native(handmade())


@on_uvloop
async def test_recorded_streams_through_native(streams_dir: Path) -> None:
    await check_native(recorded(streams_dir))


@on_uvloop
async def test_handmade_streams_in_typed() -> None:
    await check_typed(handmade())


@on_uvloop
async def test_recorded_streams_in_typed(streams_dir: Path) -> None:
    await check_typed(recorded(streams_dir))


@pytest.mark.parametrize("dialect", SIMULATED)
@on_uvloop
async def test_simulated_streams_through_native(dialect: str) -> None:
    server = await simulator.serve(ANY_PORT, Behaviour(tokens=5))
    try:
        async with before(server.address) as app:
            with packages(app.address) as through:
                parts = await asyncio.to_thread(seen, through.ask(dialect))
        assert len(parts) >= 6
        assert not any("Error" in part[0] for part in parts)
    finally:
        await server.close()


@on_uvloop
async def test_packages_raise_their_own_errors_for_refusals() -> None:
    """Our own HTTP errors have the shape each package reads."""
    page = plain(b"<html>", headers=[("Content-Type", "text/html")])
    async with answering(page) as upstream, before(upstream.address) as app:
        with packages(app.address) as through:
            with pytest.raises(openai.InternalServerError) as openai_error:
                await asyncio.to_thread(lambda: list(through.ask("openai-chat")()))
            with pytest.raises(anthropic.InternalServerError) as anthropic_error:
                await asyncio.to_thread(lambda: list(through.ask("anthropic")()))
            with pytest.raises(ollama.ResponseError) as ollama_error:
                await asyncio.to_thread(lambda: list(through.ask("ollama-chat")()))
    message = "the upstream answered a stream request with text/html"
    assert (openai_error.value.status_code, openai_error.value.code) == (502, "upstream_not_a_stream")
    assert message in openai_error.value.message
    assert isinstance(anthropic_error.value.body, dict)
    assert anthropic_error.value.body["error"] == {"type": "api_error", "message": message}
    assert (ollama_error.value.status_code, ollama_error.value.error) == (502, message)


BROKEN = b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: {"id":'


@on_uvloop
async def test_openai_package_raises_where_a_native_stream_breaks_off() -> None:
    recording = Recording("broken", "openai-chat", BROKEN)
    async with replaying() as replay, before(replay.address) as app:
        replay.answer = recording.answer()
        with packages(app.address) as through:
            got = await asyncio.to_thread(seen, through.ask("openai-chat"))
        assert got[0][1]["choices"][0]["delta"]["content"] == "a"
        assert got[-1][0] == "APIError"
        assert got[-1][2]["code"] == "upstream_truncated"
        assert recording.path == CHAT
