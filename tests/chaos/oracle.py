"""What has to hold at the end of a chaos round.

Owns the rules, each told in words when it is broken. Must not know faults or how clients behave: it compares what was
sent with what was got, and asks the app what it still holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sidecar.app import App
from sidecar.errors import ENDINGS, Outcome
from sidecar.record import Record
from tests.app_support import Reply
from tests.chaos.answers import has_end_mark, says_error
from tests.chaos.ledger import Got, Ledger, Sent
from tests.observing import Counting, assert_in_order


class Witness(Counting):
    """The observer of a round: one record for each request, by its id."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[str, Record] = {}
        self.told_twice: list[str] = []

    def ended(self, record: Record) -> None:
        super().ended(record)
        assert_in_order(record)
        if record.stream_id in self.records:
            self.told_twice.append(record.stream_id)
        self.records[record.stream_id] = record


def bugs_of(witness: Witness) -> Iterator[str]:
    """What holds whoever the upstreams are: each request has one outcome, and none is a bug."""
    if witness.started_count != witness.ended_count:
        yield f"{witness.started_count} requests began and {witness.ended_count} ended"
    if witness.told_twice:
        yield f"told of twice: {witness.told_twice}"
    for record in witness.records.values():
        if record.outcome is Outcome.INTERNAL:
            yield f"a bug: {record}"


def faults_of(ledger: Ledger, witness: Witness) -> Iterator[str]:
    """Every rule that was broken."""
    yield from bugs_of(witness)
    for got in ledger.got:
        sent = ledger.sent.get(got.number, [])
        for why in _faults_of_one(got, sent, witness.records):
            language = got.language.name if got.language else "no language"
            asked = f"request {got.number} ({got.kind}, {language}, answered {got.status} {got.format})"
            yield f"{asked}: {why}; upstreams: {_names(sent)}"
        for body in ledger.received.get(got.number, []):
            if body != got.body:
                yield f"request {got.number}: an upstream took {len(body)} bytes for its whole body of {len(got.body)}"


def _names(sent: list[Sent]) -> str:
    return ", ".join(f"{each.upstream} {each.fault}" for each in sent) or "none asked"


def _faults_of_one(got: Got, sent: list[Sent], records: Mapping[str, Record]) -> Iterator[str]:
    if not got.status:
        return
    if got.status >= 400:
        yield from _refused(got, sent)
    elif got.kind != "stream":
        yield from _plain(got, sent)
    elif got.format == "typed":
        yield from _typed(got, sent)
    else:
        yield from _native(got, sent)
    if got.stream_id:
        yield from _recorded(got, records)


def _refused(got: Got, sent: list[Sent]) -> Iterator[str]:
    """An HTTP error is an upstream's own, or ours."""
    theirs = [each for each in sent if each.status == got.status]
    if (
        not got.is_whole
        or got.is_until_close
        or any(got.answer == bytes(each.body) and each.is_framed_whole for each in theirs)
    ):
        return
    try:
        said = json.loads(got.answer)
    except ValueError:
        said = None
    if not isinstance(said, dict) or not said.keys() & {"error", "code"}:
        yield f"neither an upstream's refusal nor ours: {got.answer[:200]!r}"


def _plain(got: Got, sent: list[Sent]) -> Iterator[str]:
    """A body that is no stream comes through as it is, or visibly broken."""
    if not any(bytes(each.body).startswith(got.answer) for each in sent):
        yield "its body is no upstream's"
    if (
        got.is_whole
        and not got.is_until_close
        and not any(each.is_framed_whole and each.body == got.answer for each in sent)
    ):
        yield "FALSE COMPLETION: its body looked whole, and no upstream sent it whole"


def _native(got: Got, sent: list[Sent]) -> Iterator[str]:
    """A native stream is an upstream's bytes; where it looks whole, whole."""
    assert got.language is not None
    matching = [each for each in sent if _continues(got.answer, bytes(each.body))]
    if got.answer and not matching:
        yield f"its body is no upstream's: {got.answer[-300:]!r}"
    ended = has_end_mark(got.language, got.answer)
    same = [each for each in sent if bytes(each.body) == got.answer]
    if got.is_whole and not got.is_until_close:
        told = [
            each
            for each in same
            if each.has_end_mark
            or (each.is_finished and each.is_framed_whole)
            or (each.is_framed_whole and says_error(got.answer))
        ]
        if not told:
            yield f"FALSE COMPLETION: its body was ended as if it were whole: {got.answer[-300:]!r}"
    elif got.is_until_close and ended and not any(each.has_end_mark for each in matching):
        yield "FALSE COMPLETION: an end mark that no upstream sent"


def _continues(answer: bytes, body: bytes) -> bool:
    """Whether the answer is what an upstream sent, as far as it came, with at most an error of ours behind it."""
    common = 0
    if body.startswith(answer):
        return True
    while common < min(len(answer), len(body)) and answer[common] == body[common]:
        common += 1
    return says_error(answer[common - 12 if common >= 12 else 0 :]) and not answer.startswith(body + b"data: [DONE]")


def _typed(got: Got, sent: list[Sent]) -> Iterator[str]:
    """A typed stream is numbered without a gap, tells an upstream's text, and is complete only where that was."""
    whole = got.answer[: got.answer.rfind(b"\n\n") + 2]
    events = Reply(got.status, "", [], b"", [whole]).events()
    text = "".join(data["text"] for name, data in events if name == "token")
    if not any(each.text.startswith(text) for each in sent):
        yield f"its text is no upstream's: {text[-100:]!r}"
    status = _done_status(events)
    if got.is_whole and not got.is_until_close and status is None:
        yield "FALSE COMPLETION: its body is whole and tells no end"
    if status is not None and [name for name, _ in events].count("done") != 1:
        yield "more than one end"
    if status == "completed":
        unparsed = sum(name == "extension" and data["type"] == "unparsed" for name, data in events)
        if not any(each.may_complete and each.text == text and each.broken_frames >= unparsed for each in sent):
            yield f"FALSE COMPLETION: done.status completed with {text[-100:]!r}"
        if any(name == "error" for name, _ in events):
            yield "completed, and an error"


def _done_status(events: list[tuple[str, Any]]) -> str | None:
    name, data = events[-1] if events else ("", {})
    return str(data["status"]) if name == "done" else None


def _recorded(got: Got, records: Mapping[str, Record]) -> Iterator[str]:
    """What the observer was told is what the client saw."""
    record = records.get(got.stream_id)
    if record is None:
        yield f"nobody was told of stream {got.stream_id}"
        return
    if record.status is not None and record.status != got.status:
        yield f"recorded with status {record.status}"
    if got.format == "typed" and got.status == 200 and got.kind == "stream":
        events = Reply(200, "", [], b"", [got.answer[: got.answer.rfind(b"\n\n") + 2]]).events()
        status = _done_status(events)
        if status is not None and status != (ENDINGS[record.outcome].done_status or "failed"):
            yield f"told {status}, recorded as {record.outcome}"
    is_success = got.status == 200 and got.is_whole and not got.is_until_close and got.format == "native"
    if is_success and record.outcome not in {Outcome.COMPLETED, Outcome.UPSTREAM_FAILED}:
        yield f"a whole answer, recorded as {record.outcome}"
    is_typed_stream = got.kind == "stream" and got.format == "typed"
    if record.outcome is Outcome.COMPLETED and is_typed_stream and not got.left and not got.is_whole:
        yield "recorded as completed, and its client saw it break"


def left_over(app: App) -> dict[str, int]:
    """What the app holds for somebody; all of it has to go to zero when nobody is there."""
    held = {
        "streams": len(app.streams),
        "tasks": app.streams.tasks,
        "body bytes": app.streams.body_bytes,
        "watched clients": len(app.streams._watched),
        "client connections": len(app._protocols.connections),
    }
    held["places"] = len(getattr(getattr(app, "admission", None), "_counts", ()))
    for name in app._settings.upstreams:
        held[f"active at {name}"] = app.pool(name).active
        held[f"untold to the health of {name}"] = app._gateway.plan.targets[name].health._admitted
    return {what: count for what, count in held.items() if count}
