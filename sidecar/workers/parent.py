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
from typing import TYPE_CHECKING, Final

from sidecar.admin import Admin
from sidecar.app.app import LISTEN_BACKLOG
from sidecar.app.listening import bound_address, open_listener
from sidecar.app.plans import secret_of
from sidecar.shared_counts import SharedCounts, create
from sidecar.telemetry.parent_page import ParentPage
from sidecar.workers.crew import Crew, Launch
from sidecar.workers.plane import CrewPlane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.configuration import Source
    from sidecar.settings import Drain, Settings

logger = logging.getLogger("sidecar")

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


async def run_workers(settings: Settings, source: Source, number: int, environ: Mapping[str, str]) -> int:
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
        plane = CrewPlane(loop, crew, page)
        auth = secret_of(settings.admin_auth, environ)
        admin = Admin(settings.admin, plane, auth, plane.metrics if page.keeps_metrics else None)
        admin.start()
        held.callback(admin.stop)
        address = bound_address(listener, settings.listen)
        admin_at = settings.admin if settings.admin.path else replace(settings.admin, port=admin.port)
        return await _until_over(loop, crew, settings.drain)


async def _until_over(loop: asyncio.AbstractEventLoop, crew: Crew, drain: Drain) -> int:
    def told(number: signal.Signals) -> None:
        logger.info("%s: workers are told to stop", number.name)
        crew.leave(number.name, drain.delay_s + drain.timeout_s)

    for number in _STOPPING:
        loop.add_signal_handler(number, told, number)
    crew.start()
    try:
        await crew.over
    finally:
        crew.kill()  # harmless where all is over, as it should be
    return 0 if crew.were_all_clean else 1


def _remove(path: str) -> None:
    if path:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
