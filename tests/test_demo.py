"""`make demo`, as someone sees it who has just cloned the project."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

DEMO = [sys.executable, "-m", "sidecar.demo"]
ROOT = Path(__file__).resolve().parent.parent


def _hear_interrupts() -> None:
    """A shell starts what it puts into the background deaf to Ctrl-C, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_demo() -> None:
    """One test, since two demos that look for free ports at once could choose the same."""
    once_streams_one_answer_and_ends_even_where_the_usual_port_is_taken()
    ctrl_c_ends_it_cleanly_with_nothing_left_listening()


def once_streams_one_answer_and_ends_even_where_the_usual_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):  # someone else has it, which is as good
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        demo = subprocess.run([*DEMO, "--once"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert demo.returncode == 0, demo.stderr
    assert "Every token you read here" in demo.stdout
    assert re.search(r"TTFT +\d+\.\d ms seen here, \d+\.\d ms told by the sidecar", demo.stdout)
    assert "completed" in demo.stdout
    assert "Traceback" not in demo.stderr


def ctrl_c_ends_it_cleanly_with_nothing_left_listening() -> None:
    with subprocess.Popen(
        DEMO, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_hear_interrupts
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        shown = ""
        for line in demo.stdout:
            shown += line
            if line.startswith("Ctrl-C"):
                break
        demo.send_signal(signal.SIGINT)
        told = demo.stderr.read()
        assert demo.wait(30) == 0, told
    assert "Traceback" not in told
    assert "curl -N" in shown
    ports = {int(port) for port in re.findall(r"http://127\.0\.0\.1:(\d+)", shown)}
    assert len(ports) == 2
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
