"""The official packages with their base URL at the sidecar.

Through native they see exactly what they see without it, and typed tells what they read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest
from botocore.exceptions import ClientError
from cohere.core.api_error import ApiError
from google import genai
from google.genai import _interactions as interactions
from google.genai import errors as google_errors
from google.genai import types
from huggingface_hub.errors import GenerationError, IncompleteGenerationError, TextGenerationError

from sidecar import simulator
from sidecar.settings import Address
from sidecar.simulator import Behaviour
from tests.app_support import ANY_PORT, answering, asked, before, on_uvloop, plain, request
from tests.dialect_reading import Summary
from tests.official_bedrock import bedrock_client, converse_stream, invoke_stream
from tests.official_others import cohere_client, cohere_events, hugging_face_client, hugging_face_tokens
from tests.replays import Recording, handmade, recorded, replaying
from tests.test_dialects_recordings import NARROWED, PACKAGES

Ask = Callable[[], Iterable[Any]]
PACKAGED = {
    "openai-chat",
    "openai-completions",
    "openai-responses",
    "anthropic",
    "ollama-chat",
    "ollama-generate",
    "gemini",
    "gemini-interactions",
    "bedrock-converse",
    "bedrock-invoke",
    "cohere",
    "tgi",
}
SIMULATED = ("openai-chat", "anthropic", "ollama-chat", "ollama-generate")
ERRORS = (
    openai.APIError,
    anthropic.APIError,
    ollama.ResponseError,
    google_errors.APIError,
    google_errors.UnknownApiResponseError,  # the package reads no arrays
    ClientError,
    TextGenerationError,
)


class Packages:
    """The packages' clients of one base URL."""

    def __init__(self, address: Address, stack: ExitStack) -> None:
        base = f"http://{address}"
        http = stack.enter_context(httpx2.Client(trust_env=False))
        self.openai = openai.OpenAI(api_key="k", base_url=f"{base}/v1", http_client=http, max_retries=0)
        self.anthropic = anthropic.Anthropic(api_key="k", base_url=base, http_client=http, max_retries=0)
        self.ollama = ollama.Client(host=base, trust_env=False)
        stack.callback(self.ollama._client.close)
        older_http = stack.enter_context(httpx.Client(trust_env=False))
        options = types.HttpOptions(
            base_url=base, httpx_client=older_http, retry_options=types.HttpRetryOptions(attempts=1)
        )
        self.google = genai.Client(api_key="k", http_options=options)
        self.bedrock = stack.enter_context(bedrock_client(base))
        self.cohere = cohere_client(base, older_http)
        session = hugging_face_client(f"{base}/generate_stream", lambda: httpx2.Client(trust_env=False))
        self.hugging_face = stack.enter_context(session)

    def ask(self, dialect: str) -> Ask:
        """What streams an answer of this dialect."""
        messages: list[Any] = [{"role": "user", "content": "hi"}]
        asks: dict[str, Ask] = {
            "openai-chat": lambda: self.openai.chat.completions.create(model="m", messages=messages, stream=True),
            "openai-completions": lambda: self.openai.completions.create(model="m", prompt="hi", stream=True),
            "openai-responses": lambda: self.openai.responses.create(model="m", input="hi", stream=True),
            "anthropic": lambda: self.anthropic.beta.messages.create(
                model="m", messages=messages, max_tokens=9, stream=True
            ),
            "ollama-chat": lambda: self.ollama.chat(model="m", messages=messages, stream=True),
            "ollama-generate": lambda: self.ollama.generate(model="m", prompt="hi", stream=True),
            "gemini": lambda: self.google.models.generate_content_stream(model="m", contents="hi"),
            "gemini-interactions": lambda: self.google.interactions.create(model="m", input="hi", stream=True),
            "bedrock-converse": lambda: converse_stream(self.bedrock),
            "bedrock-invoke": lambda: invoke_stream(self.bedrock),
            "cohere": lambda: cohere_events(self.cohere),
            "tgi": lambda: hugging_face_tokens(self.hugging_face),
        }
        assert asks.keys() == PACKAGED
        return asks[dialect]


@contextmanager
def packages(address: Address) -> Iterator[Packages]:
    with ExitStack() as stack:
        yield Packages(address, stack)


def fields_of(part: Any) -> dict[str, Any]:
    """Whatever kind of object a package hands out."""
    if isinstance(part, dict):
        return part
    fields: dict[str, Any] = part.model_dump(warnings=False) if hasattr(part, "model_dump") else asdict(part)
    fields.pop("sdk_http_response", None)  # the answer's head, which is ours
    return fields


def seen(ask: Ask) -> list[Any]:
    """Every object a package hands out, and the error it raises."""
    objects: list[Any] = []
    try:
        for part in ask():
            objects.append((type(part).__name__, fields_of(part)))  # noqa: PERF401 - the error keeps what came before
    except ERRORS as error:
        objects.append((type(error).__name__, str(error), getattr(error, "body", None)))
    return objects


async def check_native(recordings: Iterable[Recording]) -> None:
    async with replaying() as replay, before(replay.address) as app:
        with packages(app.address) as through, packages(replay.address) as direct:
            for number, recording in enumerate(each for each in recordings if each.dialect in PACKAGED):
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
            ours, theirs = summary(reply.events()), PACKAGES[recording.dialect](recording.body)
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
    if recording.dialect in NARROWED:
        NARROWED[recording.dialect](ours)
    ours_calls = [call for _, call in sorted(ours.calls.items())]
    theirs_calls = [call for _, call in sorted(theirs.calls.items())]
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
            with pytest.raises(google_errors.ServerError) as google_error:
                await asyncio.to_thread(lambda: list(through.ask("gemini")()))
            with pytest.raises(interactions.InternalServerError) as interactions_error:
                await asyncio.to_thread(lambda: list(through.ask("gemini-interactions")()))
            with pytest.raises(ApiError) as cohere_error:
                await asyncio.to_thread(lambda: list(through.ask("cohere")()))
            with pytest.raises(GenerationError) as hugging_face_error:
                await asyncio.to_thread(lambda: list(through.ask("tgi")()))
    message = "the upstream answered a stream request with text/html"
    assert (openai_error.value.status_code, openai_error.value.code) == (502, "upstream_not_a_stream")
    assert message in openai_error.value.message
    assert isinstance(anthropic_error.value.body, dict)
    assert anthropic_error.value.body["error"] == {"type": "api_error", "message": message}
    assert (ollama_error.value.status_code, ollama_error.value.error) == (502, message)
    google_said = (google_error.value.code, google_error.value.status, google_error.value.message)
    assert google_said == (502, "UNAVAILABLE", message)
    assert message in str(interactions_error.value)
    assert (cohere_error.value.status_code, cohere_error.value.body["message"]) == (502, message)
    assert str(hugging_face_error.value) == message


BROKEN = {
    "openai-chat": b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"a"}}]}\n\ndata: {"id":',
    "openai-completions": b'data: {"id":"c1","choices":[{"index":0,"text":"a"}]}\n\ndata: {"id":',
    "openai-responses": b'data: {"type":"response.output_text.delta","output_index":0,"delta":"a"}\n\nevent: resp',
}


@pytest.mark.parametrize("dialect", BROKEN)
@on_uvloop
async def test_openai_package_raises_where_a_native_stream_breaks_off(dialect: str) -> None:
    recording = Recording("broken", dialect, BROKEN[dialect])
    async with replaying() as replay, before(replay.address) as app:
        replay.answer = recording.answer()
        with packages(app.address) as through:
            got = await asyncio.to_thread(seen, through.ask(dialect))
        assert "'a'" in str(got[0][1])
        assert got[-1][0] == "APIError"
        assert got[-1][2]["code"] == "upstream_truncated"


@on_uvloop
async def test_hugging_faces_package_raises_where_a_native_stream_breaks_off() -> None:
    body = (
        b'data: {"index":1,"token":{"id":1,"text":"a","logprob":-0.5,"special":false},"generated_text":null}\n\ndata:'
    )
    recording = Recording("broken", "tgi", body)
    async with replaying() as replay, before(replay.address) as app:
        replay.answer = recording.answer()
        with packages(app.address) as through:
            got = await asyncio.to_thread(seen, through.ask("tgi"))
    assert got[0][1]["token"]["text"] == "a"
    assert got[-1][0] == IncompleteGenerationError.__name__


@on_uvloop
async def test_coheres_package_is_told_of_an_error_where_a_native_stream_breaks_off() -> None:
    delta = b'data: {"type":"content-delta","index":0,"delta":{"message":{"content":{"text":"a"}}}}\n\n'
    recording = Recording("broken", "cohere", delta + delta[:40])
    async with replaying() as replay, before(replay.address) as app:
        replay.answer = recording.answer()
        with packages(app.address) as through:
            got: list[Any] = []
            with pytest.raises(httpx.RemoteProtocolError):
                await asyncio.to_thread(lambda: got.extend(through.ask("cohere")()))
    assert [event.type for event in got] == ["content-delta", "message-end"]
    assert got[1].delta.error == "the upstream's stream ended before its end mark"
