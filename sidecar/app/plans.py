"""From settings to a plan the gateway can work by: pools, header rules and secrets of every upstream.

Owns which parts an upstream has. Must not know the loop they run in, nor when they begin and end.
"""

from __future__ import annotations

import logging
import random
from functools import partial
from typing import TYPE_CHECKING

from sidecar.gateway import Plan, Target
from sidecar.headers import HeaderPolicy, credential_headers
from sidecar.health import Health, State
from sidecar.ports import Scope
from sidecar.secrets import AwsKeys, Secret
from sidecar.settings import Limits
from sidecar.signing import Signer
from sidecar.upstream import pool_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.settings import AwsSigning, SecretSource, Settings

logger = logging.getLogger("sidecar.upstream")


def make_plan(settings: Settings, environ: Mapping[str, str]) -> Plan:
    """Raises SecretUnreadableError or ValueError for what can never work, as `App` does."""
    credential_names = credential_headers(settings)
    targets = {
        name: Target(
            upstream,
            pool_for(upstream, environ=environ, stream_buffer_bytes=_smallest_buffer(settings, name)),
            HeaderPolicy(upstream, credential_names),
            Scope("upstream", name, upstream.max_streams),
            Health(name, upstream.circuit, settings.check_of(upstream), random.random, partial(_log_move, name)),
            secret_of(upstream.credentials.secret, environ),
            _signer(upstream.credentials.aws, environ),
        )
        for name, upstream in settings.upstreams.items()
    }
    return Plan(settings, targets, secret_of(settings.auth, environ))


def _log_move(upstream: str, before: State, after: State) -> None:
    if after is State.CLOSED:
        logger.info("upstream %s: is asked again, after %s", upstream, before.value)
    elif after is State.DOWN:
        logger.warning("upstream %s: does not answer its health check", upstream)
    elif before is State.CLOSED:
        logger.warning("upstream %s: is left alone after failures in a row", upstream)


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
