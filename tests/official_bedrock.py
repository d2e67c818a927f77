"""What boto3 reads from a Bedrock stream: the measure of the two dialects that Bedrock speaks.

A reader answers the package's own request with the body, below its connections, and sums up what its user sees.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import boto3
import msgspec
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError

from tests.dialect_reading import Summary

MODEL = "anthropic.claude-3-sonnet-20240229-v1:0"
FINISH_MARK = re.compile(rb'messageStop|"(?:stop_reason|completionReason)":"|invocationMetrics')
TERMINATOR = re.compile(rb"metadata|message_stop")
MESSAGES: list[Any] = [{"role": "user", "content": [{"text": "hi"}]}]


@contextmanager
def bedrock_client(endpoint: str, *, ca_file: str | None = None, **options: Any) -> Iterator[Any]:
    """A client that signs with a key of no worth, tries once and asks nobody for a proxy."""
    chosen = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "not-a-secret", **options}
    config = Config(retries={"total_max_attempts": 1}, proxies={})
    session = boto3.Session(region_name="us-east-1", **chosen)
    client = session.client("bedrock-runtime", endpoint_url=endpoint, config=config, verify=ca_file)
    try:
        yield client
    finally:
        client.close()


def converse_stream(client: Any) -> Iterator[dict[str, Any]]:
    """The events of ``converse_stream``, as the package hands them out."""
    return _closing(client.converse_stream(modelId=MODEL, messages=MESSAGES)["stream"])


def invoke_stream(client: Any) -> Iterator[dict[str, Any]]:
    """The events of ``invoke_model_with_response_stream``."""
    asked = client.invoke_model_with_response_stream(modelId=MODEL, body=b"{}", contentType="application/json")
    return _closing(asked["body"])


def _closing(stream: Any) -> Iterator[dict[str, Any]]:
    try:
        yield from stream
    finally:
        stream.close()


def read_converse(body: bytes) -> Summary:
    """By ``converse_stream``."""
    return _read(body, converse_stream, _add_converse_event)


def read_invoke(body: bytes) -> Summary:
    """By ``invoke_model_with_response_stream``; what is in a chunk is the model's own affair, and read by hand."""
    return _read(body, invoke_stream, lambda summary, event: _add_native(summary, event["chunk"]["bytes"]))


def _read(
    body: bytes, ask: Callable[[Any], Iterable[dict[str, Any]]], add: Callable[[Summary, dict[str, Any]], None]
) -> Summary:
    summary = Summary()
    with bedrock_client("http://upstream") as client:
        client.meta.events.register("before-send.bedrock-runtime.*", lambda **_: answered_with(body))
        try:
            for event in ask(client):
                add(summary, event)
        except ClientError as error:
            summary.error = error.response["Error"]["Message"]
    return summary


def narrow_to_bedrock_user(ours: Summary) -> None:
    """The package's model of the service does not know server tools' usage yet."""
    if ours.usage:
        ours.usage.pop("serverToolUsage", None)


class _Raw(BytesIO):
    """As much of urllib3's response as an event stream asks for."""

    def stream(self, amt: int = 100, decode_content: bool | None = None) -> Iterator[bytes]:
        while piece := self.read(amt):
            yield piece


def answered_with(body: bytes) -> Any:
    """An answer for a ``before-send`` handler to give instead of a request."""
    headers = {"content-type": "application/vnd.amazon.eventstream"}
    return AWSResponse("http://upstream", 200, headers, _Raw(body))


def _add_converse_event(summary: Summary, event: dict[str, Any]) -> None:
    for kind, fields in event.items():
        _add_converse(summary, kind, fields)


def _add_converse(summary: Summary, kind: str, fields: dict[str, Any]) -> None:
    index = fields.get("contentBlockIndex", 0)
    if kind == "contentBlockStart" and "toolUse" in fields["start"]:
        tool = fields["start"]["toolUse"]
        if tool.get("type") != "server_tool_use":
            summary.calls[0, index] = [tool["toolUseId"], tool["name"], ""]
    elif kind == "contentBlockDelta":
        delta = fields["delta"]
        summary.add_text(summary.text, 0, delta.get("text"))
        summary.add_text(summary.reasoning, 0, delta.get("reasoningContent", {}).get("text"))
        if "toolUse" in delta and (0, index) in summary.calls:
            summary.calls[0, index][2] += delta["toolUse"]["input"]
    elif kind == "messageStop":
        summary.finish[0] = fields["stopReason"]
    elif kind == "metadata":
        summary.usage = fields["usage"]


def _add_native(summary: Summary, chunk: bytes) -> None:
    native = msgspec.json.decode(chunk)
    metrics = native.pop("amazon-bedrock-invocationMetrics", None)
    if "type" in native:
        _add_anthropic(summary, native)
    elif "outputText" in native:
        _add_piece(summary, native["outputText"], native["completionReason"])
        _add_counts(summary, native, "inputTextTokenCount", "totalOutputTextTokenCount")
    elif "generation" in native:
        _add_piece(summary, native["generation"], native["stop_reason"])
        _add_counts(summary, native, "prompt_token_count", "generation_token_count")
    elif "outputs" in native:
        _add_piece(summary, native["outputs"][0]["text"], native["outputs"][0]["stop_reason"])
    elif "choices" in native:
        choice = native["choices"][0]
        said = choice.get("message") or {"content": choice["text"]}
        _add_piece(summary, said["content"], choice["stop_reason"])
    else:
        _add_converse_event(summary, native)
    if metrics is not None and summary.usage is None:
        summary.usage = metrics


def _add_piece(summary: Summary, text: str, reason: str | None) -> None:
    summary.add_text(summary.text, 0, text)
    if reason:
        summary.finish[0] = reason


def _add_counts(summary: Summary, native: dict[str, Any], *keys: str) -> None:
    counts = {key: native[key] for key in keys if native.get(key) is not None}
    if counts:
        summary.usage = {**(summary.usage or {}), **counts}


def _add_anthropic(summary: Summary, native: dict[str, Any]) -> None:
    usage = native.get("message", native).get("usage")
    if usage is not None:
        summary.usage = {**(summary.usage or {}), **usage}
    if native["type"] == "content_block_delta":
        summary.add_text(summary.text, 0, native["delta"].get("text"))
        summary.add_text(summary.reasoning, 0, native["delta"].get("thinking"))
        if "partial_json" in native["delta"]:
            summary.calls[0, native["index"]][2] += native["delta"]["partial_json"]
    elif native["type"] == "content_block_start" and native["content_block"]["type"] == "tool_use":
        summary.calls[0, native["index"]] = [native["content_block"]["id"], native["content_block"]["name"], ""]
    elif native["type"] == "message_delta":
        summary.finish[0] = native["delta"]["stop_reason"]


def end_offsets_in_messages(body: bytes) -> tuple[int, int]:
    """The last byte of the first message with a finish mark, and of the terminator's; else the body's end."""
    buffer = EventStreamBuffer()
    buffer.add_data(body)
    ends = {FINISH_MARK: len(body), TERMINATOR: len(body)}
    at = 0
    for message in buffer:
        at += message.prelude.total_length
        words = str(message.headers.get(":event-type")).encode() + message.payload
        if message.headers.get(":event-type") == "chunk":
            words += base64.b64decode(msgspec.json.decode(message.payload)["bytes"])
        for mark in ends:
            if mark.search(words):
                ends[mark] = min(ends[mark], at - 1)
    return ends[FINISH_MARK], ends[TERMINATOR]
