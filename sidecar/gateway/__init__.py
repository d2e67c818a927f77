"""The traffic door: client requests in, answers out.

Owns what is read of a request before anyone else sees it, and the HTTP answers of our own. Must not know how upstreams
are dialled, what a dialect means, or the admin door.
"""

from __future__ import annotations

from sidecar.gateway.caller import CallerNames
from sidecar.gateway.client_server import ClientServer
from sidecar.gateway.connection import ClientConnection
from sidecar.gateway.handler import Gateway
from sidecar.gateway.inquiry import Target
from sidecar.gateway.plan import Plan

__all__ = ["CallerNames", "ClientConnection", "ClientServer", "Gateway", "Plan", "Target"]
