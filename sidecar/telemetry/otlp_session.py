"""The HTTP session of the exporters, for collectors that are none.

Owns what a wrong URL may cost: an answer is read up to a bound in bytes and time, and a redirect, which the exporters
would take for success, fails. Must not know what is sent.
"""

from __future__ import annotations

import time
from typing import Any, Final

import requests

from sidecar.telemetry.complaints import note

MAX_ANSWER_BYTES: Final = 64 * 1024
MAX_ANSWER_S: Final = 10.0
_PIECE_BYTES: Final = 4096
_REDIRECT: Final = 300
_CLIENT_ERROR: Final = 400


class RedirectedError(requests.RequestException):
    """The collector is somewhere else. Its new place is not taken on trust: the headers may hold a key."""


class Session(requests.Session):
    """As every session, but for the bounds. Nobody reads the answers' bodies."""

    def request(self, *args: Any, **options: Any) -> requests.Response:
        """Raises RedirectedError besides what every session raises."""
        try:
            response = super().request(*args, **{**options, "stream": True})
        except requests.RequestException as error:
            note(error)
            raise
        _read_within_bounds(response)
        if response.status_code >= _REDIRECT:
            note(response.status_code)
        if _REDIRECT <= response.status_code < _CLIENT_ERROR:
            raise RedirectedError
        return response


def _read_within_bounds(response: requests.Response) -> None:
    """A body that is read whole leaves its connection for the next batch; any other is closed with it."""
    left_bytes, until_s = MAX_ANSWER_BYTES, time.monotonic() + MAX_ANSWER_S
    try:
        for piece in response.iter_content(_PIECE_BYTES):
            left_bytes -= len(piece)
            if left_bytes < 0 or time.monotonic() > until_s:
                break
        else:
            return
    except requests.RequestException:
        pass  # its status has been said; what it says besides is nobody's concern
    response.close()
