"""The registry, and the rule it lives by: whatever happens in whatever order, every stream has exactly one outcome."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import Failure, Outcome
from sidecar.settings import Limits, Timeouts
from sidecar.streams import COUNT_INTERVAL_S, SWEEP_INTERVAL_S, Streams
from tests.app_support import on_uvloop
from tests.core_support import DONE, RESET, Rig, chunk

SMALL = Limits(buffer_bytes=2000, stall_timeout_s=10.0)
EVICT = Limits(buffer_bytes=2000, on_slow_client="evict", stall_timeout_s=10.0)
QUICK = Timeouts(first_token_s=5.0, idle_s=3.0, total_s=60.0)


def test_a_stream_is_in_the_registry_until_its_outcome() -> None:
    rig = Rig()
    assert (len(rig.streams), list(rig.streams)) == (1, [rig.stream])
    rig.open().feed(chunk() + DONE)
    assert (len(rig.streams), rig.streams.outcomes) == (0, {Outcome.COMPLETED: 1})


def test_the_sweep_applies_deadlines_and_tells_the_others() -> None:
    rig = Rig(timeouts=QUICK).open()
    swept: list[float] = []
    rig.streams.start(swept.append)
    for _ in range(40):
        rig.clock.now += SWEEP_INTERVAL_S
        rig.loop.run_due()
    assert rig.outcome is Outcome.TIMED_OUT
    assert rig.streams.last_turn_at == rig.clock.now
    assert len(swept) == 40 * SWEEP_INTERVAL_S / COUNT_INTERVAL_S


def test_what_streams_hold_is_counted() -> None:
    rig = Rig(format="native", body=b"x" * 10, capacity=1).send()
    rig.streams.start()
    assert rig.streams.buffered_bytes == 10
    rig.open().feed([chunk(), chunk(), b"data: partial"])
    rig.clock.now += COUNT_INTERVAL_S
    rig.loop.run_due()
    assert rig.streams.buffered_bytes == 2 * len(chunk()) + len(b"data: partial")


@on_uvloop
async def test_close_cancels_and_awaits_every_task() -> None:
    loop = asyncio.get_running_loop()
    streams = Streams(loop.time, loop)
    streams.start()
    ended: list[str] = []

    async def endless() -> None:
        try:
            await loop.create_future()
        finally:
            ended.append("endless")

    async def brief() -> int:
        return 1

    streams.spawn(endless(), "endless")
    assert await streams.spawn(brief(), "brief") == 1
    await asyncio.sleep(0)
    assert streams.tasks == 1
    await streams.close()
    assert (ended, streams.tasks) == (["endless"], 0)


# Any order of what can happen.

WORDS = (
    *("head", "page", "rejected", "plain", "body", "body", "ping", "error", "finish", "done", "end", "reset"),
    *("drain", "gone", "pass", "pass", "long", "shutdown", "late"),
)
STEPS = st.lists(st.sampled_from(WORDS), max_size=14)


@settings(max_examples=400, deadline=None)
@given(STEPS, st.sampled_from(["typed", "native"]), st.sampled_from([None, 1]), st.sampled_from([SMALL, EVICT]))
def test_every_path_has_exactly_one_outcome(
    steps: list[str], format_name: str, capacity: int | None, limits: Limits
) -> None:
    rig = Rig(format=format_name, limits=limits, timeouts=QUICK, capacity=capacity).send()
    upstream = Upstream(rig)
    for step in steps:
        take(step, rig, upstream)
    rig.stream.client_gone()
    upstream.door()
    rig.assert_settled()
    assert upstream.is_over or rig.exchange.is_dropped
    assert rig.client.ends.count("finish") <= 1
    body = rig.client.body
    assert body.count(b"event: done\n") <= 1
    assert not (body.count(b"event: done\n") and not body.rstrip().rsplit(b"event: ", 1)[-1].startswith(b"done"))


class Upstream:
    """Keeps an upstream's and a door's promises: what is called when, and never again after the end."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._has_head = False
        self._has_ended = False

    @property
    def is_over(self) -> bool:
        return self._has_ended or self._rig.exchange.is_dropped

    def head(self, status: int, content_type: str) -> None:
        if not self.is_over and not self._has_head:
            self._has_head = True
            self._rig.open(status, content_type=content_type)

    def body(self, data: bytes) -> None:
        if not self.is_over and self._has_head and not self._rig.exchange.is_paused:
            self._rig.feed(data)

    def end(self, failure: Failure | None) -> None:
        if not self.is_over and (self._has_head or failure is not None):
            self._has_ended = True
            self._rig.end(failure)

    def door(self) -> None:
        """Answers in the stream's place once it has failed with nothing sent."""
        stream = self._rig.stream
        if stream.failure is not None and self._rig.outcome is None:
            stream.give_up(stream.failure)


def take(step: str, rig: Rig, upstream: Upstream) -> None:
    was_ready = rig.client.is_ready
    match step:
        case "head":
            upstream.head(200, "text/event-stream")
        case "page":
            upstream.head(200, "text/html")
        case "rejected":
            upstream.head(429, "application/json")
        case "plain":
            upstream.head(200, "application/json")
        case "body":
            upstream.body(chunk("x" * 300))
        case "ping":
            upstream.body(b": ping\n\n")
        case "error":
            upstream.body(b'data: {"error":{"message":"no"}}\n\n')
        case "finish":
            upstream.body(chunk("", "stop"))
        case "done":
            upstream.body(DONE)
        case "end":
            upstream.end(None)
        case "reset":
            upstream.end(RESET)
        case "drain":
            if not was_ready:
                rig.client.drain()
                rig.stream.client_writable()
        case "gone":
            rig.stream.client_gone()
        case "pass":
            rig.pass_time(1.0)
        case "long":
            rig.pass_time(30.0)
        case "shutdown":
            rig.streams.end_all()
        case "late":
            rig.stream.fail(RESET)
    if was_ready and not rig.client.is_ready:
        rig.stream.client_blocked()
    upstream.door()
