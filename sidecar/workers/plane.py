"""What the admin port sees of several workers: one data plane.

Owns the way from the admin's thread to the crew's loop and back, and what is said where a worker does not answer. Must
not know HTTP, nor how workers are kept.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from sidecar.drain import Farewell
from sidecar.workers.messages import About
from sidecar.workers.pages import merged, merged_streams
from sidecar.workers.rounds import DEADLINE_S
from sidecar.workers.seat import SeatState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from sidecar.settings import Settings
    from sidecar.telemetry.parent_page import ParentPage
    from sidecar.workers.crew import Crew

T = TypeVar("T")

_LOOP_DEADLINE_S: Final = DEADLINE_S + 1.0
"""How long the crew's own loop may take to come back from a round."""


class CrewPlane:
    """Fulfils `sidecar.admin.DataPlane`. Every method may be called from any thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        crew: Crew,
        page: ParentPage,
        settings: Callable[[], Settings],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._crew = crew
        self._page = page
        self._settings = settings
        self._clock = clock

    def not_ready_because(self) -> str:
        """Why no worker takes requests; "" where one does."""
        return self._crew.not_ready_because()

    def silent_s(self) -> float:
        """Seconds since any worker's data loop was heard to turn."""
        return self._clock() - self._crew.turned_at

    def ask(self) -> Future[dict[str, Any]]:
        """Every worker's streams, oldest first, what the workers are doing, and which of them did not answer. Its
        exception is a TimeoutError where none did."""
        return self._told(self._answers(About.STREAMS, ""), self._streams)

    def ask_upstreams(self) -> Future[list[dict[str, Any]]]:
        """Every worker's upstreams, each with the worker's number: each has its own connections and circuits."""
        return self._told(self._answers(About.UPSTREAMS, ""), _upstreams)

    def ask_to_drain(self) -> Future[Farewell]:
        """The hook, for every worker: answered when the last has drained."""
        answers: Future[Mapping[int, str]] = Future()
        answers.set_running_or_notify_cancel()
        patience_s = self.drain_patience_s + DEADLINE_S
        hides = self._settings().mode == "ingress"
        self._loop.call_soon_threadsafe(partial(self._crew.drain, answers.set_result, patience_s, hides=hides))
        return self._told(answers, _farewell)

    @property
    def drain_patience_s(self) -> float:
        """How long that takes at most, the way to the workers and back aside."""
        drain = self._settings().drain
        return drain.delay_s + drain.timeout_s

    def _told(self, asked: Future[Mapping[int, str]], make: Callable[[Mapping[int, str]], T]) -> Future[T]:
        body: Future[T] = Future()
        body.set_running_or_notify_cancel()
        asked.add_done_callback(partial(self._answer, body, make))
        return body

    def _answer(
        self, body: Future[T], make: Callable[[Mapping[int, str]], T], asked: Future[Mapping[int, str]]
    ) -> None:
        try:
            body.set_result(make(asked.result()))
        except Exception as error:  # noqa: BLE001 - the one who asked is told, in its own thread
            body.set_exception(error)

    def _streams(self, answers: Mapping[int, str]) -> dict[str, Any]:
        states = self._crew.states
        silent = [number for number, state in states.items() if state is SeatState.READY and number not in answers]
        if silent and not answers:
            raise TimeoutError("no worker answered")
        streams = merged_streams({number: msgspec.json.decode(text) for number, text in answers.items()})
        workers = [{"worker": number, "state": state.value} for number, state in states.items()]
        return {"active": len(streams), "streams": streams, "workers": workers, "unanswered": silent}

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """The page of all workers and its content type. Blocks: not for a loop. A worker that does not answer in time
        is missing from it, and its own gauge says so."""
        try:
            answers = self._answers(About.METRICS, accept).result(_LOOP_DEADLINE_S)
        except TimeoutError:
            answers = {}
        answering = {number: number in answers for number in self._crew.states}
        own, content_type = self._page.prometheus(accept, answering)
        pages = {number: answers[number] for number in sorted(answers)}
        return merged(own, pages, self._page.label).encode("utf-8", "replace"), content_type

    def _answers(self, about: About, accept: str) -> Future[Mapping[int, str]]:
        answers: Future[Mapping[int, str]] = Future()
        answers.set_running_or_notify_cancel()
        self._loop.call_soon_threadsafe(self._crew.ask, about, accept, answers.set_result)
        return answers


def _upstreams(answers: Mapping[int, str]) -> list[dict[str, Any]]:
    if not answers:
        raise TimeoutError("no worker answered")
    return [
        {"worker": number, **upstream}
        for number in sorted(answers)
        for upstream in msgspec.json.decode(answers[number], type=list[dict[str, Any]])
    ]


def _farewell(answers: Mapping[int, str]) -> Farewell:
    """What all of them have come to. Raises TimeoutError where none answered in time."""
    if not answers:
        raise TimeoutError("no worker answered")
    told = [msgspec.json.decode(text, type=Farewell) for text in answers.values()]
    return Farewell(told[0].state, sum(each.active for each in told), sum(each.cut_off for each in told))
