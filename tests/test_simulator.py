"""The simulated upstream answers as real ones do, and fails exactly as it is told to."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import anthropic
import ollama
import openai
import pytest

from sidecar.settings import Address
from sidecar.simulator import Behaviour, SimulatorServer, serve
from sidecar.simulator.dialects.answer import texts
from sidecar.simulator.faults import adjusted

FIVE = Behaviour(tokens=5)
TEXT = "".join(texts(5))
OPENAI_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def simulator(behaviour: Behaviour = FIVE) -> AsyncIterator[SimulatorServer]:
    server = await serve(Address("127.0.0.1", 0), behaviour)
    try:
        yield server
    finally:
        await server.close()


@dataclass
class Reply:
    head: str
    body: bytes
    is_whole: bool
    """The body's own framing says that it is complete."""

    @property
    def status(self) -> int:
        return int(self.head.split(" ", 2)[1])


@asynccontextmanager
async def exchange(
    server: SimulatorServer, head: str, body: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which one request was sent."""
    where = server.address
    opening = (
        asyncio.open_unix_connection(where.path) if where.path else asyncio.open_connection(where.host, where.port)
    )
    reader, writer = await opening
    try:
        writer.write(f"{head}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lowered = head.lower()
    body = b""
    try:
        if "transfer-encoding: chunked" in lowered:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
        elif "content-length: " in lowered:
            body = await reader.readexactly(int(lowered.partition("content-length: ")[2].split("\r\n")[0]))
        else:
            return Reply(head, await reader.read(), is_whole=False)
    except asyncio.IncompleteReadError as error:
        return Reply(head, body + error.partial, is_whole=False)
    return Reply(head, body, is_whole=True)


async def ask(server: SimulatorServer, target: str, body: object = CHAT, method: str = "POST", *headers: str) -> Reply:
    head = "\r\n".join((f"{method} {target} HTTP/1.1", *headers))
    async with exchange(server, head, b"" if method == "GET" else json.dumps(body).encode()) as (reader, _):
        return await read_reply(reader)


# What the official packages read


@pytest.mark.asyncio
@pytest.mark.parametrize("with_tool", [False, True])
async def test_the_openai_package_reads_stream_and_whole_alike(with_tool: bool) -> None:
    async with simulator() as server, openai.AsyncOpenAI(base_url=f"http://{server.address}/v1", api_key="-") as client:
        tools = {"tools": [OPENAI_TOOL]} if with_tool else {}
        asked = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **tools}
        whole = await client.chat.completions.create(**asked)  # type: ignore[call-overload] # a dict of arguments
        stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload] # as above
        chunks = [chunk async for chunk in stream]
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    if with_tool:
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        expected = whole.choices[0].message.tool_calls[0]
        assert calls[0].function.name == expected.function.name == "look_up"
        assert "".join(call.function.arguments for call in calls) == expected.function.arguments
        assert json.loads(expected.function.arguments)["query"]
    else:
        assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content == TEXT


@pytest.mark.asyncio
@pytest.mark.parametrize("with_tool", [False, True])
async def test_the_anthropic_package_reads_stream_and_whole_alike(with_tool: bool) -> None:
    tools = {"tools": [{"name": "look_up", "input_schema": {"type": "object"}}]} if with_tool else {}
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **tools}
    async with (
        simulator() as server,
        anthropic.AsyncAnthropic(base_url=f"http://{server.address}", api_key="-") as client,
    ):
        whole = await client.messages.create(**asked)  # type: ignore[call-overload] # a dict of arguments
        async with client.messages.stream(**asked) as stream:  # type: ignore[arg-type] # as above
            streamed = await stream.get_final_message()
    assert streamed.content[0].type == ("tool_use" if with_tool else "text")
    assert streamed.to_dict(exclude_none=True) == whole.to_dict(exclude_none=True)


@pytest.mark.asyncio
async def test_the_ollama_package_reads_chat_generate_and_tools() -> None:
    async with simulator() as server:
        client = ollama.AsyncClient(host=f"http://{server.address}")
        messages = [{"role": "user", "content": "hi"}]
        chat = [part async for part in await client.chat(model="m", messages=messages, stream=True)]
        generated = [part async for part in await client.generate(model="m", prompt="hi", stream=True)]
        called = await client.chat(model="m", messages=messages, tools=[OPENAI_TOOL])
        await client._client.aclose()
    assert "".join(part.message.content or "" for part in chat) == TEXT
    assert (chat[-1].done, chat[-1].done_reason, chat[-1].eval_count) == (True, "stop", 5)
    assert "".join(part.response or "" for part in generated) == TEXT
    assert called.message.tool_calls is not None
    assert called.message.tool_calls[0].function.name == "look_up"


# Plain HTTP


@pytest.mark.asyncio
async def test_one_connection_serves_stream_listing_upload_and_error_in_turn() -> None:
    upload = bytes(range(256)) * 4096
    replies = []
    async with simulator() as server, exchange(server, "POST /raw HTTP/1.1", b"{}") as (reader, writer):
        replies.append(await read_reply(reader))
        for head, body in (
            ("GET /v1/models HTTP/1.1", b""),
            ("POST /upload HTTP/1.1\r\nExpect: 100-continue", upload),
            ("POST /v1/messages HTTP/1.1", b"{not json"),
            ("GET /nothing HTTP/1.1", b""),
        ):
            writer.write(f"{head}\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            if "Expect" in head:
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            replies.append(await read_reply(reader))
        assert server.open_connections == 1
        writer.close()
        await writer.wait_closed()
        await server.until(lambda: server.open_connections == 0)
    assert [reply.status for reply in replies] == [200, 200, 200, 400, 404]
    assert replies[0].body == TEXT.encode()
    assert json.loads(replies[1].body)["object"] == "list"
    assert json.loads(replies[2].body) == {"bytes": len(upload), "sha256": hashlib.sha256(upload).hexdigest()}
    assert json.loads(replies[3].body)["error"]["type"] == "invalid_request_error"
    assert server.cancelled == 0


@pytest.mark.asyncio
async def test_head_and_http_1_0_get_what_they_can_take() -> None:
    async with simulator() as server:
        async with exchange(server, "HEAD /v1/models HTTP/1.1\r\nConnection: close") as (reader, _):
            assert (await reader.read()).endswith(b"\r\n\r\n")
        async with exchange(server, "POST /raw HTTP/1.0", b"{}") as (reader, _):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body == TEXT.encode()


@pytest.mark.asyncio
async def test_broken_http_gets_400() -> None:
    async with simulator() as server, exchange(server, "\x00\x01\x02") as (reader, _):
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


@pytest.mark.asyncio
async def test_it_listens_on_unix_sockets(tmp_path: object) -> None:
    path = f"{tmp_path}/simulator"
    server = await serve(Address(path=path), FIVE)
    reply = await ask(server, "/api/tags", method="GET")
    await server.close()
    assert "models" in json.loads(reply.body)


# Faults


@pytest.mark.asyncio
@pytest.mark.parametrize("limit", [0, 1, 100])
async def test_a_cut_ends_the_body_after_exactly_that_many_bytes(limit: int) -> None:
    async with simulator() as server:
        full = await ask(server, "/v1/chat/completions")
        cut = await ask(server, f"/v1/chat/completions?simulate=cut_after_bytes:{limit}")
    assert full.is_whole
    assert not cut.is_whole
    assert cut.body == full.body[:limit]
    assert server.cancelled == 0


@pytest.mark.asyncio
async def test_a_reset_is_a_reset() -> None:
    async with simulator() as server:
        with pytest.raises(ConnectionResetError):
            await ask(server, "/v1/chat/completions", CHAT, "POST", "X-Simulate-Reset-After-Bytes: 100")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/v1/chat/completions", b"data: [DONE]\n\n"),
        ("/v1/messages", b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        ("/api/chat", None),
        ("/api/generate", None),
    ],
)
async def test_errors_malformed_frames_and_missing_terminators(path: str, last: bytes | None) -> None:
    async with simulator() as server:
        full = await ask(server, path)
        unended = await ask(server, f"{path}?simulate=no_done")
        broken = await ask(server, f"{path}?simulate=malformed_frame_at:2")
        failed = await ask(server, f"{path}?simulate=error_event_at:0")
        rejected = await ask(server, f"{path}?simulate=status:429")
    last = last or full.body.splitlines(keepends=True)[-1]
    assert full.body == unended.body + last
    assert len(broken.body) > len(full.body)
    assert broken.body.endswith(last)
    assert b"told to fail" in failed.body
    assert not failed.body.endswith(last)
    assert all(reply.is_whole for reply in (full, unended, broken, failed))
    assert rejected.status == 429
    assert "Retry-After: 1" in rejected.head
    assert "error" in json.loads(rejected.body)


@pytest.mark.asyncio
async def test_gzip_close_delimiting_html_garbage_size_and_volume() -> None:
    async with simulator() as server:
        plain = await ask(server, "/raw")
        zipped = await ask(server, "/raw?simulate=gzip")
        unframed = await ask(server, "/raw?simulate=close_delimited")
        page = await ask(server, "/raw?simulate=html")
        huge = await ask(server, "/raw?simulate=huge_frame_bytes:100000")
        much = await ask(server, "/raw?simulate=repeat_mib:2")
        async with exchange(server, "POST /raw?simulate=garbage HTTP/1.1", b"{}") as (reader, _):
            garbage = await reader.read()
    assert "Content-Encoding: gzip" in zipped.head
    assert gzip.decompress(zipped.body) == plain.body == unframed.body
    assert "Content-Length" not in unframed.head
    assert page.status == 200
    assert "text/html" in page.head
    assert huge.body.startswith(b"x" * 100_000)
    assert 2 * 1024**2 <= len(much.body) < 2 * 1024**2 + 128 * 1024
    assert not garbage.startswith(b"HTTP")
    assert server.bytes_sent > 2 * 1024**2


@pytest.mark.asyncio
@pytest.mark.parametrize("fault", ["stall_after_tokens:0", "stall_after_tokens:5", "first_token_delay_ms:1e9"])
@pytest.mark.parametrize("way", ["close", "half", "abort"])
async def test_a_departure_in_the_middle_is_counted(fault: str, way: str) -> None:
    head = f"POST /api/chat?simulate={fault} HTTP/1.1"
    async with simulator() as server, exchange(server, head, b"{}") as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        if way == "half":
            writer.write_eof()
        elif way == "abort":
            writer.transport.abort()
        else:
            writer.close()
        await server.until(lambda: server.cancelled == 1)
        assert server.open_connections == 0


@pytest.mark.asyncio
async def test_a_departure_before_the_headers_is_counted_and_close_counts_nothing() -> None:
    head = "POST /api/chat?simulate=slow_headers_ms:1e9 HTTP/1.1"
    async with simulator() as server:
        async with exchange(server, head, b"{}"):
            await server.until(lambda: server.open_exchanges == 1)
        await server.until(lambda: server.cancelled == 1)
        async with exchange(server, head, b"{}"):
            await server.until(lambda: server.open_exchanges == 1)
            await server.close()
    assert server.cancelled == 1
    assert server.open_connections == server.open_exchanges == 0


# Knobs


def test_the_query_outranks_the_headers_and_both_outrank_the_defaults() -> None:
    headers = {"x-simulate-tokens": "7", "x-simulate-no-done": "", "accept": "*/*"}
    told = adjusted(FIVE, headers, {"simulate": "tokens:9,interval-ms:1.5", "other": "1"})
    assert told == replace(FIVE, tokens=9, interval_ms=1.5, no_done=True)
    assert adjusted(FIVE, {}, {}) is FIVE


@pytest.mark.parametrize("bad", ["speed:1", "tokens:-1", "tokens:x", "interval_ms:nan", "html:maybe", "status:302"])
def test_a_bad_knob_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match=bad.partition(":")[0]):
        adjusted(FIVE, {}, {"simulate": bad})


@pytest.mark.asyncio
async def test_a_bad_knob_gets_400() -> None:
    async with simulator() as server:
        reply = await ask(server, "/raw?simulate=speed:1")
    assert reply.status == 400
    assert "unknown knob" in json.loads(reply.body)["error"]["message"]
