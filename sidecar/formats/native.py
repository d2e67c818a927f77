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

    ``error_frame`` is the dialect's own and ``joint`` the framing's, which together tell of a failure behind whatever
    came last; ``hides`` says of a frame and its events whether it is kept from the client; ``heartbeat`` lets SSE
    comments in between frames, which some SDKs break on.
    """

    __slots__ = ("_error_frame", "_hides", "_joint", "_last", "heartbeat")

    name: ClassVar[str] = "native"
    content_type: str | None = None
    passes_raw: ClassVar[bool] = True

    def __init__(
        self,
        error_frame: Callable[[Failure], bytes],
        joint: Callable[[bytes], bytes],
        hides: Callable[[Frame, Sequence[Event]], bool] | None = None,
        *,
        heartbeat: bool = False,
    ) -> None:
        self._error_frame = error_frame
        self._joint = joint
        self._hides = hides
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
        """The frame's own bytes; b"" for one that is kept from the client."""
        if self._hides is not None and self._hides(frame, events):
            return b""
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
        return self._joint(self._last) + error if error else b""
