"""Log lines: fields, levels, escaping, secrets, and a standard error that nobody reads."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sidecar.errors import ENDINGS, Failure, Outcome
from sidecar.record import Content
from sidecar.settings import Logs
from sidecar.telemetry import names
from sidecar.telemetry.line_output import LineOutput, redirect_logging
from sidecar.telemetry.lines import stream_level, stream_line
from sidecar.telemetry.waiting import make_writable
from tests.telemetry_support import DEADLINE_S, ended, waiting

JSON_LOGS = Logs(format="json")
SECRET = "sk-very-secret"


def told(**changes: Any) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(stream_line(waiting(**changes), "json"))
    return line


# What a line says


def test_a_stream_in_json() -> None:
    assert told() == {
        "time": "2023-11-14T22:15:02.500Z",
        "level": "info",
        "message": "stream ended",
        "stream": "01a203e4daa6a0f8d06f8d3dc7e920bb",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "span_id": "b7ad6b7169203331",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "outcome": "completed",
        "route": "chat",
        "upstream": "main",
        "upstream_status": 200,
        "model": "gpt-5",
        "response_model": "gpt-5-2026",
        "format": "native",
        "duration_s": 2.5,
        "ttft_s": 0.2505,
        "upstream_ttft_s": 0.247,
        "overhead_s": 0.0025,
        "max_gap_s": 0.4,
        "content_events": 21,
        "input_tokens": 100,
        "output_tokens": 21,
        "cached_input_tokens": 40,
        "reasoning_tokens": 8,
        "finish_reasons": ["stop"],
    }


def test_a_stream_on_a_console() -> None:
    line = stream_line(waiting(requested_model="a model"), "console")
    assert line.startswith("2023-11-14T22:15:02.500Z INFO sidecar.streams: stream ended stream=01a203e4daa6a0f8d06f")
    assert ' status=200 outcome=completed route=chat upstream=main upstream_status=200 model="a model"' in line
    assert " ttft_s=0.2505 " in line
    assert line.endswith(" reasoning_tokens=8")


def test_every_field_is_one_of_the_table_and_each_can_occur() -> None:
    failure = Failure("upstream_reset", "gone")
    one, two = (
        told(
            outcome=Outcome.UPSTREAM_BROKEN,
            failure=failure,
            attempts=attempts,
            queued_s=0.0005,
            warnings=("terminator_missing",),
        )
        for attempts in (1, 2)
    )
    assert one["overhead_s"] == 0.002, "what was waited for a place is no overhead"
    assert one.keys() | two.keys() == names.LOG_FIELDS.keys()
    assert two.keys() - one.keys() == {"attempts"}
    assert one.keys() - two.keys() == {"overhead_s"}


@pytest.mark.parametrize("outcome", Outcome)
def test_levels(outcome: Outcome) -> None:
    level = stream_level(ended(outcome=outcome))
    if outcome is Outcome.INTERNAL:
        assert level == "error"
    else:
        assert level == ("warning" if ENDINGS[outcome].is_span_error else "info")


def test_a_failure_has_its_code_and_none_of_its_words() -> None:
    failure = Failure("upstream_error", SECRET, native={"key": SECRET}, provider_code=SECRET)
    changes = {"outcome": Outcome.UPSTREAM_FAILED, "failure": failure, "content": Content(SECRET, SECRET)}
    found = told(**changes)
    assert (found["level"], found["error"], found["error_type"]) == ("warning", "upstream_error", "_OTHER")
    assert SECRET not in str(found)
    assert SECRET not in stream_line(waiting(**changes), "console")


@pytest.mark.parametrize(
    "hostile", ["a\nlevel=error", "\x1b[2J\x07", "a b=c", '"', "\x9b31m", "\u2028", "é", "\udcff", "\x7f", "\r"]
)
def test_a_line_is_one_line_whatever_it_is_told(hostile: str) -> None:
    record = ended(path=f"/{hostile}", requested_model=hostile)
    make_writable(record)
    for console in (stream_line(waiting(path=f"/{hostile}", requested_model=hostile), "console"),):
        assert console.isascii()
        assert console.isprintable()
    line = stream_line(waiting(path=f"/{hostile}", requested_model=hostile), "json")
    assert "\n" not in line
    assert "\x1b" not in line
    assert json.loads(line)["path"] == f"/{hostile}"


# Where lines go


class Pipe:
    """A pipe in place of standard error. It holds 64 KiB; nothing is read but by `read`."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, 4096)

    def lines(self, number: int) -> list[str]:
        """The next so many lines, where there are no more."""
        read = b""
        while read.count(b"\n") < number:
            read += os.read(self.reader, 65536)
        return read.decode().splitlines()

    def until_closed(self) -> list[str]:
        """Everything up to the end."""
        with open(self.reader, "rb", closefd=False) as reader:
            return reader.read().decode().splitlines()

    def close_writer(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def everything(self) -> list[str]:
        """What has been written by now."""
        self.close_writer()
        return self.until_closed()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    for descriptor in (made.reader, made.writer):
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def output_to(pipe: Pipe, settings: Logs = JSON_LOGS, queue_items: int = 100) -> Iterator[LineOutput]:
    output = LineOutput(settings, pipe.writer, queue_items)
    output.start()
    try:
        yield output
    finally:
        output.close(DEADLINE_S)


@contextmanager
def logging_to(output: LineOutput, level: str = "info") -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("sidecar")
    before = root.handlers[:], root.level, ours.level
    redirect_logging(output, level)
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])


def messages(lines: list[str]) -> list[str]:
    return [json.loads(line)["message"] for line in lines]


def test_the_process_speaks_through_the_same_output(pipe: Pipe) -> None:
    with output_to(pipe) as output, logging_to(output):
        logging.getLogger("sidecar.test").info("hello %s", "you")
        logging.getLogger("sidecar.test").debug("not heard")
        logging.getLogger("urllib3").info("http://host/?key=%s", SECRET)
        logging.getLogger("asyncio").warning("heard")
        output.stream(waiting())
    first, second, third = map(json.loads, pipe.everything())
    assert (first["message"], first["level"], first["logger"]) == ("hello you", "info", "sidecar.test")
    assert (second["message"], second["logger"]) == ("heard", "asyncio")
    assert third["stream"] == "01a203e4daa6a0f8d06f8d3dc7e920bb"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_is_told(log_format: Any, pipe: Pipe) -> None:
    with output_to(pipe, Logs(format=log_format)) as output, logging_to(output):
        try:
            raise ZeroDivisionError("a\x1bb")
        except ZeroDivisionError:
            logging.getLogger("sidecar").exception("failed")
    lines = pipe.everything()
    if log_format == "json":
        (line,) = lines
        assert json.loads(line)["exception"].endswith("ZeroDivisionError: a\x1bb")
    else:
        assert lines[0].endswith(" ERROR sidecar: failed")
        assert lines[-1] == "ZeroDivisionError: a\\x1bb"


def test_a_line_that_cannot_be_formatted_is_said_to_be_one(pipe: Pipe) -> None:
    with output_to(pipe) as output, logging_to(output):
        logging.getLogger("sidecar.test").warning("%d", "no number")
    assert pipe.everything() == ["a line of sidecar.test cannot be formatted"]


def test_the_level_holds_for_streams_too(pipe: Pipe) -> None:
    failure = Failure("upstream_reset", "gone")
    with output_to(pipe, Logs("json", "warning")) as output:
        output.stream(waiting())
        output.stream(waiting(outcome=Outcome.UPSTREAM_BROKEN, failure=failure))
    (line,) = pipe.everything()
    assert json.loads(line)["outcome"] == "upstream_broken"


def test_a_blocked_reader_blocks_the_thread_alone_and_the_loss_is_counted_and_said(pipe: Pipe) -> None:
    lost: list[tuple[str, int]] = []
    written: list[int] = []
    with output_to(pipe, queue_items=10) as output:
        output.dropped = lambda reason, items: lost.append((reason, items))
        output.written = written.append
        while not lost:  # until pipe and queue are full; none of these calls waits
            output.stream(waiting())
            if output.queued >= 10:
                output.stream(waiting())
        for _ in range(5):
            output.stream(waiting())
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.extend(pipe.until_closed()))
        reader.start()
    pipe.close_writer()
    reader.join(DEADLINE_S)
    assert {reason for reason, _ in lost} == {"queue_full"}
    said = [message for message in messages(found) if message != "stream ended"]
    assert sum(int(message.split()[0]) for message in said) == len(lost)
    assert sum(written) == len(found) - len(said)


def test_closing_gives_a_blocked_reader_up(pipe: Pipe) -> None:
    lost: list[tuple[str, int]] = []
    output = LineOutput(JSON_LOGS, pipe.writer, 100)
    output.dropped = lambda reason, items: lost.append((reason, items))
    for _ in range(100):
        output.stream(waiting())
    output.start()
    output.close(0.01)
    assert [reason for reason, _ in lost] == ["closed"]
    output.emit(logging.makeLogRecord({"msg": "nobody waits for this"}))
    pipe.lines(64)


def test_a_standard_error_that_does_not_block_is_waited_for(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    with output_to(pipe) as output:
        for _ in range(30):
            output.stream(waiting())
        output._wake.set()
        found = pipe.lines(30)
    assert len(found) == 30


def test_a_closed_standard_error_costs_lines_and_nothing_else(pipe: Pipe) -> None:
    lost: list[tuple[str, int]] = []
    os.close(pipe.reader)
    pipe.reader = -1
    with output_to(pipe) as output:
        output.dropped = lambda reason, items: lost.append((reason, items))
        output.stream(waiting())
    assert lost == [("export_failed", 1)]


def test_before_the_start_and_after_the_end_lines_are_written_at_once(pipe: Pipe) -> None:
    output = LineOutput(JSON_LOGS, pipe.writer)
    with logging_to(output):
        logging.getLogger("sidecar").warning("before")
        output.start()
        output.close(DEADLINE_S)
        logging.getLogger("sidecar").warning("after")
    assert messages(pipe.everything()) == ["before", "after"]
