"""A record made fit to wait: of text that can be written anywhere, and with what makes its marks a time of day.

Owns that nothing a client or an upstream calls itself breaks a whole batch for its encoding. Must not know who the
record waits for. How much a record may hold is the data plane's to bound; thousands wait where a collector is down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from sidecar.record import Record

MAX_PATH: Final = 1024


class Waiting(NamedTuple):
    """A record, and what to add to its marks (in nanoseconds) to have the time of day."""

    record: Record
    anchor_ns: int

    def at_ns(self, mark_s: float) -> int:
        """Nanoseconds since 1970 of one of the record's marks."""
        return self.anchor_ns + int(mark_s * 1e9)


def make_writable(record: Record) -> None:
    """Cut a long path, and put a question mark for each character that UTF-8 cannot encode, in place."""
    if len(record.path) > MAX_PATH:
        record.path = f"{record.path[: MAX_PATH - 1]}…"
    texts = (record.path, record.requested_model, record.sent_model, record.response_model, record.response_id)
    if not "".join(texts).isascii():
        record.path, record.requested_model, record.sent_model, record.response_model, record.response_id = (
            text.encode("utf-8", "replace").decode() for text in texts
        )
    if not record.method.isascii():
        record.method = record.method.encode("utf-8", "replace").decode()
