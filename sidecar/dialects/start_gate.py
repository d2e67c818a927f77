"""Start comes first: holds events back until it is known what the upstream calls this generation.

Owns when `Start` is given and the few events that wait for it. Must not know any dialect.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.events import Event, Extension, Start

MAX_HELD = 16
"""Events held back before Start is given without an id: a stream that never names itself must not pile up."""


class StartGate:
    """Puts one `Start` before everything else.

    Azure's first chunk has an empty id and only then comes the one that names the response, so extensions wait for
    it; content does not, because TGI and Snowflake never send an id at all.
    """

    __slots__ = ("_held", "_model", "_response_id", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self._held: list[Event] = []
        self._response_id = ""
        self._model = ""

    def admit(self, events: Sequence[Event], *, response_id: str = "", model: str = "", named: bool) -> Sequence[Event]:
        """``events`` as they may be told now, after `Start` if it is their turn.

        ``named``: the frame holds all that this dialect ever says of the generation's name.
        """
        if self.is_open:
            return events
        self._response_id = response_id or self._response_id
        self._model = model or self._model
        self._held.extend(events)
        if named or len(self._held) >= MAX_HELD or not all(isinstance(event, Extension) for event in events):
            return self._open()
        return ()

    def release(self) -> Sequence[Event]:
        """At the end of the stream: what is still held, after the `Start` it waited for."""
        return self._open() if self._held else ()

    def _open(self) -> Sequence[Event]:
        events: list[Event] = [Start(self._response_id, self._model), *self._held]
        self.is_open = True
        self._held = []
        return events
