"""One worker's process as its parent sees it: how it is begun, heard, told and noticed to be gone.

Owns the process, its channel and that neither is left behind. Must not know why it is begun or ended.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

import sidecar
from sidecar.workers.channel import Channel
from sidecar.workers.messages import encode, for_parent

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from sidecar.workers.messages import ToParent, ToWorker

HELD_BACK: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""A terminal and some supervisors signal all processes at once. Workers are told by their parent alone."""

_SOURCES: Final = str(Path(sidecar.__file__).parent.parent)


class Child:
    """A running worker. ``on_message`` and ``on_exit`` are called from the loop, ``on_exit`` once, with the status that
    `subprocess` gives. Raises OSError where no process can be made."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        arguments: Mapping[str, int],
        environ: Mapping[str, str],
        on_message: Callable[[ToParent], None],
        on_exit: Callable[[int], None],
    ) -> None:
        """``arguments`` go to `sidecar worker`; those but ``number`` are descriptors that it inherits."""
        self._loop = loop
        self._on_message = on_message
        self._on_exit = on_exit
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _start({**arguments, "control": theirs.fileno()}, environ)
            except BaseException:
                ours.close()
                raise
        self._channel = Channel(loop, ours, self._heard, self.kill)  # nobody can tell it anything any more
        self._exit = os.pidfd_open(self._process.pid)
        loop.add_reader(self._exit, self._exited)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, message: ToWorker) -> None:
        """Say something to it."""
        self._channel.send(encode(message))

    def kill(self) -> None:
        """End it now. Idempotent; harmless when it is gone."""
        self._process.kill()

    def _heard(self, data: bytes) -> None:
        try:
            message = for_parent(data)
        except msgspec.MsgspecError:
            self.kill()  # not one of ours, or out of its mind
            return
        self._on_message(message)

    def _exited(self) -> None:
        self._loop.remove_reader(self._exit)
        os.close(self._exit)
        self._channel.drain()  # what it said last may say why
        self._channel.close()
        self._on_exit(self._process.wait())


def _start(arguments: Mapping[str, int], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "sidecar", "worker"]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    path = environ.get("PYTHONPATH", "")
    held = signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)  # inherited until the worker minds them itself
    try:
        return subprocess.Popen(  # noqa: S603 - this very program
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[value for name, value in arguments.items() if name != "number"],
            env={**environ, "PYTHONPATH": f"{_SOURCES}{os.pathsep}{path}" if path else _SOURCES},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def status_in_words(status: int) -> str:
    """How a process ended."""
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"
