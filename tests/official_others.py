"""What the packages of Cohere and Hugging Face read from a body, and, for servers without a package, what the clients
read that their vendors show.

Each reader sums up what a user sees.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import cohere
import httpx
import httpx2
import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import TextGenerationError

from tests.dialect_reading import Summary

SSE_HEADERS = {"content-type": "text/event-stream"}

# It would ask the Hub which agents there are.
constants.HF_HUB_OFFLINE = True


def cohere_client(base_url: str, http: httpx.Client) -> cohere.ClientV2:
    """The package's client of a base URL."""
    return cohere.ClientV2(api_key="k", base_url=base_url, httpx_client=http)


def cohere_events(client: cohere.ClientV2) -> Iterator[Any]:
    """Every event of one streamed answer."""
    return client.chat_stream(
        model="m", messages=[cohere.UserChatMessageV2(content="hi")], request_options={"max_retries": 0}
    )


def read_cohere(body: bytes) -> Summary:
    """By ``cohere.ClientV2().chat_stream()``."""
    summary = Summary()
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=SSE_HEADERS, content=body))
    with httpx.Client(transport=transport) as http:
        for event in cohere_events(cohere_client("http://upstream", http)):
            _add_cohere_event(summary, event)
    return summary


def _add_cohere_event(summary: Summary, event: Any) -> None:
    match event.type:
        case "content-start" | "content-delta":
            content = event.delta.message.content
            summary.add_text(summary.text, 0, content.text)
            summary.add_text(summary.reasoning, 0, content.thinking)
        case "tool-plan-delta":
            summary.add_text(summary.reasoning, 0, event.delta.message.tool_plan)
        case "tool-call-start":
            call = event.delta.message.tool_calls
            summary.calls[0, event.index] = [call.id, call.function.name, call.function.arguments or ""]
        case "tool-call-delta":
            summary.calls[0, event.index][2] += event.delta.message.tool_calls.function.arguments
        case "message-end":
            summary.finish[0] = event.delta.finish_reason
            summary.usage = event.delta.usage and event.delta.usage.model_dump(exclude_unset=True)
            summary.error = event.delta.error
        case _:
            pass


@contextmanager
def hugging_face_client(model: str, http: Callable[[], httpx2.Client]) -> Iterator[huggingface_hub.InferenceClient]:
    """The package's client of one URL; all of its clients share the one session that ``http`` makes."""
    huggingface_hub.set_client_factory(http)
    try:
        yield huggingface_hub.InferenceClient(model=model, api_key="k")
    finally:
        huggingface_hub.close_session()


def hugging_face_tokens(client: huggingface_hub.InferenceClient) -> Iterator[Any]:
    """Every object of one streamed answer."""
    return iter(client.text_generation("hi", stream=True, details=True))


def read_tgi(body: bytes) -> Summary:
    """By ``huggingface_hub.InferenceClient().text_generation(stream=True, details=True)``."""
    summary = Summary()
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=SSE_HEADERS, content=body))
    with hugging_face_client("http://upstream/generate_stream", lambda: httpx2.Client(transport=transport)) as client:
        try:
            for part in hugging_face_tokens(client):
                if not part.token.special:
                    summary.add_text(summary.text, 0, part.token.text)
                if part.details is not None:
                    summary.finish[0] = part.details.finish_reason
                    summary.usage = (part.details.input_length, part.details.generated_tokens)
        except TextGenerationError as error:
            summary.error = str(error)
    return summary


def narrow_to_hugging_face_user(ours: Summary) -> None:
    """This package hands out parsed details, whose counts are these two."""
    ours.usage = ours.usage and (ours.usage.get("input_length"), ours.usage.get("generated_tokens"))


# Servers whose vendors have no package: the loops that their own examples read with.


def _datas(body: bytes) -> Iterator[Any]:
    """The JSON of every ``data:`` line before ``[DONE]``."""
    for line in body.decode().splitlines():
        if line.startswith("data:"):
            if line[5:].strip() == "[DONE]":
                return
            yield json.loads(line[5:])


def read_triton(body: bytes) -> Summary:
    """A user of Triton's or KServe's generate extension."""
    return _read_triton(body, lambda told, text: told + text)


def read_triton_accumulated(body: bytes) -> Summary:
    """The same, of a model that is set to give all of its text each time."""
    return _read_triton(body, lambda _, text: text)


def _read_triton(body: bytes, join: Callable[[str, str], str]) -> Summary:
    summary = Summary()
    for data in _datas(body):
        if "error" in data:
            summary.error = data["error"]
            break
        texts, reasons = data.get("text_output", ""), data.get("finish_reason", [])
        for index, text in enumerate([texts] if isinstance(texts, str) else texts):
            if text:
                summary.text[index] = join(summary.text.get(index, ""), text)
        for index, reason in enumerate([reasons] if isinstance(reasons, str) else reasons):
            if reason != "None":
                summary.finish[index] = reason
        if "num_input_tokens" in data:
            known = summary.usage or {"num_output_tokens": 0}
            output = known["num_output_tokens"] + data["num_output_tokens"]
            summary.usage = {"num_input_tokens": data["num_input_tokens"], "num_output_tokens": output}
        if (reason := data.get("details", {}).get("finish_reason")) is not None:
            summary.finish[0] = reason
    return summary


def read_llamacpp(body: bytes) -> Summary:
    """The loop of llama.cpp's own ``completion.js``."""
    summary = Summary()
    for data in _datas(body):
        if "error" in data:
            summary.error = data["error"]["message"]
            break
        summary.add_text(summary.text, data["index"], data["content"])
        if data["stop"]:
            summary.finish[data["index"]] = data["stop_type"]
        summary.usage = {
            key: data[key]
            for key in ("tokens_evaluated", "tokens_predicted", "tokens_cached", "timings")
            if key in data
        }
    return summary


def read_sglang(body: bytes) -> Summary:
    """The loop of SGLang's own runtime endpoint, which takes the text beyond the position reached; or, of a server that
    streams in pieces, the pieces."""
    summary = Summary()
    for data in _datas(body):
        if "error" in data:
            summary.error = data["error"]["message"]
            break
        index, meta = data.get("index", 0), data["meta_info"]
        known, text = summary.text.get(index, ""), data.get("text", "")
        summary.add_text(summary.text, index, text.removeprefix(known))
        if meta["finish_reason"]:
            summary.finish[index] = meta["finish_reason"]["type"]
        summary.usage = {
            key: meta[key] for key in ("prompt_tokens", "completion_tokens", "cached_tokens") if key in meta
        }
    return summary


def read_replicate(body: bytes) -> Summary:
    """A browser's EventSource, as Replicate's documentation uses it."""
    summary = Summary()
    for block in body.decode().split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        data = "\n".join(value for field, _, value in lines if field == "data")
        match next((value for field, _, value in lines if field == "event"), ""):
            case "output":
                summary.add_text(summary.text, 0, data)
            case "error":
                summary.error = json.loads(data)["detail"]
            case "done":
                break
    return summary
