"""Spans as the bytes of an OTLP request: what the SDK's encoder makes of them, for a sixth of its time.

Owns the few message types that a batch of spans is made of (opentelemetry/proto/trace/v1/trace.proto). The SDK's
builds a message object for each attribute and copies it into each of the five that enclose it, 80 µs a stream, in which
the interpreter relays no token. Must not know what the spans say, nor how the bytes are sent.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext

_REMEMBERED: Final = 1024
_REMEMBERED_CHARS: Final = 128
"""Of text: most attributes say again what they said of the last stream."""

_ONE_BYTE: Final = 0x80
_TWO_BYTES: Final = 0x4000
_UINT64: Final = (1 << 64) - 1
_INT64: Final = 1 << 63
_HAS_IS_REMOTE: Final = 0x100
_IS_REMOTE: Final = 0x200

_double: Final = Struct("<cd").pack
_times: Final = Struct("<cQcQ").pack
_time: Final = Struct("<cQ").pack
_flags: Final = Struct("<2sI").pack


def encode(spans: Sequence[ReadableSpan]) -> bytes:
    """An ExportTraceServiceRequest; of spans of several resources or scopes, each of these after the other."""
    grouped: dict[Resource, dict[InstrumentationScope | None, list[bytes]]] = {}
    for (resource, scope), alike in groupby(spans, key=_owners):
        grouped.setdefault(resource, {}).setdefault(scope, []).extend(_field(b"\x12", _span(span)) for span in alike)
    return b"".join(_field(b"\x0a", _resource_spans(resource, scopes)) for resource, scopes in grouped.items())


def _owners(span: ReadableSpan) -> tuple[Resource, InstrumentationScope | None]:
    return span.resource, span.instrumentation_scope


def _resource_spans(resource: Resource, scopes: Mapping[InstrumentationScope | None, list[bytes]]) -> bytes:
    parts = [_field(b"\x0a", _resource(resource))]
    for scope, encoded in scopes.items():
        schema = [_text(b"\x1a", scope.schema_url)] if scope is not None and scope.schema_url else []
        parts.append(_field(b"\x12", b"".join([_field(b"\x0a", _scope(scope)), *encoded, *schema])))
    if resource.schema_url:
        parts.append(_text(b"\x1a", resource.schema_url))
    return b"".join(parts)


def _resource(resource: Resource) -> bytes:
    return b"".join(_attributes(b"\x0a", resource.attributes))


def _scope(scope: InstrumentationScope | None) -> bytes:
    if scope is None:
        return b""
    version = _text(b"\x12", scope.version) if scope.version else b""
    return b"".join((_text(b"\x0a", scope.name), version, *_attributes(b"\x1a", scope.attributes)))


def _span(span: ReadableSpan) -> bytes:
    context: Any = span.context
    parent = span.parent
    status = span.status
    state = context.trace_state
    parts = [b"\x0a\x10", context.trace_id.to_bytes(16, "big"), b"\x12\x08", context.span_id.to_bytes(8, "big")]
    if state:
        parts.append(_text(b"\x1a", state.to_header()))
    if parent is not None:
        parts += (b"\x22\x08", parent.span_id.to_bytes(8, "big"))
    parts.append(_text(b"\x2a", span.name))
    parts.append(b"\x30%c" % (span.kind.value + 1))  # the SDK counts from 0, the protocol has 0 for unspecified
    parts.append(_times(b"\x39", span.start_time or 0, b"\x41", span.end_time or 0))
    parts += _attributes(b"\x4a", span.attributes)
    parts += [_field(b"\x5a", _event(event)) for event in span.events]
    description = _text(b"\x12", status.description) if status.description else b""
    code = b"\x18%c" % status.status_code.value if status.status_code.value else b""
    parts.append(_field(b"\x7a", description + code))
    parts.append(_flags(b"\x85\x01", _remoteness(parent)))
    return b"".join(parts)


def _remoteness(parent: SpanContext | None) -> int:
    return _HAS_IS_REMOTE | _IS_REMOTE if parent is not None and parent.is_remote else _HAS_IS_REMOTE


def _event(event: Event) -> bytes:
    return b"".join(
        (_time(b"\x09", event.timestamp), _text(b"\x12", event.name), *_attributes(b"\x1a", event.attributes))
    )


def _attributes(tag: bytes, attributes: Mapping[str, Any] | None) -> Iterable[bytes]:
    """A KeyValue for each, as fields of their owner's."""
    if not attributes:
        return ()
    return [
        _remembered(tag, name, value)
        if type(value) is str and len(value) <= _REMEMBERED_CHARS
        else _attribute(tag, name, value)
        for name, value in attributes.items()
        if value.__class__ is not int or -_INT64 <= value < _INT64  # a count that fits nowhere is left out
    ]


def _attribute(tag: bytes, name: str, value: Any) -> bytes:
    return _field(tag, _key(name) + _field(b"\x12", _value(value)))


_remembered: Final = lru_cache(_REMEMBERED)(_attribute)


@lru_cache(_REMEMBERED)
def _key(name: str) -> bytes:
    return _text(b"\x0a", name)


def _value(value: Any) -> bytes:
    """An AnyValue of the kinds that our attributes have. Raises TypeError for any other."""
    if isinstance(value, str):
        return _text(b"\x0a", value)
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + _varint(value & _UINT64)
    if isinstance(value, float):
        return _double(b"\x21", value)
    if isinstance(value, tuple | list):
        return _field(b"\x2a", b"".join([_field(b"\x0a", _value(each)) for each in value]))
    raise TypeError(f"an attribute cannot be a {type(value).__name__}")


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode())


def _field(tag: bytes, data: bytes) -> bytes:
    """A field that says how long it is."""
    size = len(data)
    return b"%b%c%b" % (tag, size, data) if size < _ONE_BYTE else b"%b%b%b" % (tag, _varint(size), data)


def _varint(number: int) -> bytes:
    if number < _ONE_BYTE:
        return b"%c" % number
    if number < _TWO_BYTES:
        return b"%c%c" % (number & 0x7F | 0x80, number >> 7)
    digits = bytearray()
    while number >= _ONE_BYTE:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)
