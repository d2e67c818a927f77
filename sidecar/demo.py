"""`make demo`: simulator and sidecar side by side, and one typed answer in the terminal.

Owns two child processes and what is shown of them. Must not know the sidecar's insides: it is one more client, and
it uses nothing but the standard library and the command line.
"""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

_HOST: Final = "127.0.0.1"
_TRAFFIC_PORT: Final = 8080
_ADMIN_PORT: Final = 9090
_SIMULATOR_PORT: Final = 8000
_READY_WITHIN_S: Final = 20.0
_STOP_WITHIN_S: Final = 10.0
_PATIENCE_S: Final = 1.0
_ANSWER_WITHIN_S: Final = 30.0
_PACE: Final = ("--tokens", "40", "--interval-ms", "40", "--first-token-delay-ms", "250")
_QUESTION: Final = "What is a sidecar?"
_REQUEST: Final = {
    "model": "simulated-1",
    "stream": True,
    "stream_options": {"include_usage": True},
    "messages": [{"role": "user", "content": _QUESTION}],
}
_HEADERS: Final = {"Content-Type": "application/json", "X-Stream-Format": "typed"}


class DemoError(Exception):
    """The demo cannot go on; the message says why, for people."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the demo's three listeners are."""

    traffic: int
    admin: int
    simulator: int


@dataclass(slots=True)
class Shown:
    """What one streamed answer told."""

    ttft_ms: float | None = None
    """From the request's last byte to the first content event, as this client saw it."""
    done: dict[str, Any] | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns the exit status: 0 once the answer was streamed whole."""
    parser = argparse.ArgumentParser(prog="python -m sidecar.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the answer")
    once = parser.parse_args(argv).once
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        _run(once=once)
    except KeyboardInterrupt:
        print()
        return 130 if once else 0
    except (DemoError, OSError, http.client.HTTPException) as error:
        print(f"\ndemo failed: {error}", file=sys.stderr)
        return 1
    return 0


def _run(*, once: bool) -> None:
    ports = _free_ports()
    upstream = f"{_HOST}:{ports.simulator}"
    simulate = ("simulate", "--listen", upstream, *_PACE)
    run = ("run", "--upstream", f"http://{upstream}")
    listen = ("--listen", f"{_HOST}:{ports.traffic}", "--admin", f"{_HOST}:{ports.admin}")
    with _child(*simulate) as simulator, _child(*run, *listen) as sidecar:
        _wait_until_ready("simulator", simulator, ports.simulator, "/v1/models")
        _wait_until_ready("sidecar", sidecar, ports.admin, "/readyz")
        _show_answer(ports)
        if once:
            return
        _show_addresses(ports)
        while simulator.poll() is None and sidecar.poll() is None:
            time.sleep(0.5)
        raise DemoError("the simulator or the sidecar has ended")


@contextmanager
def _child(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """``sidecar`` with these arguments, ended and reaped whatever happens."""
    # A session of its own: Ctrl-C reaches this process alone, which then ends its children in order.
    process = subprocess.Popen(  # noqa: S603 - this interpreter, our own package
        [sys.executable, "-m", "sidecar", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C must not leave a child behind
        _stop(process)
        try:
            process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and where streams hold it up, not to wait for them."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_PATIENCE_S)
    process.terminate()


def _free_ports() -> Ports:
    """The usual ports, and any free one in place of each that is taken."""
    with ExitStack() as held:
        return Ports(*(_hold_port(held, port) for port in (_TRAFFIC_PORT, _ADMIN_PORT, _SIMULATOR_PORT)))


def _hold_port(held: ExitStack, wanted: int) -> int:
    """``wanted`` if nothing listens there, else a free port; kept until ``held`` ends, so that no two are the same."""
    probe = held.enter_context(socket.socket())
    # As servers do, so that a port whose last connections are still fading counts as free.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((_HOST, wanted))
    except OSError:
        probe.bind((_HOST, 0))
    return int(probe.getsockname()[1])


def _wait_until_ready(name: str, process: subprocess.Popen[bytes], port: int, path: str) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoError(f"the {name} ended with status {process.returncode} before it was ready")
        if _status(port, path) == 200:
            return
        time.sleep(0.05)
    raise DemoError(f"the {name} was not ready within {_READY_WITHIN_S:.0f} s")


def _status(port: int, path: str) -> int | None:
    """The status of a GET, None while nobody answers."""
    connection = http.client.HTTPConnection(_HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _show_answer(ports: Ports) -> None:
    print(f"\n> {_QUESTION}\n", flush=True)
    connection = http.client.HTTPConnection(_HOST, ports.traffic, timeout=_ANSWER_WITHIN_S)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(_REQUEST), _HEADERS)
        sent_at = time.monotonic()
        response = connection.getresponse()
        if response.status != 200:
            raise DemoError(f"the sidecar answered {response.status}: {response.read(2000).decode(errors='replace')}")
        shown = _show_events(response, sent_at)
    finally:
        connection.close()
    _check(shown)
    _show_figures(shown)


def _show_events(response: http.client.HTTPResponse, sent_at: float) -> Shown:
    shown = Shown()
    for event, data in _events(response):
        if event == "token":
            if shown.ttft_ms is None:
                shown.ttft_ms = (time.monotonic() - sent_at) * 1000
            print(data["text"], end="", flush=True)
        elif event == "usage":
            shown.usage = data
        elif event == "error":
            shown.error = data
        elif event == "done":
            shown.done = data
    print()
    return shown


def _events(response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each server-sent event's name and data, as it comes."""
    event = ""
    for line in iter(response.readline, b""):
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name == "event":
            event = value
        elif name == "data":
            yield event, json.loads(value)


def _check(shown: Shown) -> None:
    if shown.error is not None:
        raise DemoError(f"the stream failed: {shown.error.get('code')}: {shown.error.get('message')}")
    if shown.done is None or shown.done.get("status") != "completed" or shown.ttft_ms is None:
        raise DemoError(f"the stream did not complete: {shown.done}")


def _show_figures(shown: Shown) -> None:
    done = shown.done or {}
    print(f"\nTTFT           {shown.ttft_ms:.1f} ms seen here, {done['ttft_ms']:.1f} ms told by the sidecar")
    print(f"stream         {done['content_events']} content events in {done['duration_ms']:.0f} ms, {done['status']}")
    if shown.usage is not None:
        print(f"usage          {shown.usage.get('input_tokens')} in, {shown.usage.get('output_tokens')} out")


def _show_addresses(ports: Ports) -> None:
    traffic, admin = f"http://{_HOST}:{ports.traffic}", f"http://{_HOST}:{ports.admin}"
    body = '{"model":"simulated-1","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    print(f"\ntraffic        {traffic}   (OpenAI base URL {traffic}/v1)")
    print(f"admin          {admin}/livez   {admin}/readyz   {admin}/streams")
    print("\nTry it, with `native` in place of `typed` for the upstream's own bytes:\n")
    print(f"  curl -N {traffic}/v1/chat/completions -H 'X-Stream-Format: typed' \\")
    print(f"    -H 'Content-Type: application/json' -d '{body}'")
    print("\nCtrl-C ends it.", flush=True)


if __name__ == "__main__":
    sys.exit(main())
