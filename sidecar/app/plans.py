"""From settings to a plan the gateway can work by: pools, header rules and secrets of every upstream.

Owns which parts an upstream has, and which of them outlive a change of the configuration. Must not know the loop they
run in, nor when they begin and end.
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
from sidecar.secrets import AwsKeys, Secret, SecretUnreadableError
from sidecar.settings import Limits
from sidecar.signing import Signer
from sidecar.upstream import pool_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.settings import AwsSigning, SecretSource, Settings
    from sidecar.upstream import UpstreamPool

logger = logging.getLogger("sidecar.upstream")


def make_plan(
    settings: Settings, environ: Mapping[str, str], previous: Plan | None = None, *, afresh: bool = False
) -> Plan:
    """Raises SecretUnreadableError or ValueError for what can never work, as `App` does.

    What is as it was in ``previous`` is taken over: an upstream's connections and health, and every secret with its
    last good value. ``afresh``: files of secrets and certificates are read again, whether or not they seem to have
    changed.
    """
    credential_names = credential_headers(settings)
    kept = Kept(environ, previous, afresh=afresh)
    targets = {
        name: Target(
            upstream,
            kept.pool(settings, name)
            or pool_for(upstream, environ=environ, stream_buffer_bytes=_smallest_buffer(settings, name)),
            HeaderPolicy(upstream, credential_names),
            Scope("upstream", name, upstream.max_streams),
            kept.health(settings, name)
            or Health(name, upstream.circuit, settings.check_of(upstream), random.random, partial(_log_move, name)),
            kept.secret(upstream.credentials.secret),
            kept.signer(upstream.credentials.aws),
        )
        for name, upstream in settings.upstreams.items()
    }
    return Plan(settings, targets, kept.secret(settings.auth))


class Kept:
    """What of the configuration before goes on being used."""

    def __init__(self, environ: Mapping[str, str], previous: Plan | None, *, afresh: bool) -> None:
        self._environ = environ
        self._previous = previous
        self._afresh = afresh
        self._secrets: dict[SecretSource, Secret] = {}
        self._signers: dict[AwsSigning, Signer] = {}
        if previous is not None:
            if previous.settings.auth is not None and previous.auth is not None:
                self._secrets[previous.settings.auth] = previous.auth
            for target in previous.targets.values():
                credentials = target.upstream.credentials
                if credentials.secret is not None and target.secret is not None:
                    self._secrets[credentials.secret] = target.secret
                if credentials.aws is not None and target.signer is not None:
                    self._signers[credentials.aws] = target.signer

    def _target(self, settings: Settings, name: str) -> Target | None:
        """The target before, where nothing about the upstream has changed, nor what its routes ask of it."""
        previous = self._previous
        if previous is None or (target := previous.targets.get(name)) is None:
            return None
        upstream = settings.upstreams[name]
        is_same = target.upstream == upstream and previous.settings.check_of(upstream) == settings.check_of(upstream)
        is_asked_alike = _smallest_buffer(previous.settings, name) == _smallest_buffer(settings, name)
        return target if is_same and is_asked_alike else None

    def pool(self, settings: Settings, name: str) -> UpstreamPool | None:
        """Its connections; None where new ones have to be made."""
        target = self._target(settings, name)
        has_file = bool(settings.upstreams[name].tls.ca_file)
        return None if target is None or (self._afresh and has_file) else target.pool

    def health(self, settings: Settings, name: str) -> Health | None:
        """What is known of it."""
        target = self._target(settings, name)
        return None if target is None else target.health

    def secret(self, source: SecretSource | None) -> Secret | None:
        """The secret that is read at ``source``, None for none. Raises SecretUnreadableError for an unset variable."""
        if source is None:
            return None
        before = self._secrets.get(source)
        if before is None or (self._afresh and source.file):
            made = Secret(source, self._environ)
            if before is None or _is_readable(made):
                self._secrets[source] = before = made
        return before

    def signer(self, signing: AwsSigning | None) -> Signer | None:
        """Who signs so, None for nobody. Raises as `secret` does."""
        if signing is None:
            return None
        before = self._signers.get(signing)
        if before is None or (self._afresh and signing.keys.file):
            keys = AwsKeys(signing.keys, self._environ)
            if before is None or _is_readable(keys):
                self._signers[signing] = before = Signer(signing, keys.read)
        return before


def _is_readable(secret: Secret | AwsKeys) -> bool:
    """It can stand in for the one before, whose last good value is worth more than none."""
    try:
        secret.read()
    except SecretUnreadableError:
        return False
    return True


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
