"""Records as the data plane makes them, made up: whoever observes is tested with these, without a data plane."""

from __future__ import annotations

from typing import Any

import msgspec

from sidecar.errors import Outcome
from sidecar.events import Usage
from sidecar.record import Record, Trace

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7")

STREAM = Record(
    stream_id="s1",
    outcome=Outcome.COMPLETED,
    method="POST",
    path="/v1/chat/completions",
    status=200,
    upstream_status=200,
    route="chat",
    route_path="/v1/**",
    upstream="main",
    server_address="api.openai.com",
    server_port=443,
    dialect="openai-chat",
    is_stream=True,
    attempts=1,
    requested_model="gpt-5",
    sent_model="gpt-5",
    response_model="gpt-5-2026",
    usage=Usage(100, 21, 121, 40, 8),
    received_at=100.0,
    body_read_at=100.001,
    sent_at=100.003,
    first_content_at=100.25,
    first_sent_at=100.2505,
    last_content_at=102.25,
    ended_at=102.5,
    content_events=21,
    largest_gap_s=0.4,
)
"""A stream of two seconds that went well."""


def made(**changes: Any) -> Record:
    """`STREAM`, but for what is given."""
    return msgspec.structs.replace(STREAM, **changes)


def with_ttft(ttft_s: float, **changes: Any) -> Record:
    """A stream that began at zero, so that its time to the first token is this number and no other beside it."""
    marks = {"received_at": 0.0, "body_read_at": 0.0, "sent_at": 0.0, "first_content_at": ttft_s}
    ends = {"first_sent_at": ttft_s, "last_content_at": ttft_s + 1, "ended_at": ttft_s + 1}
    return made(**{**marks, **ends, **changes})
