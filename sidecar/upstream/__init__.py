"""The upstream edge: connections to LLM APIs, kept alive in one pool per configured upstream.

Owns dialling, TLS, proxies and the HTTP/1.1 exchange. Must not know routes, streams, clients or dialects.
"""

from __future__ import annotations

from sidecar.upstream.balanced import BalancedPool, pool_for
from sidecar.upstream.connection import Connection
from sidecar.upstream.pool import UpstreamPool
from sidecar.upstream.request import request_head

__all__ = ["BalancedPool", "Connection", "UpstreamPool", "pool_for", "request_head"]
