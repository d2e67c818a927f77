"""How the process takes its leave: what it was asked, how far it is, and what that means for requests.

Owns the table of states for both modes and when time moves them. Must not know sockets, streams or signals of the
system; the time is passed in, and whoever stands above does what the state calls for.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar import settings

NEVER: Final = float("inf")


class State(Enum):
    """How far the leaving is. A hook leads to "drained", where a signal is waited for; a signal leads to the end,
    through "last call", "leaving" or "finishing"."""

    __hash__ = object.__hash__  # members are singletons; Enum would hash their names, in Python, at every look-up

    SERVING = "serving"
    NOTED = "noted"
    DELAYING = "delaying"
    REFUSING = "refusing"
    DRAINED = "drained"
    LAST_CALL = "last call"
    LEAVING = "leaving"
    FINISHING = "finishing"
    CLOSING = "closing"


class Word(Enum):
    """What can be said to it: by a hook, by signals of the system, by the clock, by the end of the last request."""

    __hash__ = object.__hash__  # as above

    HOOK = "hook"
    STOP = "stop"
    INTERRUPT = "interrupt"
    DELAY_OVER = "delay over"
    IDLE = "idle"
    DEADLINE = "deadline"


_S, _W = State, Word

_NOW: Final = {_W.STOP: _S.CLOSING, _W.INTERRUPT: _S.CLOSING}
"""Whoever asks a second time, or after the hook, gets no more patience."""

MOVES: Final[dict[settings.Mode, dict[State, dict[Word, State]]]] = {
    "ingress": {
        _S.SERVING: {_W.HOOK: _S.DELAYING, _W.STOP: _S.LAST_CALL, _W.INTERRUPT: _S.LEAVING},
        _S.DELAYING: {_W.DELAY_OVER: _S.REFUSING, **_NOW},
        _S.REFUSING: {_W.IDLE: _S.DRAINED, _W.DEADLINE: _S.DRAINED, **_NOW},
        _S.DRAINED: _NOW,
        _S.LAST_CALL: {_W.DELAY_OVER: _S.LEAVING, **_NOW},
        _S.LEAVING: {_W.IDLE: _S.CLOSING, _W.DEADLINE: _S.CLOSING, **_NOW},
        _S.CLOSING: {},
    },
    "egress": {
        _S.SERVING: {_W.HOOK: _S.NOTED, _W.STOP: _S.FINISHING, _W.INTERRUPT: _S.FINISHING},
        _S.NOTED: _NOW,
        _S.FINISHING: {_W.IDLE: _S.CLOSING, _W.DEADLINE: _S.CLOSING, **_NOW},
        _S.CLOSING: {},
    },
}
"""Mode → state → what is said → the next state. What is not here changes nothing: it may be said at any time."""


@dataclass(frozen=True, slots=True)
class Doing:
    """What a state means. ``is_ready``: probes are told so. ``refuses``: no new request is taken. ``keeps``: answers
    leave their connections open. ``answers_hook``: whoever asked by the hook has its answer. ``ends_streams``: those
    that are left are ended."""

    is_ready: bool = False
    refuses: bool = False
    keeps: bool = False
    answers_hook: bool = False
    ends_streams: bool = False


DOINGS: Final[dict[State, Doing]] = {
    State.SERVING: Doing(is_ready=True, keeps=True),
    State.NOTED: Doing(is_ready=True, keeps=True, answers_hook=True),
    State.DELAYING: Doing(),
    State.REFUSING: Doing(refuses=True),
    State.DRAINED: Doing(refuses=True, answers_hook=True, ends_streams=True),
    State.LAST_CALL: Doing(),
    State.LEAVING: Doing(refuses=True),
    State.FINISHING: Doing(is_ready=True),
    State.CLOSING: Doing(refuses=True, answers_hook=True, ends_streams=True),
}

_DELAYED: Final = frozenset({State.DELAYING, State.LAST_CALL})
_BOUNDED: Final = frozenset({State.DELAYING, State.REFUSING, State.LAST_CALL, State.LEAVING, State.FINISHING})


@dataclass(frozen=True, slots=True)
class Farewell:
    """How a drain stands: its ``state``, how many requests are ``active`` still, and how many were ``cut_off``."""

    state: str
    active: int
    cut_off: int


class Drain:
    """One process's leave. Times are seconds of one monotonic clock."""

    __slots__ = ("_mode", "_refuse_at", "asked_at", "deadline_at", "state")

    def __init__(self) -> None:
        self.state = State.SERVING
        self.asked_at: float | None = None
        """When it was first asked to leave."""
        self.deadline_at = NEVER
        """When streams that are left are ended."""
        self._refuse_at = NEVER
        self._mode: settings.Mode = "egress"

    @property
    def doing(self) -> Doing:
        """What the present state means."""
        return DOINGS[self.state]

    @property
    def mode(self) -> settings.Mode:
        """The mode it was asked to leave in."""
        return self._mode

    def tell(self, word: Word, now: float, mode: settings.Mode, times: settings.Drain) -> bool:
        """Take one step of the table. ``mode`` and ``times`` are those of the configuration as it is now: the first
        word that moves anything settles them. Whether it moved."""
        if self.state is State.SERVING:
            self._mode = mode
        after = MOVES[self._mode][self.state].get(word)
        if after is None:
            return False
        if self.state is State.SERVING:
            self._begin(after, now, times)
        self.state = after
        return True

    def _begin(self, after: State, now: float, times: settings.Drain) -> None:
        self.asked_at = now
        if after in _BOUNDED:
            delay_s = times.delay_s if after in _DELAYED else 0.0
            self._refuse_at = now + delay_s
            self.deadline_at = self._refuse_at + times.timeout_s

    def due(self, now: float, *, is_idle: bool) -> Word | None:
        """What time, or the end of the last request, has to say by ``now``."""
        if self.state not in _BOUNDED:
            return None
        if self.state in _DELAYED:
            return Word.DELAY_OVER if now >= self._refuse_at else None
        if is_idle:
            return Word.IDLE
        return Word.DEADLINE if now >= self.deadline_at else None

    @property
    def is_waiting(self) -> bool:
        """Time or the last request's end will move it: it wants to be asked `due`."""
        return self.state in _BOUNDED
