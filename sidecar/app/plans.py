"""From settings to a plan the gateway can work by: pools, header rules and secrets of every upstream.

Owns which parts an upstream has. Must not know the loop they run in, nor when they begin and end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.gateway import Plan, Target
from sidecar.headers import HeaderPolicy, credential_headers
from sidecar.health import Health
from sidecar.ports import Scope
from sidecar.secrets import AwsKeys, Secret
from sidecar.settings import Limits
from sidecar.signing import Signer
from sidecar.upstream import UpstreamPool

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.settings import AwsSigning, SecretSource, Settings


def make_plan(settings: Settings, environ: Mapping[str, str]) -> Plan:
    """Raises SecretUnreadableError or ValueError for what can never work, as `App` does."""
    credential_names = credential_headers(settings)
    targets = {
        name: Target(
            upstream,
            UpstreamPool(upstream, environ=environ, stream_buffer_bytes=_smallest_buffer(settings, name)),
            HeaderPolicy(upstream, credential_names),
            Scope("upstream", name, upstream.max_streams),
            Health(),
            secret_of(upstream.credentials.secret, environ),
            _signer(upstream.credentials.aws, environ),
        )
        for name, upstream in settings.upstreams.items()
    }
    return Plan(settings, targets, secret_of(settings.auth, environ))


def _smallest_buffer(settings: Settings, upstream: str) -> int:
    """What an upstream's answers may have to fit into, whichever route they take."""
    return min(
        (route.limits.buffer_bytes for route in settings.routes if upstream in route.upstreams),
        default=Limits().buffer_bytes,
    )


def secret_of(source: SecretSource | None, environ: Mapping[str, str]) -> Secret | None:
    """The secret that is read at ``source``, None for none. Raises SecretUnreadableError for an unset variable."""
    return Secret(source, environ) if source is not None else None


def _signer(signing: AwsSigning | None, environ: Mapping[str, str]) -> Signer | None:
    return Signer(signing, AwsKeys(signing.keys, environ).read) if signing is not None else None
