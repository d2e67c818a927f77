"""Raw text and unknown streams, and how a dialect is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.dialects import DIALECTS, make_dialect
from sidecar.dialects.recognition import Spoken, detect, dialect_of, streams_by_target
from sidecar.errors import Failure
from sidecar.events import Extension, Frame, Start, Token, UpstreamError
from sidecar.framing import FRAMINGS, framing_of, make_framing
from tests import aws_messages as aws
from tests.dialect_reading import MAX_FRAME_BYTES, error_frame, framing_in, handmade_streams, only_start_first, read


def test_raw_text_joins_characters_cut_in_two() -> None:
    body = "Grüß 世界 😄".encode()
    for size in (1, 2, 3, len(body)):
        events, dialect = read("raw", [body[at : at + size] for at in range(0, len(body), size)])
        assert "".join(event.text for event in events if isinstance(event, Token)) == body.decode()
        assert only_start_first(events)
        assert not dialect.is_finished
        assert not dialect.terminated


def test_raw_text_cut_for_good_ends_in_a_replacement_character() -> None:
    assert read("raw", [b"a\xe4\xb8"])[0] == [Start(), Token(0, "a"), Token(0, "\ufffd")]
    assert read("raw", [b"a\xffb"])[0] == [Start(), Token(0, "a\ufffdb")]


@pytest.mark.parametrize(
    ("data", "name", "extension"),
    [
        (b'{"type":"x","a":1}', None, Extension("x", {"type": "x", "a": 1})),
        (b'{"event_type":"step"}', None, Extension("step", {"event_type": "step"})),
        (b'{"object":"o"}', b"named", Extension("named", {"object": "o"})),
        (b"[1]", None, Extension("unknown", [1])),
        (b"Hello", b"output", Extension("output", "Hello")),
        (b"Hello", None, Extension("unparsed", "Hello")),
        (b"[DONE]", b"message", Extension("unparsed", "[DONE]")),
    ],
)
def test_unknown_streams_pass_frame_by_frame(data: bytes, name: bytes | None, extension: Extension) -> None:
    dialect = DIALECTS["opaque-sse"]()
    assert list(dialect.decode(Frame(data, data, name))) == [Start(), extension]
    assert list(dialect.decode(Frame(data, data, name))) == [extension]
    assert not dialect.is_finished
    assert not dialect.terminated


@pytest.mark.parametrize("name", ["opaque-sse", "opaque-ndjson"])
@pytest.mark.parametrize(
    ("data", "message", "native"),
    [
        (b'{"error":{"message":"m","code":502}}', "m", {"message": "m", "code": 502}),
        (b'{"status":"s","error":"m"}', "m", {"status": "s", "error": "m"}),
        (b'[{"error":{"message":"m"}}]', "m", {"message": "m"}),
        (b'{"error":null}', None, None),
    ],
)
def test_an_object_with_an_error_is_one_in_an_unknown_stream(
    name: str, data: bytes, message: str | None, native: Any
) -> None:
    events = list(DIALECTS[name]().decode(Frame(data, data)))
    errors = [event for event in events if isinstance(event, UpstreamError)]
    assert [(error.message, error.native) for error in errors] == ([(message, native)] if message else [])
    assert len(events) == 2


def test_only_streams_without_end_marks_complete_on_a_clean_end() -> None:
    completing = {name for name, kind in DIALECTS.items() if kind().completes_on_clean_end}
    assert completing == {"raw", "opaque-sse", "opaque-ndjson", "opaque-aws-event-stream"}
    assert {name: dialect.name for name, dialect in DIALECTS.items()} == {name: name for name in DIALECTS}
    assert {framing for kind in DIALECTS.values() for framing in kind.framings} == set(FRAMINGS)


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("raw", b""),
        ("opaque-sse", b'event: error\ndata: {"error":{"message":"m","code":"internal"}}\n\n'),
        ("opaque-ndjson", b'{"error":{"message":"m","code":"internal"}}\n'),
        ("opaque-aws-event-stream", aws.error("internal", "m")),
        ("bedrock-converse", aws.exception("internalServerException", {"message": "m"})),
        ("bedrock-invoke", aws.exception("internalServerException", {"message": "m"})),
    ],
)
def test_error_frames(name: str, frame: bytes) -> None:
    assert error_frame(name, Failure("internal", "m")) == frame


SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json; charset=UTF-8"
AWS = aws.EVENT_STREAM


@pytest.mark.parametrize(
    ("path", "content_type", "dialect"),
    [
        ("/v1/chat/completions", SSE, "openai-chat"),
        ("/openai/deployments/d/chat/completions?api-version=1", "Text/Event-Stream; charset=utf-8", "openai-chat"),
        ("/v1/chat/completions/", SSE, "openai-chat"),
        ("/v1/messages", SSE, "anthropic"),
        ("/v1/messages?beta=true", SSE, "anthropic"),
        ("/openai/v1/chat/completions", SSE, "openai-chat"),
        ("/v1/fim/completions", SSE, "openai-chat"),
        ("/v1/agents/completions", SSE, "openai-chat"),
        ("/v1/completions", SSE, "openai-completions"),
        ("/beta/completions", SSE, "openai-completions"),
        ("/openai/deployments/d/completions?api-version=1", SSE, "openai-completions"),
        ("/openai/v1/completions/", SSE, "openai-completions"),
        ("/v1/responses", SSE, "openai-responses"),
        ("/openai/responses?api-version=1", SSE, "openai-responses"),
        ("/openai/v1/responses", SSE, "openai-responses"),
        ("/v1/responses/resp_1?stream=true&starting_after=3", SSE, "openai-responses"),
        ("/v1/responses/resp_1", "application/json", None),
        ("/v1/responses/resp_1/input_items", SSE, "opaque-sse"),
        ("/other?x=/v1/messages", SSE, "opaque-sse"),
        ("/v2/chat", SSE, "cohere"),
        ("/v2/models/m/generate_stream", SSE, "triton"),
        ("/v2/models/m/versions/1/generate_stream", SSE, "triton"),
        ("/generate_stream", SSE, "opaque-sse"),
        ("/models/tgi/generate_stream", SSE, "opaque-sse"),
        ("/completion", SSE, "opaque-sse"),
        ("/completions", SSE, "opaque-sse"),
        ("/infill", SSE, "opaque-sse"),
        ("/generate", SSE, "opaque-sse"),
        ("/generate", "application/json", None),
        ("/v1/streams/abc123", SSE, "replicate"),
        ("/v1/streams/abc/123", SSE, "opaque-sse"),
        ("/v2/models/m/infer", SSE, "opaque-sse"),
        ("/api/chat", NDJSON, "ollama-chat"),
        ("/ollama/api/generate", "application/ndjson", "ollama-generate"),
        ("/v1/chat", "application/stream+json", "opaque-ndjson"),
        ("/x", "application/jsonl", "opaque-ndjson"),
        ("/x", "text/plain; charset=utf-8", "raw"),
        ("/v1beta/models/g:streamGenerateContent?alt=sse", SSE, "gemini"),
        ("/v1beta/models/g:streamGenerateContent", JSON, "gemini"),
        ("/v1/projects/p/locations/l/publishers/google/models/g:streamGenerateContent", JSON, "gemini"),
        ("/v1beta/models/g:generateContent", JSON, None),
        ("/v1beta/openai/chat/completions", SSE, "openai-chat"),
        ("/v1beta/interactions", SSE, "gemini-interactions"),
        ("/v1beta/interactions/v1_abc?stream=true&last_event_id=e3", SSE, "gemini-interactions"),
        ("/v1beta/interactions/v1_abc/cancel", SSE, "opaque-sse"),
        ("/v1beta/interactions", JSON, None),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/c:streamRawPredict", SSE, "anthropic"),
        ("/v1/projects/p/locations/l/publishers/mistralai/models/c:streamRawPredict", SSE, "opaque-sse"),
        ("/model/anthropic.claude-3:0/converse-stream", AWS, "bedrock-converse"),
        ("/model/arn:aws:bedrock:us-east-1:1:inference-profile%2Fx/converse-stream", AWS, "bedrock-converse"),
        ("/aws/model/meta.llama3-1:0/invoke-with-response-stream", AWS, "bedrock-invoke"),
        ("/model/m/converse", AWS, "opaque-aws-event-stream"),
        ("/model/m/n/converse-stream", AWS, "opaque-aws-event-stream"),
        ("/model/m/converse-stream", SSE, "opaque-sse"),
        ("/model/m/converse-stream", "application/json", None),
        ("/v1/chat/completions", "application/json", None),
        ("/v1/chat/completions", "text/html", None),
        ("/v1/chat/completions", "", None),
    ],
)
def test_auto_detection(path: str, content_type: str, dialect: str | None) -> None:
    spoken = detect(path, content_type, "auto")
    assert (spoken and spoken.dialect) == dialect


@pytest.mark.parametrize(
    ("content_type", "found"),
    [(SSE, "anthropic"), ("text/plain", "anthropic"), ("application/json", None), ("", None)],
)
def test_a_configured_dialect_wins_over_types_that_are_often_wrong(content_type: str, found: Any) -> None:
    assert detect("/anything", content_type, "anthropic") == (found and Spoken(found, "sse"))


@pytest.mark.parametrize(
    ("path", "configured", "content_type", "dialect"),
    [
        ("/v1beta/openai/chat/completions", "gemini", SSE, "openai-chat"),
        ("/v1beta/interactions", "gemini", SSE, "gemini-interactions"),
        ("/v1/projects/p/publishers/anthropic/models/c:streamRawPredict", "gemini", SSE, "anthropic"),
        ("/v1/projects/p/publishers/google/models/g:streamGenerateContent", "anthropic", JSON, "gemini"),
        ("/proxy/generate", "gemini", SSE, "gemini"),
        ("/completion", "bedrock-converse", aws.EVENT_STREAM, "bedrock-converse"),
        ("/v2/chat", "gemini", SSE, "cohere"),
        ("/completions", "llamacpp", SSE, "llamacpp"),
        ("/v1/completions", "llamacpp", SSE, "openai-completions"),
        ("/completions", "openai-completions", SSE, "openai-completions"),
        ("/completions", "replicate", SSE, "replicate"),
        ("/completion", "llamacpp", SSE, "llamacpp"),
        ("/proxy/generate", "sglang", SSE, "sglang"),
        ("/openai/v1/chat/completions", "triton", SSE, "openai-chat"),
        ("/openai/v1/completions", "triton-accumulated", SSE, "openai-completions"),
        ("/v2/models/m/generate_stream", "triton-accumulated", SSE, "triton-accumulated"),
        ("/v2/models/m/generate_stream", "openai-chat", SSE, "triton"),
        ("/v1/projects/p/publishers/mistralai/models/m:streamRawPredict", "openai-chat", SSE, "openai-chat"),
    ],
)
def test_what_one_server_answers_beside_a_configured_dialect(
    path: str, configured: str, content_type: str, dialect: str
) -> None:
    spoken = detect(path, content_type, configured)
    assert spoken is not None
    assert (spoken.dialect, spoken.is_certain) == (dialect, True)


@pytest.mark.parametrize(
    ("path", "configured", "content_type", "dialect"),
    [
        ("/v1/chat", "cohere", "application/stream+json", "opaque-ndjson"),
        ("/api/pull", "openai-chat", NDJSON, "opaque-ndjson"),
        ("/v1beta/models/g:streamGenerateContent", "gemini", NDJSON, "opaque-ndjson"),
        ("/x", "openai-chat", AWS, "opaque-aws-event-stream"),
        ("/completions", "auto", SSE, "opaque-sse"),
        ("/completion", "openai-chat", SSE, "opaque-sse"),
        ("/proxy/generate", "openai-chat", SSE, "opaque-sse"),
        ("/v1/projects/p/publishers/mistralai/models/m:streamRawPredict", "auto", SSE, "opaque-sse"),
        ("/v1/projects/p/publishers/mistralai/models/m:streamRawPredict", "gemini", SSE, "opaque-sse"),
        ("/v1/projects/p/publishers/mistralai/models/m:streamRawPredict", "anthropic", SSE, "opaque-sse"),
    ],
)
def test_where_the_first_frame_decides(path: str, configured: str, content_type: str, dialect: str) -> None:
    spoken = detect(path, content_type, configured)
    assert spoken is not None
    assert (spoken.dialect, spoken.is_certain) == (dialect, False)


@pytest.mark.parametrize(
    ("path", "content_type", "framing"),
    [
        ("/v1beta/models/g:streamGenerateContent", JSON, "json-array"),
        ("/v1beta/models/g:streamGenerateContent", SSE, "sse"),
        ("/v1beta/models/g:generateContent", JSON, None),
        ("/v1beta/models/g:generateContent", SSE, "sse"),
        ("/v1beta/interactions", JSON, None),
    ],
)
def test_plain_json_is_a_stream_only_where_the_path_says_so(path: str, content_type: str, framing: str | None) -> None:
    spoken = detect(path, content_type, "gemini")
    assert spoken == (framing and Spoken("gemini", framing))


@pytest.mark.parametrize(
    ("path", "configured", "known"),
    [
        ("/v1/chat/completions", "auto", "openai-chat"),
        ("/v1/messages?beta=true", "openai-chat", "anthropic"),
        ("/v1beta/models/g:streamGenerateContent", "auto", "gemini"),
        ("/anything", "anthropic", "anthropic"),
        ("/anything", "auto", None),
        ("/generate", "auto", None),
        ("/generate", "sglang", "sglang"),
        ("/completions", "auto", None),
        ("/v1/completions", "llamacpp", "openai-completions"),
    ],
)
def test_what_a_stream_request_should_be_answered_in(path: str, configured: str, known: str | None) -> None:
    assert dialect_of(path, configured) == known


def test_only_framed_types_are_streams_by_themselves() -> None:
    assert framing_of("text/event-stream; charset=utf-8") == "sse"
    assert framing_of("APPLICATION/X-NDJSON") == "ndjson"
    assert framing_of("text/plain") == "raw"
    assert framing_of("application/json") == "json-array"  # only behind a path whose dialect is spoken so
    assert framing_of("text/html") is None


@pytest.mark.parametrize(
    ("path", "query", "asks"),
    [
        ("/v1/responses/resp_1", "?stream=true&starting_after=3", True),
        ("/v1/responses/resp_1", "?include=a&stream=True", True),
        ("/v1/responses/resp_1", "?stream=1", True),
        ("/v1/responses/resp_1", "?stream=false", False),
        ("/v1/responses/resp_1", "?upstream=true", False),
        ("/v1/responses/resp_1", "", False),
        ("/page", "?stream=true", False),
        ("/api/chat", "", True),
    ],
)
def test_what_asks_for_a_stream_without_a_body(path: str, query: str, *, asks: bool) -> None:
    assert streams_by_target(path, query) == asks


FIRST_FRAMES = [
    ("sse", b'{"id":"c","object":"chat.completion.chunk","choices":[]}', "openai-chat"),
    ("sse", b'{"choices":[{"delta":{"role":"assistant"}}]}', "openai-chat"),
    ("sse", b'{"choices":[{"text":"a","delta":{"content":"a"}}]}', "openai-chat"),
    ("sse", b'{"id":"c","object":"text_completion","choices":[]}', "openai-completions"),
    ("sse", b'{"choices":[{"index":0,"text":"a"}]}', "openai-completions"),
    ("sse", b'{"type":"response.created","response":{"id":"r"}}', "openai-responses"),
    ("sse", b'{"type":"response.output_text.delta","sequence_number":9,"delta":"a"}', "openai-responses"),
    ("sse", b'{"type":"keepalive","sequence_number":0}', None),
    ("sse", b'{"type":"message_start","message":{"id":"m"}}', "anthropic"),
    ("sse", b'{"type":"ping"}', None),
    ("sse", b'{"type":"vertex_event"}', "anthropic"),
    ("sse", b'{"candidates":[{"content":{"role":"model","parts":[{"text":"a"}]}}]}', "gemini"),
    ("sse", b'{"candidates":[{"finishReason":"SAFETY"}],"usageMetadata":{}}', "gemini"),
    ("sse", b'{"event_type":"interaction.created","interaction":{"id":"v1"}}', "gemini-interactions"),
    ("sse", b'{"event_type":"step.delta","index":0,"delta":{"type":"text","text":"a"}}', "gemini-interactions"),
    ("sse", b'{"event_type":"text-generation","text":"a"}', None),
    ("sse", b'{"candidates":["a"]}', None),
    ("sse", b'{"type":"message-start","id":"m","delta":{}}', "cohere"),
    ("sse", b'{"token":{"id":1,"text":"a","logprob":0,"special":false},"generated_text":null}', "tgi"),
    ("sse", b'{"error":"too long","error_type":"validation"}', "tgi"),
    ("sse", b'{"model_name":"m","model_version":"1","text_output":"a"}', "triton"),
    ("sse", b'{"index":0,"content":"a","stop":false,"id_slot":0,"tokens_predicted":1}', "llamacpp"),
    ("sse", b'{"text":"a","meta_info":{"id":"r","finish_reason":null}}', "sglang"),
    ("sse", b'[{"text":"a","meta_info":{"id":"r","finish_reason":null}}]', "sglang"),
    ("sse", b'{"token":{"id":1,"text":"a","logprob":0}}', "tgi"),
    ("sse", b'{"token":"a"}', None),
    ("sse", b'{"error":"words"}', None),
    ("sse", b'{"content":"a","stop":false}', None),
    ("sse", b'{"text":"a"}', None),
    ("ndjson", b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}', "ollama-chat"),
    ("ndjson", b'{"model":"m","response":"a","done":false}', "ollama-generate"),
    ("sse", b'{"type":"x"}', None),
    ("sse", b"[1]", None),
    ("ndjson", b"{", None),
]


@pytest.mark.parametrize(("framing", "data", "name"), FIRST_FRAMES)
def test_the_first_frame_says_what_an_unknown_path_speaks(framing: str, data: bytes, name: str | None) -> None:
    undecided = make_dialect(f"opaque-{framing}", framing, is_certain=False)
    known = DIALECTS[name or f"opaque-{framing}"]()
    assert undecided.completes_on_clean_end
    frame = Frame(data, data)
    assert undecided.decode(Frame(None, b": hello")) == ()
    assert list(undecided.decode(frame)) == list(known.decode(frame))
    assert undecided.completes_on_clean_end == known.completes_on_clean_end
    assert undecided.plain_start == known.plain_start
    assert undecided.has_terminator == known.has_terminator
    assert undecided.tolerates_partial_frame == known.tolerates_partial_frame


EMPTY_CHUNK = b'{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0}]}'
CHAT_CHUNK = b'{"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}'
MESSAGE_START = b'{"type":"message_start","message":{"id":"m"}}'
TEXT_DELTA = b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a"}}'


@pytest.mark.parametrize(
    ("before", "frames", "name"),
    [
        ([EMPTY_CHUNK], [CHAT_CHUNK], "openai-chat"),
        ([b'{"type":"ping"}'] * 15, [MESSAGE_START, TEXT_DELTA], "anthropic"),
        (
            [b'{"type":"keepalive"}'],
            [
                b'{"type":"response.created","response":{"id":"r"}}',
                b'{"type":"response.output_text.delta","output_index":0,"content_index":0,"item_id":"m","delta":"a"}',
            ],
            "openai-responses",
        ),
        ([b'{"type":"ping"}'] * 16, [MESSAGE_START, TEXT_DELTA], "opaque-sse"),
        ([], [b'{"type":"ping"}', b'{"type":"progress"}'], "opaque-sse"),
    ],
)
def test_a_frame_that_says_nothing_decides_nothing(before: list[bytes], frames: list[bytes], name: str) -> None:
    undecided = make_dialect("opaque-sse", "sse", is_certain=False)
    events = [event for data in (*before, *frames) for event in undecided.decode(Frame(data, data))]
    events += undecided.finish()
    assert only_start_first(events)
    assert (Token(0, "a") in events) == (name != "opaque-sse")
    assert len([event for event in events if isinstance(event, Extension)]) >= len(before)
    known = DIALECTS[name]
    assert undecided.has_terminator == known().has_terminator
    assert undecided.completes_on_clean_end == known().completes_on_clean_end
    assert undecided.plain_start == known().plain_start


@pytest.mark.parametrize(("name", "path"), handmade_streams(), ids=lambda part: getattr(part, "stem", part))
def test_no_dialect_claims_anothers_first_frame(name: str, path: Path) -> None:
    body = path.read_bytes()
    framing = make_framing(framing_in(name, body), MAX_FRAME_BYTES, strict=True)
    frames = [*framing.feed(body), *framing.flush()]
    first = next(frame for frame in frames if frame.data)
    claimed = [other for other, kind in DIALECTS.items() if framing.name in kind.framings and kind.recognises(first)]
    assert claimed in ([], [name.removesuffix("-accumulated")])


@pytest.mark.parametrize(
    ("path", "does"),
    [
        ("/generate_stream", True),
        ("/v2/models/m/generate_stream", True),
        ("/v1/streams/a", True),
        ("/v2/chat", False),
        ("/completion", False),
        ("/generate", False),
    ],
)
def test_what_streams_unasked(path: str, does: bool) -> None:
    assert streams_by_target(path, "") == does


def test_one_server_that_speaks_several_is_read_by_its_paths() -> None:
    assert detect("/v1/chat/completions", SSE, "llamacpp") == Spoken("openai-chat", "sse")
    assert detect("/generate_stream", SSE, "tgi") == Spoken("tgi", "sse")
    assert detect("/", SSE, "tgi") == Spoken("tgi", "sse")


ERROR_EVENTS = [name for name, kind in DIALECTS.items() if "sse" in kind.framings]


@pytest.mark.parametrize("name", ERROR_EVENTS)
@pytest.mark.parametrize("data", [b'{"message":"m"}', b'{"error":{"message":"m"}}', b"m"])
def test_an_event_called_error_is_an_error_in_every_dialect(name: str, data: bytes) -> None:
    events, _ = read(name, [b"event: error\ndata: " + data + b"\n\n"])
    assert [type(event) for event in events] == [Start, UpstreamError]
    assert [event.message for event in events if isinstance(event, UpstreamError)] == ["m"]
