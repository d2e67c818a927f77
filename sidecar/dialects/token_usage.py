"""Token counts as each dialect words them, read into one `Usage`.

Owns the counting rules of OpenAI-compatible servers, Anthropic, Gemini, Ollama and Bedrock. Must not know frames.
"""

from __future__ import annotations

from typing import Any

from sidecar.dialects.lenient_json import as_dict, as_int
from sidecar.events import Usage


def openai_usage(native: dict[str, Any]) -> Usage:
    """The ``usage`` object of a chunk or a response."""
    prompt = _first(native, "prompt_tokens", "input_tokens")
    completion = _first(native, "completion_tokens", "output_tokens")
    total = as_int(native.get("total_tokens"))
    details = native.get("completion_tokens_details") or native.get("output_tokens_details")
    reasoning = _first(as_dict(details), "reasoning_tokens")
    if reasoning is None:
        reasoning = as_int(native.get("reasoning_tokens"))
    cached = _first(as_dict(native.get("prompt_tokens_details") or native.get("input_tokens_details")), "cached_tokens")
    if cached is None:
        cached = _first(native, "prompt_cache_hit_tokens", "cached_tokens")
    # xAI counts reasoning beside the completion; every other server inside it. Only the total tells.
    summed = _sum(prompt, completion)
    if reasoning and total is not None and total == _sum(summed, reasoning):
        completion = _sum(completion, reasoning)
    return Usage(prompt, completion, summed if total is None else total, cached, reasoning, native)


def anthropic_usage(native: dict[str, Any]) -> Usage:
    """The merged ``usage`` of ``message_start`` and every ``message_delta``. Input counts what the cache took, too."""
    cached = as_int(native.get("cache_read_input_tokens"))
    written = as_int(native.get("cache_creation_input_tokens"))
    uncached = as_int(native.get("input_tokens"))
    known = [count for count in (uncached, written, cached) if count is not None]
    prompt = sum(known) if known else None
    completion = as_int(native.get("output_tokens"))
    thinking = as_int(as_dict(native.get("output_tokens_details")).get("thinking_tokens"))
    return Usage(prompt, completion, _sum(prompt, completion), cached, thinking, native)


def gemini_usage(native: dict[str, Any]) -> Usage:
    """A response's ``usageMetadata``. Thoughts are counted beside the candidates, tool results beside the prompt."""
    prompt = _sum_given(native, "promptTokenCount", "toolUsePromptTokenCount")
    completion = _sum_given(native, "candidatesTokenCount", "thoughtsTokenCount")
    total = as_int(native.get("totalTokenCount"))
    total = _sum(prompt, completion) if total is None else total
    cached, thoughts = as_int(native.get("cachedContentTokenCount")), as_int(native.get("thoughtsTokenCount"))
    return Usage(prompt, completion, total, cached, thoughts, native)


def interactions_usage(native: dict[str, Any]) -> Usage:
    """A Gemini interaction's ``usage``, which counts as `gemini_usage` does."""
    prompt = _sum_given(native, "total_input_tokens", "total_tool_use_tokens")
    completion = _sum_given(native, "total_output_tokens", "total_thought_tokens")
    total = as_int(native.get("total_tokens"))
    total = _sum(prompt, completion) if total is None else total
    cached, thoughts = as_int(native.get("total_cached_tokens")), as_int(native.get("total_thought_tokens"))
    return Usage(prompt, completion, total, cached, thoughts, native)


_OLLAMA_KEYS = (
    "prompt_eval_count",
    "eval_count",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
)


def ollama_usage(last: dict[str, Any]) -> Usage | None:
    """The counters of Ollama's last object; None where it has no counts (a model load). Zero counts are not sent."""
    prompt, completion = as_int(last.get("prompt_eval_count")), as_int(last.get("eval_count"))
    if prompt is None and completion is None:
        return None
    native = {key: last[key] for key in _OLLAMA_KEYS if key in last}
    return Usage(prompt, completion, _sum(prompt, completion), native=native)


def bedrock_usage(native: dict[str, Any]) -> Usage:
    """Converse's ``usage``, which Nova words a little otherwise. Input counts what the cache took, too, where the total
    shows that it was counted beside."""
    prompt, completion = as_int(native.get("inputTokens")), as_int(native.get("outputTokens"))
    total = as_int(native.get("totalTokens"))
    cached = _first(native, "cacheReadInputTokens", "cacheReadInputTokenCount")
    taken = (cached or 0) + (_first(native, "cacheWriteInputTokens", "cacheWriteInputTokenCount") or 0)
    summed = _sum(prompt, completion)
    if taken and total is not None and total == _sum(summed, taken):
        prompt = _sum(prompt, taken)
    return Usage(prompt, completion, summed if total is None else total, cached, native=native)


def invocation_usage(native: dict[str, Any]) -> Usage | None:
    """The metrics Bedrock adds to a model's own last object; None where they count nothing."""
    prompt, completion = as_int(native.get("inputTokenCount")), as_int(native.get("outputTokenCount"))
    if prompt is None and completion is None:
        return None
    cached = as_int(native.get("cacheReadInputTokenCount"))
    return Usage(prompt, completion, _sum(prompt, completion), cached, native=native)


def _first(counts: dict[str, Any], *keys: str) -> int | None:
    for key in keys:
        if (number := as_int(counts.get(key))) is not None:
            return number
    return None


def _sum_given(counts: dict[str, Any], *keys: str) -> int | None:
    """The counts under ``keys``, less those that are not there; None where none is."""
    known = [number for key in keys if (number := as_int(counts.get(key))) is not None]
    return sum(known) if known else None


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
