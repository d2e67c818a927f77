"""What is said in a stream, kept where the configuration asks for it: the request's body and the answer's text.

Owns the bounds on both. Must not know who reads it, nor how it came; where nothing is to be kept, nothing of this is
ever made.
"""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from sidecar.dialects.stand_in import StandIn
from sidecar.events import Refusal, Token
from sidecar.record import Content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sidecar.events import Event, Frame
    from sidecar.ports import Dialect


class KeptContent:
    """One stream's content as it comes, at most ``limit_bytes`` of UTF-8 of either side's."""

    __slots__ = ("_answer_bytes", "_choices", "_is_cut", "_limit_bytes", "_request")

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._request = b""
        self._choices: dict[int, StringIO] = {}  # a string for each token would hold many times what it says
        self._answer_bytes = 0
        self._is_cut = False

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self._request) + self._answer_bytes

    def keep_request(self, body: bytes) -> None:
        """The request's body."""
        self._request = body[: self._limit_bytes]
        self._is_cut = self._is_cut or len(body) > self._limit_bytes

    def hear(self, events: Sequence[Event]) -> None:
        """What one frame of the answer meant: of it, the text that people see."""
        for event in events:
            if isinstance(event, Token | Refusal):
                self._keep(event.index, event.text)

    def _keep(self, index: int, text: str) -> None:
        left = self._limit_bytes - self._answer_bytes
        size = len(text.encode(errors="replace"))
        if size > left:
            self._is_cut = True
            text = text.encode(errors="replace")[:left].decode(errors="ignore")
            size = left  # a shorter text behind one that did not fit would be taken for its end
        if text:
            self._choices.setdefault(index, StringIO()).write(text)
        self._answer_bytes += size

    @property
    def content(self) -> Content:
        """All that was kept; the texts of several choices stand one after the other, an empty line between them."""
        texts = [self._choices[index].getvalue() for index in sorted(self._choices)]
        return Content(self._request.decode(errors="replace"), "\n\n".join(texts), self._is_cut)


class Overheard(StandIn):
    """A dialect whose events are heard by ``content`` on their way. Nothing is plain to it, so that none is missed."""

    __slots__ = ("_content",)

    def __init__(self, actual: Dialect, content: KeptContent) -> None:
        super().__init__(actual)
        self._content = content

    def decode_plain(self, payload: bytes) -> Event | None:
        """No frame is known by its bytes alone: each one is decoded."""
        del payload
        return None

    def decode(self, frame: Frame) -> Sequence[Event]:
        """As the actual dialect, and heard."""
        events = super().decode(frame)
        self._content.hear(events)
        return events

    def finish(self) -> Sequence[Event]:
        """As the actual dialect, and heard."""
        events = super().finish()
        self._content.hear(events)
        return events
