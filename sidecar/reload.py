"""Another configuration for a running process: when its file changes, and when SIGHUP asks for it.

Owns the thread that looks, reads and prepares, so that the loop only swaps; and what the log says of it. Must not know
what a plan is made of.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from sidecar.secrets import SecretUnreadableError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sidecar.app.changes import Changes
    from sidecar.configuration import Loaded
    from sidecar.settings import Settings

    Signature = tuple[int, ...] | None

logger = logging.getLogger("sidecar.reload")

LOOK_INTERVAL_S: Final = 1.0
"""How often the file is looked at. A change is taken once it has stood still from one look to the next."""

Prepared = TypeVar("Prepared")


class Reloadable(Protocol[Prepared]):
    """What takes another configuration."""

    def prepare(self, wanted: Settings, *, afresh: bool) -> Prepared:
        """Make everything that is new, in the reloading thread. Raises for what can never work."""

    def adopt(self, prepared: Prepared) -> Changes:
        """Go by it from now on; in the loop."""


class FileWatch:
    """Tells whether a file has changed and stands still. Not from several threads.

    It is the resolved file that is looked at: a ConfigMap changes by a rename of the symlink in the middle of its path.
    Make it before the file is read, and no change is missed.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._taken = self._last = self._signature()

    def has_changed(self) -> bool:
        """It is another than the one last told of, and the same as at the last look; a missing one, too."""
        before, self._last = self._last, self._signature()
        if self._last == self._taken or self._last != before:
            return False
        self._taken = self._last
        return True

    def take(self) -> None:
        """It is about to be read, whatever it is."""
        self._taken = self._last = self._signature()

    def _signature(self) -> Signature:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


class Reloader(Generic[Prepared]):
    """Keeps one process's configuration current. ``load`` reads it with all that goes before it; ``watch`` is None
    where there is no file."""

    def __init__(
        self,
        process: Reloadable[Prepared],
        load: Callable[[], Loaded],
        watch: FileWatch | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._process = process
        self._load = load
        self._watch = watch
        self._loop = loop
        self._wake = threading.Event()
        self._adopted = threading.Event()
        self._is_asked = self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="sidecar-reload", daemon=True)

    def start(self) -> None:
        """Begin to look. Not before a fork."""
        self._thread.start()

    def ask(self) -> None:
        """SIGHUP: read everything again now, the files of secrets and certificates too."""
        self._is_asked = True
        self._wake.set()

    def close(self) -> None:
        """Look no more. A read that hangs is left to itself."""
        self._is_closing = True
        self._wake.set()
        self._adopted.set()

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.wait(None if self._watch is None else LOOK_INTERVAL_S)
            self._wake.clear()
            if self._is_closing:
                return
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - the next change may be a better one
                logger.error(  # noqa: TRY400 - its text may quote the file
                    "the configuration was not reloaded: %s", type(error).__name__
                )

    def _look(self) -> None:
        if self._is_asked:
            self._is_asked = False
            if self._watch is None:
                logger.info("SIGHUP: there is no configuration file; secrets and certificates are read again")
            else:
                self._watch.take()
            self._reload(afresh=True)
        elif self._watch is not None and self._watch.has_changed():
            self._reload(afresh=False)

    def _reload(self, *, afresh: bool) -> None:
        """Load, check and make all that is new here; only the swap is the loop's."""
        loaded = self._load()
        if loaded.settings is None:
            logger.error("the configuration stays as it is: %d problems", len(loaded.problems))
            for line in loaded.render_problems().splitlines():
                logger.error("%s", line)
            return
        try:
            prepared = self._process.prepare(loaded.settings, afresh=afresh)
        except (OSError, SecretUnreadableError, ValueError) as error:
            logger.error("the configuration stays as it is: %s", error)  # noqa: TRY400 - the message names the source
            return
        self._adopted.clear()
        if not self._is_closing:
            self._loop.call_soon_threadsafe(self._adopt, prepared)
            self._adopted.wait()  # the next one is made from this one, and not from the one before

    def _adopt(self, prepared: Prepared) -> None:
        try:
            tell(self._process.adopt(prepared))
        finally:
            self._adopted.set()


def tell(changes: Changes) -> None:
    """Say in the log what another configuration has changed, and what it could not."""
    logger.info("configuration reloaded: %s", "; ".join(changes.live) or "nothing changed")
    for key in changes.needs_restart:
        logger.warning("%s: stays as it was until a restart", key)
    for warning in changes.warnings:
        logger.warning(warning)
