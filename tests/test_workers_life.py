"""Several workers as one: another configuration, the hook, the end and limits hold for all as for one process."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.app_support import LAST_CHUNK
from tests.processes import until
from tests.workers_support import DEADLINE_S, Sidecar, Stream, group, running

PORTS = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n"
Write = Callable[[str], None]


@contextmanager
def served(folder: Path, text: str, tokens: int = 100_000) -> Iterator[tuple[Sidecar, Write]]:
    """Two workers before a simulator, and what writes their file anew."""
    pace = ["--tokens", str(tokens), "--interval-ms", "5"]
    file = folder / "sidecar.yaml"
    with running(folder / "simulator.log", "simulate", "--listen", "127.0.0.1:0", *pace) as simulator:

        def write(more: str) -> None:
            fresh = folder / "fresh.yaml"
            fresh.write_text(f"{PORTS}upstreams: {{llm: {{url: 'http://{simulator.address}', proxy: none}}}}\n{more}")
            fresh.rename(file)

        write(text)
        with running(folder / "sidecar.log", "run", "--config", str(file), "--workers", "2") as sidecar:
            sidecar.workers(2)
            yield sidecar, write


def seats(sidecar: Sidecar) -> set[int]:
    return {stream["worker"] for stream in sidecar.streams()["streams"]}


def on_both(sidecar: Sidecar, mark: bytes = b"data: ") -> list[Stream]:
    """Streams that have begun, at least one on each worker."""
    streams: list[Stream] = []
    while seats(sidecar) != {1, 2}:
        streams.append(Stream(sidecar))
        streams[-1].until(mark)
    return streams


def go_on(streams: list[Stream]) -> None:
    for stream in streams:
        before = len(stream.got)
        stream.got += stream.connection.recv(65536)
        assert len(stream.got) > before
        assert LAST_CHUNK not in stream.got


def close(streams: list[Stream]) -> None:
    for stream in streams:
        stream.connection.close()


def formats(sidecar: Sidecar) -> dict[int, str]:
    """Which format each worker begins streams in now."""
    found: dict[int, str] = {}
    until(lambda: not sidecar.streams()["streams"], "the end of all streams")
    while set(found) != {1, 2}:
        stream = Stream(sidecar)
        stream.until(b"data: ")
        (told,) = sidecar.streams()["streams"]
        found[told["worker"]] = told["format"]
        stream.connection.close()
        until(lambda: not sidecar.streams()["streams"], "the end of the stream")
    return found


TYPED = "routes: [{name: all, upstreams: [llm], format: typed}]\n"
NATIVE = "routes: [{name: all, upstreams: [llm], format: native}]\n"


def test_all_workers_take_another_configuration_while_streams_run(tmp_path: Path) -> None:
    with served(tmp_path, NATIVE) as (sidecar, write):
        streams = on_both(sidecar)
        write(f"{TYPED}workers_: 1\n")
        sidecar.says("workers_: unknown key")
        write(TYPED)
        sidecar.says(r"configuration reloaded: route all changed \(format\)")
        go_on(streams)
        close(streams)
        assert formats(sidecar) == {1: "typed", 2: "typed"}
        write(NATIVE)
        sidecar.process.send_signal(signal.SIGHUP)
        sidecar.says(r"configuration reloaded: route all changed \(format\)", 2)
        assert formats(sidecar) == {1: "native", 2: "native"}
        assert sidecar.stop() == 0
    assert "Traceback" not in sidecar.printed


def test_a_bad_file_changes_nobody_and_a_successor_serves_what_the_others_do(tmp_path: Path) -> None:
    """What needs a restart, as who may connect by TLS, waits for one in a worker's successor, too."""
    with served(tmp_path, NATIVE) as (sidecar, write):
        write(f"{TYPED}logs: {{level: debug}}\n")
        sidecar.process.send_signal(signal.SIGHUP)
        sidecar.says("logs: stays as it was until a restart")
        write("routes: [{name: all, upstreams: [nobody]}]\n")
        sidecar.process.send_signal(signal.SIGHUP)
        sidecar.says("the configuration stays as it is: 1 problems")
        write(f"{TYPED}max_streams: 100000000\n")  # more than there are descriptors for: no successor could start
        sidecar.process.send_signal(signal.SIGHUP)
        sidecar.says("the configuration stays as it is: max_streams: ")
        os.kill(sidecar.workers(2)[1], signal.SIGKILL)
        sidecar.workers(3)
        assert formats(sidecar) == {1: "typed", 2: "typed"}
        assert " DEBUG " not in sidecar.printed
        assert sidecar.stop() == 0


def test_reloads_in_a_row_end_with_the_last_one_everywhere(tmp_path: Path) -> None:
    with served(tmp_path, NATIVE) as (sidecar, write):
        streams = on_both(sidecar)
        for times in range(1, 21):
            write(NATIVE if times % 2 else TYPED)
            sidecar.process.send_signal(signal.SIGHUP)
            sidecar.says("configuration reloaded", times)
        go_on(streams)
        close(streams)
        assert formats(sidecar) == {1: "typed", 2: "typed"}
        assert sidecar.stop() == 0
    assert "stays as it is" not in sidecar.printed


INGRESS = "mode: ingress\ndrain: {delay: 200ms, timeout: 20s}\n"


def test_the_hook_in_ingress_mode_is_answered_when_the_last_stream_has_ended(tmp_path: Path) -> None:
    with served(tmp_path, INGRESS) as (sidecar, _):
        until(lambda: sidecar.get("/readyz") == (200, "ok\n"), "readiness")
        streams = on_both(sidecar)
        answers: list[tuple[int, str]] = []
        hook = threading.Thread(target=lambda: answers.append(sidecar.get("/drain")))
        hook.start()
        until(lambda: sidecar.get("/readyz") == (503, "draining\n"), "unreadiness")
        assert sidecar.get("/livez") == (200, "ok\n")
        sidecar.says("no more requests are taken", 2)
        late = Stream(sidecar)
        assert late.rest().startswith(b"HTTP/1.1 503 ")
        go_on(streams)
        os.kill(sidecar.workers(2)[1], signal.SIGKILL)  # its successor is as unready
        sidecar.workers(3)
        assert sidecar.get("/readyz") == (503, "draining\n")
        assert answers == []
        close(streams)
        hook.join(DEADLINE_S)
        ((status, body),) = answers
        assert (status, json.loads(body)) == (200, {"state": "drained", "active": 0, "cut_off": 0})
        assert sidecar.stop() == 0
        assert group(sidecar.process.pid) == []
    assert "Traceback" not in sidecar.printed


def test_the_hook_in_egress_mode_is_answered_at_once_and_nothing_is_refused(tmp_path: Path) -> None:
    with served(tmp_path, "") as (sidecar, _):
        streams = on_both(sidecar)
        status, body = sidecar.get("/drain")
        told = json.loads(body)
        assert (status, told) == (200, {"state": "noted", "active": len(streams), "cut_off": 0})
        assert sidecar.get("/readyz") == (200, "ok\n")
        streams += [Stream(sidecar) for _ in range(4)]
        for stream in streams[-4:]:
            stream.until(b"data: ")
        go_on(streams)
        close(streams)


@pytest.mark.parametrize("text", ["", INGRESS], ids=["egress", "ingress"])
def test_the_streams_of_all_workers_end_by_themselves_after_sigterm(tmp_path: Path, text: str) -> None:
    with served(tmp_path, text, tokens=600) as (sidecar, _):
        streams = on_both(sidecar)
        sidecar.process.send_signal(signal.SIGTERM)
        sidecar.says("asked to leave: SIGTERM", 2)
        assert sidecar.streams()["active"] == len(streams)
        for stream in streams:
            got = stream.rest()
            assert got.endswith(LAST_CHUNK)
            assert b"[DONE]" in got
        assert sidecar.process.wait(DEADLINE_S) == 0
        assert group(sidecar.process.pid) == []
        assert len([line for line in sidecar.printed.splitlines() if "every request finished" in line]) == 2


def test_upstreams_are_told_of_for_each_worker(tmp_path: Path) -> None:
    with served(tmp_path, INGRESS) as (sidecar, _):
        until(lambda: sidecar.get("/readyz") == (200, "ok\n"), "readiness")
        told = json.loads(sidecar.get("/upstreams")[1])["upstreams"]
        assert [(each["worker"], each["upstream"]) for each in told] == [(1, "llm"), (2, "llm")]


def test_readiness_in_ingress_mode_is_that_of_upstreams(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text(
        f"{PORTS}mode: ingress\nworkers: 2\nupstreams: {{llm: {{url: 'http://127.0.0.1:9', proxy: none}}}}\n"
    )
    with running(tmp_path / "log", "run", "--config", str(file)) as sidecar:
        sidecar.workers(2)
        until(lambda: "llm is " in sidecar.get("/readyz")[1], "the reason")
        assert sidecar.get("/readyz")[0] == 503
        assert sidecar.get("/livez") == (200, "ok\n")
        assert sidecar.stop() == 0


def test_a_limit_is_counted_across_workers_and_what_a_dead_one_held_is_free(tmp_path: Path) -> None:
    with served(tmp_path, "max_streams: 6\n") as (sidecar, _):
        held: list[Stream] = []

        def fill(most: int) -> None:
            """Take every place there is, and see that there is not one more."""
            refused = 0
            while len(held) < most or refused < 8:
                stream = Stream(sidecar)
                stream.until(b"\r\n\r\n")
                if stream.got.startswith(b"HTTP/1.1 200 "):
                    stream.until(b"data: ")
                    held.append(stream)
                else:
                    assert stream.got.startswith((b"HTTP/1.1 503 ", b"HTTP/1.1 429 "))
                    stream.connection.close()
                    refused += 1
                assert len(held) <= most

        fill(6)
        until(lambda: sidecar.streams()["active"] == 6, "all six")
        of = [stream["worker"] for stream in sidecar.streams()["streams"]]
        victim = max((1, 2), key=of.count)
        os.kill(sidecar.workers(2)[victim], signal.SIGKILL)
        sidecar.workers(3)
        assert sidecar.streams()["active"] == 6 - of.count(victim)
        fill(6 + of.count(victim))  # the dead one's streams are held still, by nobody
        assert sidecar.streams()["active"] == 6
        close(held)
        until(lambda: sidecar.streams()["active"] == 0, "the end of all streams")
        assert sidecar.stop() == 0


def test_workers_go_with_a_parent_that_is_killed_while_they_drain(tmp_path: Path) -> None:
    with served(tmp_path, INGRESS) as (sidecar, _):
        streams = on_both(sidecar)
        sidecar.process.send_signal(signal.SIGTERM)
        sidecar.says("no more requests are taken", 2)
        go_on(streams)
        sidecar.process.kill()
        for stream in streams:
            assert b"[DONE]" not in stream.rest()
        until(lambda: not group(sidecar.process.pid), "the end of all workers")
