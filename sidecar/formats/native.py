"""The native format: the upstream's own bytes, frame by frame, unchanged.

Owns how such a stream is closed when it failed. Must not know any dialect: it is given that one's error frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.errors import Failure
    from sidecar.events import Event, Frame, Reasoning, Token
    from sidecar.ports import Ended


class NativeFormat:
    """One stream relayed as it came.

    ``error_frame`` is the dialect's own; ``heartbeat`` lets SSE comments in between frames, which some SDKs break on.
    """

    __slots__ = ("_error_frame", "_last", "heartbeat")

    name: ClassVar[str] = "native"
    content_type: str | None = None
    passes_raw: ClassVar[bool] = True

    def __init__(self, error_frame: Callable[[Failure], bytes], *, heartbeat: bool = False) -> None:
        self._error_frame = error_frame
        self._last = b""
        self.heartbeat = b": keep-alive\n\n" if heartbeat else b""

    def text_template(self, kind: type[Token | Reasoning], index: int) -> bytes:
        """Nothing: what is sent is the frame."""
        return b""

    def encode_text(self, template: bytes, literal: bytes) -> bytes:
        """Never asked for: what is sent is the frame."""
        raise NotImplementedError

    def encode_one(self, event: Event) -> bytes:
        """Never asked for: what is sent is the frame."""
        raise NotImplementedError

    def encode(self, frame: Frame, events: Sequence[Event]) -> bytes:
        """The frame's own bytes."""
        raw = frame.raw
        if raw:
            self._last = raw
        return raw

    def close(self, ended: Ended) -> bytes:
        """The dialect's error frame where the stream failed; else nothing: a whole stream has ended itself, and one
        whose upstream said that it failed has been relayed saying so."""
        if ended.failure is None or ended.failure.code == "upstream_error":
            return b""
        error = self._error_frame(ended.failure)
        return self._separator(error) + error if error else b""

    def _separator(self, error: bytes) -> bytes:
        """What ends the line or event that the upstream left open, so that the error is not read as its rest."""
        last = self._last
        if not last or last.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")):
            return b""
        if not error.endswith(b"\n\n"):
            return b"" if last.endswith(b"\n") else b"\n"
        return b"\n" if last.endswith((b"\n", b"\r")) else b"\n\n"
