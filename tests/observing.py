"""Observers for the tests: one that only counts, and one that remembers and can be waited for."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.record import Record, Trace
from tests.upstream_support import Watched

TRACE = Trace("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7", "aaaaaaaaaaaaaaaa", "a=1,b=2")


class Counting:
    """Keeps nothing of what it is told but how often."""

    def __init__(self) -> None:
        self.started_count = 0
        self.ended_count = 0

    def trace(self, headers: Mapping[str, str]) -> Trace | None:
        return None

    def started(self) -> None:
        self.started_count += 1

    def ended(self, record: Record) -> None:
        self.ended_count += 1

    def turned(self, late_s: float) -> None:
        assert late_s >= 0


class Observing(Counting, Watched):
    """Remembers every record, and what each request's headers were. ``place`` is what it says of each."""

    def __init__(self, place: Trace | None = None) -> None:
        Counting.__init__(self)
        Watched.__init__(self)
        self.records: list[Record] = []
        self.headers: list[Mapping[str, str]] = []
        self.lates: list[float] = []
        self._place = place

    def trace(self, headers: Mapping[str, str]) -> Trace | None:
        self.headers.append(headers)
        return self._place

    def ended(self, record: Record) -> None:
        super().ended(record)
        assert_in_order(record)
        assert record.stream_id not in {each.stream_id for each in self.records}, "told twice"
        self.records.append(record)
        self.changed()

    def turned(self, late_s: float) -> None:
        self.lates.append(late_s)

    async def record(self, number: int = 0) -> Record:
        """One record, as soon as it is there."""
        await self.until(lambda: len(self.records) > number)
        return self.records[number]


class Failing:
    """Fails at everything it is told."""

    def trace(self, headers: Mapping[str, str]) -> Trace | None:
        raise ZeroDivisionError

    def started(self) -> None:
        """This alone it can."""

    def ended(self, record: Record) -> None:
        raise ZeroDivisionError

    def turned(self, late_s: float) -> None:
        raise ZeroDivisionError


def assert_in_order(record: Record) -> None:
    """No mark lies before one that comes earlier."""
    way_there = [record.received_at, record.body_read_at, record.sent_at, record.ended_at]
    way_back = [record.sent_at, record.first_content_at, record.first_sent_at, record.ended_at]
    content = [record.first_content_at, record.last_content_at, record.ended_at]
    for marks in (way_there, way_back, content):
        reached = [mark for mark in marks if mark is not None]
        assert reached == sorted(reached), record
    assert (record.first_content_at is None) == (record.last_content_at is None)
