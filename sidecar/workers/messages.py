"""What parent and workers say to each other.

Owns the vocabulary and its encoding. Must not know how messages travel or what follows from them.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from sidecar.configuration import Source
from sidecar.drain import Word

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""A page of metrics, or of streams, is the longest there is; a few MiB where there are thousands of streams."""


class About(Enum):
    """What a worker can be asked about."""

    STREAMS = "streams"
    METRICS = "metrics"
    UPSTREAMS = "upstreams"
    DRAIN = "drain"
    """Asked of a worker, it drains as the hook has it; answered when that is over."""


class Configure(msgspec.Struct, tag="configure", frozen=True):
    """The first message: what the worker serves. ``began`` is what the whole began with, and goes for all that cannot
    change without a restart. ``instance`` is what its telemetry calls it; ``caller_key`` what all workers hash callers
    with, so that each counts the same ones. Said again, it is another configuration, and ``afresh`` that files of
    secrets and certificates are to be read again."""

    source: Source
    began: Source
    instance: str
    caller_key: bytes
    afresh: bool = False


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """A question; the answer bears the same ``number``. ``accept`` is what the asker of metrics takes."""

    number: int
    about: About
    accept: str = ""


class Leave(msgspec.Struct, tag="leave", frozen=True):
    """Leave as ``word``, of `sidecar.drain`, has it, and exit. Said once more, it means: now. ``who`` asks for it, for
    the log."""

    who: str
    word: Word = Word.STOP


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The worker takes requests."""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The worker cannot start, and exits. ``reason`` may be shown: it repeats no value of the configuration."""

    reason: str


class Pulse(msgspec.Struct, tag="pulse", frozen=True):
    """Sent by the data loop again and again: that it comes is the proof that the loop turns. ``not_ready`` says why
    the worker takes no requests, "" where it does."""

    not_ready: str = ""
    streams: int = 0


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """What a question was answered with: JSON, or a page."""

    number: int
    text: str


ToWorker = Configure | Ask | Leave
ToParent = Ready | Failed | Pulse | Answer

_encoder: Final = msgspec.json.Encoder()
_to_worker: Final[msgspec.json.Decoder[ToWorker]] = msgspec.json.Decoder(ToWorker)
_to_parent: Final[msgspec.json.Decoder[ToParent]] = msgspec.json.Decoder(ToParent)


def encode(message: ToWorker | ToParent) -> bytes:
    """A message's bytes."""
    return _encoder.encode(message)


def for_worker(data: bytes) -> ToWorker:
    """What the parent said. Raises msgspec.MsgspecError for anything else."""
    return _to_worker.decode(data)


def for_parent(data: bytes) -> ToParent:
    """What a worker said. Raises msgspec.MsgspecError for anything else."""
    return _to_parent.decode(data)
