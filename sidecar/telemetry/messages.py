"""Captured content as the conventions' messages: a JSON list of roles and parts.

Owns the reading of request bodies, as far as it is the same in every dialect: who said what, in text. Must not fail on
any body: one that it cannot read is one message, as it was sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_MESSAGES: Final = ("messages", "contents", "input")
_PROMPTS: Final = ("prompt", "inputs", "text_input", "text", "message", "input")
_ROLES: Final = {"model": "assistant"}
_USER: Final = "user"

Message = dict[str, Any]


def input_messages(body: str) -> str:
    """The messages that a request's body holds, "" for none; of a body that is cut or in no known form, all of it."""
    if not body:
        return ""
    try:
        request = msgspec.json.decode(body)
        messages = list(_messages(request)) if isinstance(request, dict) else []
        return _encoded(messages or [_said(_USER, body)])
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return _encoded([_said(_USER, body)])


def output_messages(answer: str, finish_reasons: Sequence[str]) -> str:
    """The one message that was answered; "" for none. The text of several choices is not told apart."""
    if not answer:
        return ""
    return _encoded([{**_said("assistant", answer), "finish_reason": finish_reasons[0] if finish_reasons else ""}])


def _messages(request: dict[str, Any]) -> Iterator[Message]:
    system = _text(request.get("system")) or _text(request.get("instructions"))
    system = system or _text(request.get("systemInstruction") or request.get("system_instruction"))
    found = next((request[name] for name in _MESSAGES if isinstance(request.get(name), list)), None)
    if found is None:
        prompt = next((request[name] for name in _PROMPTS if isinstance(request.get(name), str)), "")
        found = [{"role": _USER, "content": prompt}] if prompt else []
    if system and found:
        yield _said("system", system)
    for message in found:
        if isinstance(message, dict):
            role = message.get("role")
            yield {"role": _role(role), "parts": list(_parts(message.get("content", message.get("parts"))))}


def _role(role: Any) -> str:
    return _ROLES.get(role, role) if isinstance(role, str) and role else _USER


def _parts(content: Any) -> Iterator[Message]:
    if isinstance(content, str):
        yield {"type": "text", "content": content}
    for part in content if isinstance(content, list) else ():
        text = _text(part)
        if text:
            yield {"type": "text", "content": text}
        elif isinstance(part, dict):
            # Media, tool calls and their results: in the dialect's own words, which the conventions allow.
            yield {**part, "type": str(part.get("type", "other"))}


def _text(value: Any) -> str:
    """The text of a string, a text part, or a list of these."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text, value))
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            return str(value["text"])
        return _text(value["parts"]) if isinstance(value.get("parts"), list) else ""
    return ""


def _said(role: str, text: str) -> Message:
    return {"role": role, "parts": [{"type": "text", "content": text.encode("utf-8", "replace").decode()}]}


def _encoded(messages: Sequence[Message]) -> str:
    return msgspec.json.encode(messages).decode()
