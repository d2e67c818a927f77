"""The command as a user meets it: a process, its exit code and what it prints."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app_support import CHAT, ask

NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
DEADLINE_S = 20
ANYWHERE = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
GOOD = """\
listen: 127.0.0.1:0
admin: 127.0.0.1:0
upstreams:
  local:
    url: http://127.0.0.1:9
routes:
  - name: chat
    match: {path: /v1/chat/completions}
    upstreams: [local]
"""
BAD = """\
listen: nowhere
upstreams:
  local:
    url: http://127.0.0.1:9
    credentials: {header: Authorization, value: sk-in-the-open}
    timeouts: {connect: 5 parsecs}
    colour: blue
routes:
  - name: chat
    upstreams: [local, missing]
"""


def sidecar(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


class Running:
    """A command in the foreground of its own process, once it says that it listens."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.printed = ""
        assert process.stdout is not None
        while "listening on" not in self.printed:
            line = process.stdout.readline()
            assert line, self.printed
            self.printed += line
        found = re.search(r"listening on (?:http://)?([^\s,]+)(?:, admin on (\S+))?", self.printed)
        assert found is not None
        self.address, self.admin = found[1], found[2]

    def says(self, text: str) -> None:
        """Wait until it has printed this."""
        assert self.process.stdout is not None
        while text not in self.printed:
            line = self.process.stdout.readline()
            assert line, self.printed
            self.printed += line

    def stop(self, number: int = signal.SIGINT) -> str:
        """Everything printed, after a clean end."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=DEADLINE_S)
        self.printed += rest
        assert self.process.returncode == 0, self.printed
        assert "Traceback" not in self.printed
        return self.printed


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[Running]:
    command = [sys.executable, "-u", "-m", "sidecar", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def connected(address: str) -> socket.socket:
    if address.startswith("unix://"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(DEADLINE_S)
        connection.connect(address.removeprefix("unix://"))
        return connection
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), DEADLINE_S)


def until_eof(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "sidecar.yaml"


def assert_every_problem(printed: str, file: Path) -> None:
    for line, path in [
        (1, "listen"),
        (5, "upstreams.local.credentials"),
        (6, "upstreams.local.timeouts.connect"),
        (7, "upstreams.local.colour"),
        (10, "routes[0].upstreams"),
    ]:
        assert re.search(rf"^{re.escape(str(file))}:{line}: {re.escape(path)}", printed, re.MULTILINE), (path, printed)
    assert "sk-in-the-open" not in printed


def test_check_names_every_problem_at_once(config: Path) -> None:
    config.write_text(BAD)
    done = sidecar("check", str(config))
    assert (done.returncode, done.stderr) == (2, "")
    assert_every_problem(done.stdout, config)


def test_run_starts_nothing_with_a_bad_configuration(config: Path) -> None:
    config.write_text(BAD)
    done = sidecar("run", "--config", str(config))
    assert (done.returncode, done.stdout) == (2, "")
    assert_every_problem(done.stderr, config)
    assert "listening" not in done.stderr


def test_check_says_ok_and_what_was_understood(config: Path) -> None:
    config.write_text(GOOD)
    done = sidecar("check", str(config))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok\n")
    assert "chat" in done.stdout
    assert "http://127.0.0.1:9" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["run"], ["run", "--upstream", "http://a", "--config", "b"], ["fly"]])
def test_wrong_arguments(arguments: list[str]) -> None:
    done = sidecar(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")


@pytest.mark.parametrize("arguments", [["--upstream", "nonsense"], ["--config", "/no/such/file.yaml"]])
def test_unusable_sources(arguments: list[str]) -> None:
    done = sidecar("run", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_unknown_format_is_a_configuration_error() -> None:
    done = sidecar("run", "--upstream", "http://127.0.0.1:9", "--format", "sonnet", *ANYWHERE)
    assert done.returncode == 2
    assert "typed" in done.stderr


def test_taken_address_cannot_be_listened_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = sidecar("run", "--upstream", "http://127.0.0.1:9", "--listen", address, "--admin", "127.0.0.1:0")
    assert done.returncode == 1
    assert f"cannot listen on {address}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_run_and_simulate_cleanly(number: int) -> None:
    with running("simulate", "--listen", "127.0.0.1:0") as simulator:
        with running("run", "--upstream", f"http://{simulator.address}", *ANYWHERE) as proxy:
            with connected(proxy.address) as client:
                client.sendall(ask().replace(b"Host:", b"Connection: close\r\nHost:", 1))
                assert until_eof(client).endswith(b"0\r\n\r\n")
            with NO_PROXY.open(f"http://{proxy.admin}/livez", timeout=DEADLINE_S) as livez:
                assert livez.read() == b"ok\n"
            proxy.stop(number)
        simulator.stop(number)


def test_a_second_ctrl_c_tells_live_streams() -> None:
    with (
        running("simulate", "--listen", "127.0.0.1:0", "--tokens", "100000", "--interval-ms", "5") as simulator,
        running("run", "--upstream", f"http://{simulator.address}", "--format", "typed", *ANYWHERE) as proxy,
        connected(proxy.address) as client,
    ):
        client.sendall(ask(CHAT))
        got = b""
        while b"event: token" not in got:
            got += client.recv(65536)
        proxy.process.send_signal(signal.SIGINT)
        proxy.says("asked to leave: SIGINT")
        assert b"event: token" in client.recv(65536), "the first one waits for what runs"
        assert "stopping: SIGINT" in proxy.stop()
        got += until_eof(client)
        assert got.endswith(b"0\r\n\r\n")
        last = got.decode().split("event: done\ndata: ")[1].splitlines()[0]
        assert json.loads(last)["status"] == "interrupted"
        assert b'"code":"shutting_down"' in got
        simulator.stop()


def test_unix_sockets(tmp_path: Path) -> None:
    path, admin = tmp_path / "traffic.sock", tmp_path / "admin.sock"
    with running("simulate", "--listen", f"unix://{tmp_path}/up.sock") as simulator:
        arguments = ["--listen", f"unix://{path}", "--admin", f"unix://{admin}"]
        config = tmp_path / "sidecar.yaml"
        config.write_text(GOOD.replace("http://127.0.0.1:9", f"unix://{tmp_path}/up.sock"))
        with running("run", "--config", str(config), *arguments) as proxy:
            assert proxy.address == f"unix://{path}"
            with connected(proxy.address) as client:
                client.sendall(ask().replace(b"Host:", b"Connection: close\r\nHost:", 1))
                answer = until_eof(client)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"data: [DONE]\n\n" in answer
            with connected(f"unix://{admin}") as client:
                client.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                assert until_eof(client).endswith(b"ok\n")
            proxy.stop()
        assert not path.exists()
        simulator.stop()


def test_secret_of_an_unset_variable_stops_the_start(config: Path) -> None:
    secret = "    credentials: {env: SIDECAR_TEST_UNSET_VARIABLE}\n"
    config.write_text(GOOD.replace("    url: http://127.0.0.1:9\n", "    url: http://127.0.0.1:9\n" + secret))
    done = sidecar("run", "--config", str(config))
    assert done.returncode in {1, 2}
    assert "SIDECAR_TEST_UNSET_VARIABLE" in done.stderr
    assert "Traceback" not in done.stderr
