"""What parent and workers are made of, one by one: their line to each other, merged pages, numbers, log lines."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.app import App, Shared
from sidecar.configuration import Source, describe, load, text_of
from sidecar.settings import Address, Logs, Telemetry
from sidecar.shared_counts import SharedCounts, create
from sidecar.telemetry.line_output import LineOutput
from sidecar.telemetry.parent_page import ParentPage, worker_environ
from sidecar.telemetry.resource import make_resource
from sidecar.workers import channel as channels
from sidecar.workers.channel import Channel, receive, tell
from sidecar.workers.child import status_in_words
from sidecar.workers.messages import About, Ask, Configure, Pulse, encode, for_parent, for_worker
from sidecar.workers.number import usable_cores
from sidecar.workers.pages import merged, merged_streams
from tests.app_support import answering, ask, asked, on_uvloop, plain, settings_for, upstream_at
from tests.departures import until
from tests.observing import Counting

# The line between parent and worker.


class End:
    """One end of a line, and what came in there."""

    def __init__(self, sock: socket.socket) -> None:
        self.messages: list[bytes] = []
        self.lost = 0
        self.channel = Channel(asyncio.get_running_loop(), sock, self.messages.append, self._lost)

    def _lost(self) -> None:
        self.lost += 1


@on_uvloop
async def test_messages_arrive_whole_and_in_order() -> None:
    ours, theirs = socket.socketpair()
    one, other = End(ours), End(theirs)
    sent = [b"", b"a", b"b" * 3_000_000, *(str(number).encode() for number in range(500))]
    for message in sent:
        one.channel.send(message)
    other.channel.send(b"back")
    await until(lambda: len(other.messages) == len(sent) and one.messages)
    assert other.messages == sent
    assert one.messages == [b"back"]
    assert (one.channel.unsent_bytes, one.lost, other.lost) == (0, 0, 0)
    one.channel.close()
    await until(lambda: other.lost)
    other.channel.send(b"into the void")
    one.channel.close()
    assert (one.lost, other.lost) == (0, 1)


@on_uvloop
async def test_bytes_may_come_one_by_one() -> None:
    ours, theirs = socket.socketpair()
    end = End(theirs)
    with ours:
        for byte in b"\x00\x00\x00\x02hi\x00\x00\x00\x01!":
            ours.send(bytes([byte]))
            await asyncio.sleep(0)
        await until(lambda: len(end.messages) == 2)
        assert end.messages == [b"hi", b"!"]
    await until(lambda: end.lost)


@on_uvloop
async def test_too_long_a_message_and_too_many_end_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    end = End(theirs)
    with ours:
        ours.send(b"\xff\xff\xff\xff")
        await until(lambda: end.lost)
    monkeypatch.setattr(channels, "MAX_UNSENT_BYTES", 1_000_000)
    ours, theirs = socket.socketpair()
    end = End(ours)
    with theirs:
        while not end.lost:
            end.channel.send(b"x" * 100_000)
    assert end.lost == 1


@on_uvloop
async def test_last_words_are_heard_and_a_line_can_be_left_open() -> None:
    ours, theirs = socket.socketpair()
    one, other = End(ours), End(theirs)
    other.channel.send(b"last words")
    other.channel.leave()
    one.channel.drain()
    assert (one.messages, one.lost) == ([b"last words"], 0)
    one.channel.close()
    theirs.close()


def test_the_first_message_comes_without_a_loop() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        tell(ours, b"hello" * 1000, 1.0)
        assert receive(theirs, 1.0) == b"hello" * 1000
        with pytest.raises(TimeoutError):
            receive(theirs, 0.01)
        ours.send(b"\x00\x00\x00\x09half")
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match="gone"):
            receive(theirs, 1.0)


def test_messages_are_read_as_they_were_meant() -> None:
    source = Source(name="a.yaml", text=b"\xff\x00no text", listen="127.0.0.1:0")
    first = Configure(source, source, "pod-1", os.urandom(32))
    assert for_worker(encode(first)) == first
    assert for_worker(encode(Ask(7, About.METRICS, "text/plain"))) == Ask(7, About.METRICS, "text/plain")
    assert for_parent(encode(Pulse("draining", 3))) == Pulse("draining", 3)


def test_how_a_process_ended() -> None:
    assert [status_in_words(status) for status in (0, 3, -9, -99)] == [
        "with status 0",
        "with status 3",
        "by SIGKILL",
        "by signal 99",
    ]


# Pages.

OWN = """\
# HELP target_info Target metadata
# TYPE target_info gauge
target_info{service_name="a"} 1
# HELP cpu_total Time
# TYPE cpu_total counter
cpu_total{llm_sidecar_worker="parent"} 1
"""
ONE = """\
# HELP target_info Target metadata
# TYPE target_info gauge
target_info{service_name="a",service_instance_id="1"} 1
# HELP cpu_total Time
# TYPE cpu_total counter
cpu_total 2
# HELP ttft_seconds Text with # and {braces}
# TYPE ttft_seconds histogram
# UNIT ttft_seconds seconds
ttft_seconds_bucket{model="a} b",le="+Inf"} 3 # {trace_id="ab"} 0.2 17.0
ttft_seconds_count{} 3 # {trace_id="cd"} 0.2 17.0
ttft_seconds_sum 4 # {trace_id="ef"} 0.2 17.0
"""


def test_pages_are_merged_by_family() -> None:
    assert (
        merged(OWN + "# EOF\n", {1: ONE + "# EOF\n", 3: ONE + "# EOF\n"}, "llm_sidecar_worker")
        == """\
# HELP target_info Target metadata
# TYPE target_info gauge
target_info{service_name="a"} 1
# HELP cpu_total Time
# TYPE cpu_total counter
cpu_total{llm_sidecar_worker="parent"} 1
cpu_total{llm_sidecar_worker="1"} 2
cpu_total{llm_sidecar_worker="3"} 2
# HELP ttft_seconds Text with # and {braces}
# TYPE ttft_seconds histogram
# UNIT ttft_seconds seconds
ttft_seconds_bucket{llm_sidecar_worker="1",model="a} b",le="+Inf"} 3 # {trace_id="ab"} 0.2 17.0
ttft_seconds_count{llm_sidecar_worker="1"} 3 # {trace_id="cd"} 0.2 17.0
ttft_seconds_sum{llm_sidecar_worker="1"} 4 # {trace_id="ef"} 0.2 17.0
ttft_seconds_bucket{llm_sidecar_worker="3",model="a} b",le="+Inf"} 3 # {trace_id="ab"} 0.2 17.0
ttft_seconds_count{llm_sidecar_worker="3"} 3 # {trace_id="cd"} 0.2 17.0
ttft_seconds_sum{llm_sidecar_worker="3"} 4 # {trace_id="ef"} 0.2 17.0
# EOF
"""
    )
    assert merged(OWN, {}, "w") == OWN


def test_streams_are_merged_oldest_first() -> None:
    found = {2: [{"stream": "b", "age_s": 2.0}, {"stream": "d", "age_s": 0.5}], 1: [{"stream": "c", "age_s": 1.0}]}
    assert merged_streams(found) == [
        {"worker": 2, "stream": "b", "age_s": 2.0},
        {"worker": 1, "stream": "c", "age_s": 1.0},
        {"worker": 2, "stream": "d", "age_s": 0.5},
    ]


def test_every_worker_is_an_instance_of_its_own() -> None:
    for environ in ({}, {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=pod%2C1,team=a"}):
        parent = ParentPage(Telemetry(), environ)
        names = []
        for number in (1, 2):
            resource = make_resource("", worker_environ(environ, f"{parent.instance}-{number}")).attributes
            names.append(resource["service.instance.id"])
            assert resource.get("team") == ("a" if environ else None)
        assert names == [f"{parent.instance}-1", f"{parent.instance}-2"]
        assert not environ or parent.instance == "pod,1"


def test_without_metrics_there_is_no_page() -> None:
    assert not ParentPage(Telemetry(metrics=False), {}).keeps_metrics
    assert not ParentPage(Telemetry(), {"OTEL_SDK_DISABLED": "true"}).keeps_metrics
    assert ParentPage(Telemetry(), {}).keeps_metrics


# Numbers and configuration.


@pytest.mark.parametrize(
    ("quota", "most"), [("max 100000", 256), ("150000 100000", 2), ("1000 100000", 1), ("nonsense", 256), ("1 0", 256)]
)
def test_a_quota_counts_as_fewer_cores(tmp_path: Path, quota: str, most: int) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(f"{quota}\n")
    assert usable_cores(file) == min(len(os.sched_getaffinity(0)), most)
    assert usable_cores(tmp_path / "missing") == min(len(os.sched_getaffinity(0)), 256)


FILE = "upstreams:\n  a: {url: 'http://127.0.0.1:9'}\n"


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("7", 7), ("256", 256), ("auto", 0)])
def test_a_number_of_workers(text: str, number: int) -> None:
    for loaded in (
        load(f"{FILE}workers: {text}\n", source="f", environ={}),
        Source(upstream="http://127.0.0.1:9", workers=text).load({}),
        Source(name="f", text=f"{FILE}workers: 3\n".encode(), workers=text).load({}),
    ):
        assert loaded.settings is not None
        assert loaded.settings.workers == number
        said = {0: ["workers auto, one for each core"], 1: []}.get(number, [f"workers {number}"])
        told = [line for line in describe(loaded.settings).splitlines() if line.startswith("workers")]
        assert told == said


@pytest.mark.parametrize("text", ["0", "-1", "257", "two", "1.5", "'٣'", "''"])
def test_no_number_of_workers(text: str) -> None:
    loaded = load(f"{FILE}workers: {text}\n", source="f", environ={})
    assert loaded.settings is None
    assert "workers: must be a number from 1 to 256, or auto" in loaded.render_problems()
    assert Source(upstream="http://127.0.0.1:9", workers=text.strip("'")).load({}).settings is None


def test_a_source_reads_the_same_wherever_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(FILE)
    source = Source(name=str(file), text=text_of(str(file)), listen="127.0.0.1:1", format="typed")
    file.write_text("nonsense")
    loaded = source.load({})
    assert loaded.settings is not None
    assert (str(loaded.settings.listen), loaded.settings.routes[0].format) == ("127.0.0.1:1", "typed")
    assert text_of(str(tmp_path / "missing")) is None
    assert "cannot be read" in Source(name=str(tmp_path / "missing")).load({}).render_problems()


# Log lines.


@given(st.lists(st.integers(1, 6000), min_size=1, max_size=200), st.booleans())
def test_no_write_tears_others_lines(lengths: list[int], is_shared: bool) -> None:
    data = b"".join(b"x" * (length - 1) + b"\n" for length in lengths)
    pieces = list(LineOutput(Logs(), is_shared=is_shared)._pieces(data))
    assert b"".join(pieces) == data
    if not is_shared:
        assert pieces == [data]
    for piece in pieces:
        assert piece.endswith(b"\n")
        assert not is_shared or len(piece) <= 4096 or piece.count(b"\n") == 1


# An app that shares.


@on_uvloop
async def test_an_app_listens_where_it_is_told_and_leaves_the_path_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "shared.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    memory = create(1)
    with listener, closing(SharedCounts(memory, 0)) as counts:
        async with answering(plain(b"{}")) as upstream:
            settings = settings_for(upstream_at(upstream.address), listen=Address(path=path))
            for _ in range(2):  # one after the other, as a worker and its successor
                app = App(settings, {}, observer=Counting(), shared=Shared(listener.dup(), counts, b""))
                await app.start()
                assert app.admin_port == 0
                assert (await asked(app, ask(stream=False))).body == b"{}"
                await app.close()
                assert os.path.exists(path)
    os.close(memory)
