"""One configuration as the gateway works by it, swapped whole when another one is loaded.

Owns that a request sees one configuration from its head to its end. Must not know how it was read or built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.admission import terms_of
from sidecar.fallback import Fallback
from sidecar.routing import Router

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sidecar.gateway.inquiry import Target
    from sidecar.secrets import Secret
    from sidecar.settings import Settings


class Plan:
    """``targets`` are the upstreams by name; ``auth`` is what clients have to bear, None for nothing."""

    __slots__ = ("auth", "fallbacks", "is_limited", "max_body_bytes", "router", "settings", "targets", "terms")

    def __init__(self, settings: Settings, targets: Mapping[str, Target], auth: Secret | None) -> None:
        self.settings = settings
        self.targets = targets
        self.auth = auth
        self.router = Router(settings)
        self.fallbacks = {route.name: Fallback(route) for route in settings.routes}
        self.terms = {route.name: terms_of(route, settings) for route in settings.routes}
        """What requests of each route need a place in; None where nothing is limited."""
        self.is_limited = any(terms is not None for terms in self.terms.values())
        self.max_body_bytes = max(route.limits.max_body_bytes for route in settings.routes)
        """Before a route is known, no body may be larger than the largest that any of them takes."""
