"""What the admin port sees of several workers: one data plane.

Owns the way from the admin's thread to the crew's loop and back, and what is said where a worker does not answer. Must
not know HTTP, nor how workers are kept.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sidecar.workers.messages import About
from sidecar.workers.pages import merged, merged_streams
from sidecar.workers.rounds import DEADLINE_S
from sidecar.workers.seat import SeatState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from sidecar.telemetry.parent_page import ParentPage
    from sidecar.workers.crew import Crew

_LOOP_DEADLINE_S: Final = DEADLINE_S + 1.0
"""How long the crew's own loop may take to come back from a round."""


class CrewPlane:
    """Fulfils `sidecar.admin.DataPlane`. Every method may be called from any thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        crew: Crew,
        page: ParentPage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._crew = crew
        self._page = page
        self._clock = clock

    @property
    def is_ready(self) -> bool:
        """A worker takes requests."""
        return not self.not_ready_because()

    def not_ready_because(self) -> str:
        """Why no worker takes requests; "" where one does."""
        return self._crew.not_ready_because()

    def silent_s(self) -> float:
        """Seconds since any worker's data loop was heard to turn."""
        return self._clock() - self._crew.turned_at

    def ask(self) -> Future[dict[str, Any]]:
        """Every worker's streams, oldest first, what the workers are doing, and which of them did not answer. Its
        exception is a TimeoutError where none did."""
        body: Future[dict[str, Any]] = Future()
        body.set_running_or_notify_cancel()
        asked = self._answers(About.STREAMS, "")
        asked.add_done_callback(partial(self._answer, body))
        return body

    def _answer(self, body: Future[dict[str, Any]], asked: Future[Mapping[int, str]]) -> None:
        try:
            body.set_result(self._streams(asked.result()))
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
