"""Several workers as real processes: one port, one admin port, and what becomes of them when some are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.app_support import LAST_CHUNK
from tests.processes import until
from tests.workers_support import DEADLINE_S, Stream, crew, group, running


def spread(sidecar_streams: dict[str, object]) -> set[int]:
    streams = sidecar_streams["streams"]
    assert isinstance(streams, list)
    return {stream["worker"] for stream in streams}


def test_one_admin_port_answers_for_all(tmp_path: Path, promtool: str) -> None:
    with crew(tmp_path) as sidecar:
        assert sidecar.get("/livez") == (200, "ok\n")
        assert sidecar.get("/readyz") == (200, "ok\n")
        streams = []
        while spread(sidecar.streams()) != {1, 2}:
            streams.append(Stream(sidecar))
            streams[-1].until(b"data: ")
        told = sidecar.streams()
        assert told["active"] == len(told["streams"]) == len(streams)
        assert told["workers"] == [{"worker": number, "state": "ready"} for number in (1, 2)]
        assert told["unanswered"] == []
        ages = [stream["age_s"] for stream in told["streams"]]
        assert ages == sorted(ages, reverse=True)
        for accept in ("", "application/openmetrics-text"):
            status, page = sidecar.get("/metrics", accept)
            assert status == 200
            active = re.findall(r'^llm_sidecar_streams_active\{llm_sidecar_worker="(\d)"\} (\d+)$', page, re.MULTILINE)
            assert sum(int(number) for _, number in active) == len(streams)
            assert [worker for worker, _ in active] == ["1", "2"]
            assert page.count("target_info{") == page.count("# TYPE llm_sidecar_streams_active ") == 1
            assert 'process_memory_usage_bytes{llm_sidecar_worker="parent"}' in page
            assert page.count("llm_sidecar_worker_up{") == 2
            assert (page[-6:] == "# EOF\n") == bool(accept)
        _, page = sidecar.get("/metrics")
        subprocess.run([promtool, "check", "metrics"], input=page.encode(), check=True, capture_output=True)
        for stream in streams:
            stream.connection.close()
        until(lambda: sidecar.streams()["active"] == 0, "the end of all streams")
        assert sidecar.stop() == 0
        assert group(sidecar.process.pid) == []
    assert "Traceback" not in sidecar.printed


def test_a_worker_killed_under_load(tmp_path: Path) -> None:
    """Its streams break and are nobody's completed answer; the others go on; the port refuses nobody; the next worker
    serves."""
    with crew(tmp_path) as sidecar:
        pids = sidecar.workers(2)
        streams: list[Stream] = []
        while len([each for each in sidecar.streams()["streams"] if each["worker"] == 2]) < 3 or spread(
            sidecar.streams()
        ) != {1, 2}:
            streams.append(Stream(sidecar))
            streams[-1].until(b"data: ")
        of = {each["stream"]: each["worker"] for each in sidecar.streams()["streams"]}
        over, refused = threading.Event(), []
        descriptors = len(os.listdir(f"/proc/{sidecar.process.pid}/fd"))  # with one of the admin port's, it may be

        def knock() -> None:
            """Connects again and again, throughout."""
            while not over.is_set():
                try:
                    with sidecar.connect() as connection:
                        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                except OSError as error:
                    refused.append(error)

        knocking = threading.Thread(target=knock)
        knocking.start()
        os.kill(pids[2], signal.SIGKILL)
        sidecar.says(r"worker 2 ended by SIGKILL while ready, with \d+ streams")
        again = sidecar.workers(3)
        assert again[1] == pids[1]
        assert again[2] != pids[2]
        over.set()
        knocking.join()
        assert refused == []
        until(lambda: len(os.listdir(f"/proc/{sidecar.process.pid}/fd")) <= descriptors, "the parent's descriptors")
        for stream in streams:
            number = of[head_of(stream)]
            if number == 2:
                got = stream.rest()
                assert not got.endswith(LAST_CHUNK)
                assert b"[DONE]" not in got
                assert b"event: done" not in got
            else:
                before = len(stream.got)
                stream.got += stream.connection.recv(65536)
                assert len(stream.got) > before
        fresh: list[Stream] = []
        while 2 not in spread(sidecar.streams()):
            fresh.append(Stream(sidecar))
            fresh[-1].until(b"data: ")
        assert sidecar.get("/readyz") == (200, "ok\n")
        for stream in streams + fresh:
            stream.connection.close()
        assert sidecar.stop() == 0


def head_of(stream: Stream) -> str:
    found = re.search(rb"X-Stream-Id: (\w+)", stream.got, re.IGNORECASE)
    assert found is not None
    return found[1].decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_are_told_of_the_end(tmp_path: Path, number: int) -> None:
    with crew(tmp_path, "--format", "typed") as sidecar:
        streams = [Stream(sidecar) for _ in range(6)]
        for stream in streams:
            stream.until(b"event: token")
        os.killpg(sidecar.process.pid, number)  # all processes, as a terminal does, and some supervisors
        sidecar.says("waiting for those that are active", 2)
        os.killpg(sidecar.process.pid, number)
        for stream in streams:
            got = stream.rest()
            assert got.endswith(LAST_CHUNK)
            last = json.loads(got.decode().split("event: done\ndata: ")[1].splitlines()[0])
            assert last["status"] == "interrupted"
        assert sidecar.process.wait(DEADLINE_S) == 0
        assert group(sidecar.process.pid) == []
        assert "Traceback" not in sidecar.printed


def test_a_second_signal_waits_for_nobody(tmp_path: Path) -> None:
    with crew(tmp_path) as sidecar:
        (pid, other) = sidecar.workers(2).values()
        os.kill(pid, signal.SIGSTOP)
        sidecar.process.send_signal(signal.SIGTERM)
        sidecar.says("SIGTERM: workers are told to stop")
        until(lambda: other not in group(sidecar.process.pid), "the end of the worker that can stop")
        assert sidecar.process.poll() is None
        assert sidecar.get("/readyz") == (503, "shutting down\n")
        assert sidecar.stop() == 1
        assert group(sidecar.process.pid) == []


def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    with crew(tmp_path, "--format", "typed") as sidecar:
        stream = Stream(sidecar)
        stream.until(b"event: token")
        sidecar.process.kill()
        assert stream.rest().endswith(LAST_CHUNK)
        until(lambda: not group(sidecar.process.pid), "the end of all workers")
        with pytest.raises(ConnectionRefusedError):
            sidecar.connect()


def test_a_unix_socket_is_left_by_nobody_but_the_parent(tmp_path: Path) -> None:
    path = tmp_path / "traffic.sock"
    with crew(tmp_path, "--listen", f"unix://{path}") as sidecar:
        pid = sidecar.workers(2)[1]
        os.kill(pid, signal.SIGTERM)  # which workers do not mind
        os.kill(pid, signal.SIGKILL)
        sidecar.workers(3)
        stream = Stream(sidecar)
        stream.until(b"data: ")
        sidecar.process.send_signal(signal.SIGTERM)
        sidecar.says("waiting for those that are active", 2)
        assert sidecar.stop() == 0  # told twice, it waits for nobody
        assert not stream.rest().endswith(LAST_CHUNK)
        assert not path.exists()


def test_a_silent_worker_leaves_the_others_answering(tmp_path: Path) -> None:
    """It is named, and nobody waits for it longer than the deadline; the parent replaces it."""
    with crew(tmp_path) as sidecar:
        pids = sidecar.workers(2)
        os.kill(pids[1], signal.SIGSTOP)
        told = sidecar.streams()
        assert (told["unanswered"], told["active"]) == ([1], 0)
        _, page = sidecar.get("/metrics")
        assert 'llm_sidecar_worker_up{llm_sidecar_worker="1"} 0' in page
        assert 'llm_sidecar_worker_up{llm_sidecar_worker="2"} 1' in page
        assert sidecar.get("/livez") == (200, "ok\n")
        sidecar.says(r"worker 1 has not turned for 1\d s: it is replaced")
        assert sidecar.workers(3)[1] != pids[1]
        assert sidecar.stop() == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("credentials: {env: NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
        ("tls: {ca_file: /no/such/file.pem}", "/no/such/file.pem"),
    ],
)
def test_what_keeps_every_worker_from_starting_is_said_once(tmp_path: Path, wrong: str, says: str) -> None:
    config = tmp_path / "sidecar.yaml"
    ports = "listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\n"
    config.write_text(f"{ports}workers: 3\nupstreams:\n  a: {{url: 'https://127.0.0.1:9', {wrong}}}\n")
    with running(tmp_path / "log", "run", "--config", str(config), listening=False) as sidecar:
        assert sidecar.process.wait(DEADLINE_S) == 1
        assert re.search(rf"^sidecar: .*{re.escape(says)}", sidecar.printed, re.MULTILINE)
        assert "Traceback" not in sidecar.printed
        assert "listening" not in sidecar.printed
        assert group(sidecar.process.pid) == []


def test_a_taken_address_is_the_parents_to_tell(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for ports in (["--listen", address, "--admin", "127.0.0.1:0"], ["--admin", address, "--listen", "127.0.0.1:0"]):
            command = ["run", "--upstream", "http://127.0.0.1:9", "--workers", "2", *ports]
            with running(tmp_path / "log", *command, listening=False) as sidecar:
                assert sidecar.process.wait(DEADLINE_S) == 1
                assert f"cannot listen on {address}" in sidecar.printed
                assert "Traceback" not in sidecar.printed
