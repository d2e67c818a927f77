"""What the tests of the core share: a stream between two fakes, under a clock that only the test moves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from sidecar.answer import Asked
from sidecar.errors import Failure, Outcome
from sidecar.held_request import HeldRequest
from sidecar.ports import ResponseHead, ResponseSink
from sidecar.record import Record
from sidecar.settings import Address, EofRule, Limits, Route, Timeouts, Upstream
from sidecar.streams import Streams
from tests.observing import Observing

CONTENT_TYPES = {
    "openai-chat": "text/event-stream",
    "anthropic": "text/event-stream",
    "opaque-sse": "text/event-stream",
    "ollama-chat": "application/x-ndjson",
    "ollama-generate": "application/x-ndjson",
    "opaque-ndjson": "application/x-ndjson",
    "raw": "text/plain",
    "bedrock-converse": "application/vnd.amazon.eventstream",
    "bedrock-invoke": "application/vnd.amazon.eventstream",
    "opaque-aws-event-stream": "application/vnd.amazon.eventstream",
}


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Promise:
    """A future without a loop."""

    def __init__(self) -> None:
        self.resolved = 0

    def done(self) -> bool:
        return self.resolved > 0

    def set_result(self, result: None, /) -> None:
        assert not self.resolved
        self.resolved += 1


class Timer:
    """A call that the test makes instead of a loop."""

    def __init__(self, at: float, call: Callable[..., None]) -> None:
        self.at = at
        self.call = call
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """As much of an event loop as the registry asks for outside its tasks."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.timers: list[Timer] = []

    def create_future(self) -> Promise:
        return Promise()

    def call_later(self, delay_s: float, call: Callable[..., None]) -> Timer:
        timer = Timer(self._clock.now + delay_s, call)
        self.timers.append(timer)
        return timer

    def run_due(self) -> None:
        """Make every call that is due by now."""
        due = [timer for timer in self.timers if timer.at <= self._clock.now and not timer.is_cancelled]
        self.timers = [timer for timer in self.timers if timer not in due and not timer.is_cancelled]
        for timer in due:
            timer.call()


class Client:
    """A client's connection: remembers what it was given; ``capacity`` bytes fill it (None: never)."""

    def __init__(self, capacity: int | None = None) -> None:
        self.is_ready = True
        self.capacity = capacity
        self.head = b""
        self.is_chunked = False
        self.pieces: list[bytes] = []
        self.ends: list[str] = []
        self.unsent = 0
        self.has_left = False

    def start(self, head: bytes, *, is_chunked: bool) -> None:
        assert not self.head
        self.head, self.is_chunked = head, is_chunked

    def write(self, data: bytes) -> None:
        assert self.is_ready, "written to while full"
        assert self.head, "a body without a head"
        assert not self.ends, "written to after its end"
        self.pieces.append(data)
        self.unsent += len(data)
        if self.capacity is not None and self.unsent >= self.capacity:
            self.is_ready = False

    def drain(self) -> None:
        """The peer took everything."""
        self.unsent = 0
        self.is_ready = True

    def finish(self, last: bytes) -> None:
        self.pieces.append(last)
        self.ends.append("finish")

    def abort(self) -> None:
        self.ends.append("abort")

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def unsent_bytes(self) -> int:
        return self.unsent

    def undelivered_bytes(self) -> int:
        return self.unsent

    def is_peer_gone(self) -> bool:
        return self.has_left


class Exchange:
    """An upstream's connection: remembers what was asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")

    def abort(self) -> None:
        self.calls.append("abort")

    def hand_to(self, sink: ResponseSink) -> None:
        self.sink = sink

    def drain(self) -> None:
        self.calls.append("drain")

    is_writable = True

    async def wait_writable(self) -> None: ...

    def write_body(self, data: bytes) -> None: ...

    def end_body(self) -> None: ...

    @property
    def is_paused(self) -> bool:
        return [call for call in self.calls if call in {"pause", "resume"}][-1:] == ["pause"]

    @property
    def is_dropped(self) -> bool:
        return "abort" in self.calls or "drain" in self.calls


class Rig:
    """One stream of a registry of its own, and both its sides."""

    def __init__(
        self,
        *,
        dialect: str = "openai-chat",
        format: str = "typed",  # noqa: A002 - the word the design uses
        limits: Limits = Limits(),  # noqa: B008 - frozen
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        eof: EofRule = "truncated",
        capacity: int | None = None,
        body: bytes = b"{}",
        wants_stream: bool = True,
        heartbeat_s: float = 15.0,
        content_bytes: int = 0,
    ) -> None:
        self.dialect = dialect
        self.clock = Clock()
        self.loop = Loop(self.clock)
        self.observer = Observing()
        self.streams = Streams(self.clock, cast("Any", self.loop), observer=self.observer, content_bytes=content_bytes)
        self.client = Client(capacity)
        self.exchange = Exchange()
        self.upstream = Upstream(
            "llm", "http", Address("127.0.0.1", 1), "llm.test", dialect=dialect, timeouts=timeouts, eof=eof
        )
        asked = Asked("s1", "POST", "/x", (1, 1), True, format, wants_stream, "m", 1)
        route = Route("all", ("llm",), limits=limits, heartbeat_s=heartbeat_s)
        self.stream = self.streams.open(asked, route, self.client, self.clock.now)
        if body:
            self.stream.hold(HeldRequest(body))

    def send(self) -> Rig:
        """The request is on its way."""
        assert self.stream.begin(self.upstream)
        self.stream.sent(self.exchange)
        return self

    def open(self, status: int = 200, *, is_eof_delimited: bool = False, content_type: str = "") -> Rig:
        """The request was sent and the answer's head has come."""
        if not self.stream.session.sent_at:
            self.send()
        kind = content_type or CONTENT_TYPES[self.dialect]
        headers = [(b"Content-Type", kind.encode())]
        self.stream.on_head(ResponseHead(status, "OK", headers, "1.1", is_eof_delimited))
        return self

    def feed(self, pieces: bytes | Sequence[bytes]) -> Rig:
        """Body bytes, for as long as the stream listens: an exchange that was dropped is silent."""
        for piece in [pieces] if isinstance(pieces, bytes) else pieces:
            if self.is_listening and piece:
                self.stream.on_body(piece)
        return self

    def end(self, failure: Failure | None = None) -> Rig:
        """The body ends, or its connection does."""
        if self.is_listening:
            if failure is None:
                self.stream.on_end()
            else:
                self.stream.on_fail(failure, may_resend=False)
        return self

    @property
    def is_listening(self) -> bool:
        return not self.exchange.is_dropped

    def pass_time(self, seconds: float) -> Rig:
        """Time passes, and the registry's sweep comes by."""
        self.clock.now += seconds
        for stream in self.streams:
            if stream.check_at <= self.clock.now:
                stream.check(self.clock.now)
        return self

    @property
    def record(self) -> Record:
        """The one record of the stream."""
        (record,) = self.observer.records
        return record

    @property
    def outcome(self) -> Outcome | None:
        return self.stream.session.outcome

    @property
    def code(self) -> str | None:
        failure = self.stream.session.failure or self.stream.failure
        return failure.code if failure is not None else None

    def events(self) -> list[tuple[str, Any]]:
        """Every typed event the client was given."""
        return typed_events(self.client.body)

    def assert_settled(self) -> None:
        """One outcome, told once; both sides let go of, nothing held, nobody waiting."""
        assert self.outcome is not None
        assert sum(self.streams.outcomes.values()) == 1
        assert self.record.outcome is self.outcome
        assert cast("Promise", self.stream.settled).resolved == 1
        assert (len(self.streams), self.streams.body_bytes, self.stream.lag_bytes - self.client.unsent) == (0, 0, 0)
        assert len(self.client.ends) <= 1


def typed_events(body: bytes) -> list[tuple[str, Any]]:
    """Name and data of every typed event."""
    found = []
    for block in body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def chunk(text: str = "hi", finish: str | None = None) -> bytes:
    """One OpenAI frame."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "c", "model": "m", "choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
RESET = Failure("upstream_reset", "reset")
