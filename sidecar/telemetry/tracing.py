"""Where a request stands in a trace: W3C Trace Context in, ids and the sampling decision out.

Owns the strict reading of ``traceparent`` and ``tracestate``, and the making of ids. Must not know spans: whatever
becomes of the ids, the decision is made here, once, before anything is sent upstream.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from sidecar.record import Trace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.telemetry.choices import Sampling

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_INVALID_VERSION: Final = "ff"
_KNOWN_VERSION: Final = "00"
_NO_TRACE: Final = "0" * 32
_NO_SPAN: Final = "0" * 16
_SAMPLED: Final = 1

_KEY: Final = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_VALUE: Final = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER: Final = re.compile(f"({_KEY})={_VALUE}", re.ASCII)
_MAX_MEMBERS: Final = 32
_MAX_STATE: Final = 512
"""What has to travel at least (section 3.3.1.5); more would let callers fill the queues that hold it."""
_LONG_MEMBER: Final = 128
"""A longer member goes first where there is too much."""

_IDS_BYTES: Final = 32
_IDS_FETCHED: Final = 256


class _Unsent(Trace):
    """A place in a trace that upstreams are not told of, as no propagator is switched on."""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """None."""
        return []


class Tracing:
    """Finds each request's place. Costs a microsecond, as the ids' randomness is fetched in large pieces."""

    def __init__(self, sampling: Sampling, *, joins_traces: bool = True) -> None:
        self._joins_traces = joins_traces
        self._follows_caller = sampling.follows_caller
        self._bound = TraceIdRatioBased.get_bound_for_rate(sampling.share)
        self._is_always = self._bound > TraceIdRatioBased.TRACE_ID_LIMIT
        self._chance = ""
        self._used = 0

    def trace(self, headers: Mapping[str, str]) -> Trace:
        """The place of a request with these headers: in its caller's trace, or where it names none, in a new one.

        ``headers`` are looked up in lower case. A malformed ``traceparent`` begins a new trace; a malformed
        ``tracestate`` is dropped alone.
        """
        if self._used == len(self._chance):
            # os.urandom is safe across forks, but a piece of it is not: whoever forks does so before the first request.
            self._chance, self._used = os.urandom(_IDS_BYTES * _IDS_FETCHED).hex(), 0
        start = self._used
        self._used = start + 2 * _IDS_BYTES
        trace_id = self._chance[start : start + 32]
        server_id = self._chance[start + 32 : start + 48]
        client_id = self._chance[start + 48 : start + 64]
        if not self._joins_traces:
            return _Unsent(trace_id, server_id, client_id, is_sampled=self._samples(trace_id))
        parent = headers.get("traceparent")
        if parent is not None:
            found = _parsed(parent, headers)
            if found is not None:
                trace_id, parent_id, is_sampled = found
                if not self._follows_caller:
                    is_sampled = self._samples(trace_id)
                return Trace(trace_id, server_id, client_id, parent_id, _state(headers), is_sampled)
        return Trace(trace_id, server_id, client_id, is_sampled=self._samples(trace_id))

    def _samples(self, trace_id: str) -> bool:
        """The SDK's TraceIdRatioBased decides just so, of the trace id's last 64 bits."""
        return self._is_always or int(trace_id[16:], 16) < self._bound


def _parsed(parent: str, headers: Mapping[str, str]) -> tuple[str, str, bool] | None:
    """Trace id, span id and the sampled flag; None for a header that says nothing valid (section 3.2)."""
    found = _PARENT.fullmatch(parent)
    if found is None or len(_every(headers, "traceparent")) > 1:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == _INVALID_VERSION or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    if version == _KNOWN_VERSION and rest is not None:
        return None  # a later version may say more behind the flags; this one does not
    return trace_id, span_id, bool(int(flags, 16) & _SAMPLED)


def _state(headers: Mapping[str, str]) -> str:
    """The tracestate to send on; "" where there is none, or one of its members is malformed or comes twice."""
    whole = ",".join(_every(headers, "tracestate"))
    members = [member.strip(" \t") for member in whole.split(",", _MAX_MEMBERS * 2)]
    members = [member for member in members if member]
    keys = set()
    for member in members:
        found = _MEMBER.fullmatch(member)
        if found is None or found[1] in keys:
            return ""
        keys.add(found[1])
    if len(members) > _MAX_MEMBERS:
        return ""
    return _fitting(members)


def _fitting(members: list[str]) -> str:
    state = ",".join(members)
    if len(state) <= _MAX_STATE:
        return state
    members = [member for member in members if len(member) <= _LONG_MEMBER]
    while len(state := ",".join(members)) > _MAX_STATE:
        members.pop()
    return state


def _every(headers: Mapping[str, str], name: str) -> list[str]:
    """All values of a header: a multidict has each, a plain mapping the one."""
    getall = getattr(headers, "getall", None)
    if getall is not None:
        return list(getall(name, ()))
    return [headers[name]] if name in headers else []
