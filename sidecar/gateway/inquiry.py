"""The words of the traffic door: a request as far as it is understood, and an upstream as it is asked.

Owns no behaviour beyond reading a credential when it is due. Must not know routes' order or streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.errors import Failure
from sidecar.held_request import HeldRequest
from sidecar.routing import BodyPeek
from sidecar.secrets import SecretUnreadableError

if TYPE_CHECKING:
    from sidecar.gateway.connection import ClientConnection
    from sidecar.gateway.plan import Plan
    from sidecar.gateway.request import ClientRequest
    from sidecar.headers import HeaderPolicy, Headers
    from sidecar.health import Health
    from sidecar.ports import Scope
    from sidecar.record import Trace
    from sidecar.secrets import Secret
    from sidecar.settings import Route, Upstream
    from sidecar.signing import Signer
    from sidecar.upstream import UpstreamPool


@dataclass(frozen=True, slots=True)
class Target:
    """One upstream as the gateway uses it: its pool, its header rules, what limits it and how it is, and its secret or
    who signs with it."""

    upstream: Upstream
    pool: UpstreamPool
    headers: HeaderPolicy
    scope: Scope
    health: Health
    secret: Secret | None = None
    signer: Signer | None = None

    def credential(self) -> str | None:
        """The secret as of now. Raises Failure internal, naming the source, while it cannot be read."""
        if self.secret is None:
            return None
        try:
            return self.secret.read()
        except SecretUnreadableError as error:
            raise self._without_credential(error) from None

    def signed(self, method: str, target: str, headers: Headers, body: bytes) -> Headers:
        """``headers`` as they are sent: with a signature where this upstream wants one. Raises Failure as
        `credential` does, and bad_request for what cannot be signed."""
        if self.signer is None:
            return headers
        try:
            return self.signer.sign(method, target, headers, body)
        except SecretUnreadableError as error:
            raise self._without_credential(error) from None

    def _without_credential(self, error: SecretUnreadableError) -> Failure:
        return Failure("internal", f"the credential for upstream {self.upstream.name!r}: {error}")


@dataclass(slots=True)
class Inquiry:
    """One request as far as it has been understood.

    ``held`` has its head and body, as long as an upstream may yet have to be asked. ``plan`` is the configuration as
    it was when its head came.
    """

    held: HeldRequest
    connection: ClientConnection
    stream_id: str
    received_at: float
    target: str
    family: str
    plan: Plan
    extra_headers: Headers = field(default_factory=list)
    peek: BodyPeek = BodyPeek()  # noqa: RUF009 - frozen
    model: str | None = None
    route: Route | None = None
    trace: Trace | None = None
    has_stream: bool = False
    """A stream was made of it."""

    @property
    def bears_own_token(self) -> bool:
        """Its Authorization was for the sidecar."""
        return self.plan.auth is not None

    @property
    def scheme(self) -> str:
        """How its client reached us."""
        return "https" if self.connection.ssl_context is not None else "http"

    @property
    def request(self) -> ClientRequest:
        """What was read of it; gone once an answer of an upstream's has begun."""
        request: ClientRequest = self.held.head
        return request

    @property
    def is_streamed(self) -> bool:
        """Its body is streamed through, and so can be sent but once."""
        return self.held.body is None
