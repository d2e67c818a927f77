"""The parent of several workers: the ports, the shared memory and the signals, and no data plane.

Owns in which order these come and go, so that nothing is left behind. Must not know how workers are kept (`crew`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.admin import Admin
from sidecar.app.accepting import LISTEN_BACKLOG
from sidecar.app.changes import compare
from sidecar.app.listening import bound_address, open_listener
from sidecar.app.plans import make_plan, secret_of
from sidecar.descriptors import current_limit, most_connections
from sidecar.drain import Word
from sidecar.reload import Reloader
from sidecar.shared_counts import SharedCounts, create
from sidecar.telemetry.parent_page import ParentPage
from sidecar.workers.crew import Crew, Launch
from sidecar.workers.plane import CrewPlane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.app.changes import Changes
    from sidecar.configuration import Loaded, Source
    from sidecar.reload import FileWatch
    from sidecar.secrets import Secret
    from sidecar.settings import Settings

logger = logging.getLogger("sidecar")

_STOPPING: Final = {signal.SIGINT: Word.INTERRUPT, signal.SIGTERM: Word.STOP}


async def run_workers(
    settings: Settings, source: Source, watch: FileWatch | None, number: int, environ: Mapping[str, str]
) -> int:
    """Run until SIGINT or SIGTERM, or until no worker can be had; a second one means at once. Returns the exit status:
    1 where a worker had to be killed. Raises OSError for what keeps the whole from starting."""
    with contextlib.ExitStack() as held:
        listener = open_listener(settings)
        held.callback(_remove, settings.listen.path)
        held.callback(listener.close)
        listener.listen(LISTEN_BACKLOG)  # from now on nobody is refused, whoever is there to serve
        memory = create(number)
        held.callback(os.close, memory)
        counts = SharedCounts(memory, None)
        held.callback(counts.close)
        page = ParentPage(settings.telemetry, environ)
        descriptors = {"listener": listener.fileno(), "counts": memory}
        loop = asyncio.get_running_loop()
        crew = Crew(
            loop,
            Launch(source, page.instance, descriptors, environ),
            counts,
            number,
            lambda: logger.info("listening on %s, admin on %s", address, admin_at),
        )
        plane = CrewPlane(loop, crew, page, lambda: configured.settings)
        auth = secret_of(settings.admin_auth, environ)
        admin = Admin(settings.admin, plane, auth, plane.metrics if page.keeps_metrics else None)
        configured = Configured(settings, source, crew, admin, environ)
        admin.start()
        held.callback(admin.stop)
        address = bound_address(listener, settings.listen)
        admin_at = settings.admin if settings.admin.path else replace(settings.admin, port=admin.port)
        reloader = Reloader(configured, configured.load, watch, loop)
        loop.add_signal_handler(signal.SIGHUP, reloader.ask)
        reloader.start()
        held.callback(reloader.close)
        return await _until_over(loop, crew, configured)


async def _until_over(loop: asyncio.AbstractEventLoop, crew: Crew, configured: Configured) -> int:
    def told(number: signal.Signals) -> None:
        drain = configured.settings.drain
        logger.info("%s: workers are told to stop", number.name)
        crew.leave(number.name, drain.delay_s + drain.timeout_s, _STOPPING[number])

    for number in _STOPPING:
        loop.add_signal_handler(number, told, number)
    crew.start()
    try:
        await crew.over
    finally:
        crew.kill()  # harmless where all is over, as it should be
    return 0 if crew.were_all_clean else 1


class Reconfiguration(NamedTuple):
    """Another configuration, checked, and the text that every worker is to read it from."""

    settings: Settings
    changes: Changes
    source: Source
    auth: Secret | None
    afresh: bool


class Configured:
    """What the whole goes by. It takes another configuration as an `App` does, and hands it to the workers as text, so
    that all serve the same whatever becomes of the file."""

    def __init__(
        self, settings: Settings, source: Source, crew: Crew, admin: Admin, environ: Mapping[str, str]
    ) -> None:
        self.settings = settings
        self._source = source
        self._crew = crew
        self._admin = admin
        self._environ = environ

    def load(self) -> Loaded:
        """What the file holds now; in the reloading thread."""
        self._source = self._source.read_again()
        return self._source.load(self._environ)

    def prepare(self, wanted: Settings, *, afresh: bool = False) -> Reconfiguration:
        """Find out here what no worker could serve. Raises as an `App` does."""
        settings, changes = compare(self.settings, wanted)
        most_connections(settings, current_limit())
        make_plan(settings, self._environ)
        auth = self._admin.auth
        if afresh or settings.admin_auth != self.settings.admin_auth:
            auth = secret_of(settings.admin_auth, self._environ)
        return Reconfiguration(settings, changes, self._source, auth, afresh)

    def adopt(self, prepared: Reconfiguration) -> Changes:
        """Every worker is told; in the loop."""
        self.settings = prepared.settings
        self._admin.auth = prepared.auth
        self._crew.reconfigure(prepared.source, afresh=prepared.afresh)
        return prepared.changes


def _remove(path: str) -> None:
    if path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
