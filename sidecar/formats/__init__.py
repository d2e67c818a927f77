"""Events to what the client is sent: one table of every format, and the one way to make one.

Owns the names formats are chosen by. Must not know dialects, sockets or time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.formats.native import NativeFormat
from sidecar.formats.typed import TypedFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sidecar.errors import Failure
    from sidecar.events import Event, Frame
    from sidecar.ports import Format

__all__ = ["FORMATS", "NativeFormat", "TypedFormat", "make_format"]

FORMATS: Final[dict[str, type[NativeFormat | TypedFormat]]] = {
    NativeFormat.name: NativeFormat,
    TypedFormat.name: TypedFormat,
}
"""Every format a client may ask for, by its name."""


def make_format(
    name: str,
    *,
    error_frame: Callable[[Failure], bytes],
    joint: Callable[[bytes], bytes],
    native_heartbeat: bool,
    hides: Callable[[Frame, Sequence[Event]], bool] | None = None,
    stream_id: str,
    route: str,
    upstream: str,
    model: str,
    created: int,
) -> Format:
    """A fresh format for one stream; each takes what it needs of the rest.

    ``error_frame`` is the dialect's own and ``joint`` the framing's; ``native_heartbeat`` makes sense for SSE streams
    only; ``hides`` says which frames a native client is not sent; ``created`` is in seconds since the epoch. Raises
    KeyError for a name that is not in `FORMATS`.
    """
    if FORMATS[name] is NativeFormat:
        return NativeFormat(error_frame, joint, hides, heartbeat=native_heartbeat)
    return TypedFormat(stream_id, route, upstream, model, created)
