"""A configuration before it is read: the text of a file or an upstream's URL, and what the command line says instead.

Owns that one text can be read twice, by another process too, with the same result. Must not know what is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sidecar.configuration.reading import apply_overrides, for_upstream_url, load, load_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.configuration.problems import Loaded


class Source(msgspec.Struct, frozen=True):
    """``upstream`` is a URL, or else ``text`` what the file ``name`` held; None where it could not be read."""

    upstream: str = ""
    name: str = ""
    text: bytes | None = None
    listen: str | None = None
    admin: str | None = None
    format: str | None = None
    workers: str | None = None

    def load(self, environ: Mapping[str, str]) -> Loaded:
        """The configuration, or every problem in it."""
        if self.upstream:
            return for_upstream_url(
                self.upstream,
                environ=environ,
                listen=self.listen,
                admin=self.admin,
                format=self.format,
                workers=self.workers,
            )
        if self.text is None:
            return load_file(self.name, environ=environ)
        loaded = load(self.text, source=self.name, environ=environ)
        if loaded.settings is None:
            return loaded
        return apply_overrides(
            loaded.settings,
            environ=environ,
            listen=self.listen,
            admin=self.admin,
            format=self.format,
            workers=self.workers,
        )

    def read_again(self) -> Source:
        """The same, with what the file holds now."""
        return self if self.upstream else msgspec.structs.replace(self, text=text_of(self.name))


def text_of(name: str) -> bytes | None:
    """What the file holds now; None where it cannot be read, which reading it as a configuration tells in words."""
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError:
        return None
