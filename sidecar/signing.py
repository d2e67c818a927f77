"""AWS Signature Version 4, put on a request whose bytes are final.

Owns the one use of botocore, which is an extra (``llm-sidecar[bedrock]``): without it nothing can be signed, and all
else works. Must not know where keys are kept or which API is called.

Signed are Host, Content-Type, whatever begins with ``x-amz``, and the body: a proxy on the way may add to the others.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING, Any, Final

from sidecar.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.settings import AwsSigning

Headers = list[tuple[bytes, bytes]]

MISSING: Final = "signing for AWS needs botocore: install llm-sidecar[bedrock]"

_SIGNED: Final = (b"host", b"content-type")
_ADDED: Final = ("X-Amz-Date", "X-Amz-Security-Token", "Authorization")


def can_sign() -> bool:
    """Whether the extra is installed. Imports nothing of it."""
    return importlib.util.find_spec("botocore") is not None


class Signer:
    """Signs the requests to one upstream. ``keys`` gives key id, secret key and session token ("" for none) as of now.

    Raises ValueError at construction where botocore is not installed.
    """

    def __init__(self, signing: AwsSigning, keys: Callable[[], tuple[str, str, str]]) -> None:
        try:
            from botocore.auth import SigV4Auth
            from botocore.awsrequest import AWSRequest
            from botocore.credentials import Credentials
        except ImportError:
            raise ValueError(MISSING) from None
        # It would log the headers it signs, the session token among them.
        logging.getLogger("botocore.auth").addFilter(_drop)
        self._signing = signing
        self._keys = keys
        self._auth: Any = SigV4Auth
        self._request: Any = AWSRequest
        self._credentials: Any = Credentials

    def __repr__(self) -> str:
        return f"<Signer for {self._signing.service} in {self._signing.region}>"

    def sign(self, method: str, target: str, headers: Headers, body: bytes) -> Headers:
        """``headers``, Host among them, with the signature of all of it behind them.

        ``target`` is the path and query as they will stand in the request line. Raises Failure bad_request for a
        header that cannot be signed, and whatever ``keys`` raises.
        """
        host = next(value for name, value in headers if name.lower() == b"host").decode("ascii")
        request = self._request(method, f"https://{host}{target}", data=body)
        for name, value in headers:
            lower = name.lower()
            if lower in _SIGNED or lower.startswith(b"x-amz"):
                if not name.isascii() or not value.isascii():
                    raise Failure("bad_request", "a header of the request holds what cannot be signed for AWS")
                request.headers[name.decode("ascii")] = value.decode("ascii")
        key_id, secret_key, token = self._keys()
        credentials = self._credentials(key_id, secret_key, token or None)
        self._auth(credentials, self._signing.service, self._signing.region).add_auth(request)
        return headers + [(name.encode(), request.headers[name].encode()) for name in _ADDED if name in request.headers]


def _drop(record: logging.LogRecord) -> bool:  # noqa: ARG001 - none is wanted
    return False
