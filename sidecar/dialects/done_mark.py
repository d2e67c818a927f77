"""``[DONE]``: the frame that says "this was all" where it is no JSON object.

Owns that mark. Must not know what any object means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sidecar.dialects.json_stream import JsonStream
from sidecar.events import Event, Frame

_DONE: Final = b"[DONE]"


class DoneMarked(JsonStream):
    """One stream of objects that may end with ``[DONE]``; whatever stands behind the mark in its frame is ignored."""

    __slots__ = ()

    def decode(self, frame: Frame) -> Sequence[Event]:
        """The events of one frame; nothing more once ``[DONE]`` has come."""
        if not self.terminated and frame.data is not None and frame.data.startswith(_DONE):
            self.terminated = True
            return ()
        return super().decode(frame)
