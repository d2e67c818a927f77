"""Every key a configuration file may hold, section by section.

Owns the names. Must not know what they mean. A section that is not here does not exist, and docs/configuration.md has
to name each one.
"""

from __future__ import annotations

from typing import Final

KEYS: Final[dict[str, tuple[str, ...]]] = {
    "": (
        "listen",
        "admin",
        "upstreams",
        "routes",
        "auth",
        "admin_auth",
        "cors",
        "tls",
        "max_buffered",
        "max_header",
        "telemetry",
        "logs",
        "workers",
    ),
    "upstreams.*": (
        "url",
        "dialect",
        "credentials",
        "model_map",
        "headers",
        "timeouts",
        "tls",
        "proxy",
        "forwarded",
        "eof",
        "propagate",
    ),
    "upstreams.*.credentials": ("header", "prefix", "file", "env", "when", "aws"),
    "upstreams.*.credentials.aws": ("file", "profile", "env", "region", "service"),
    "upstreams.*.credentials.aws.env": ("access_key_id", "secret_access_key", "session_token"),
    "upstreams.*.headers": ("set", "remove"),
    "upstreams.*.timeouts": ("connect", "first_token", "idle", "total"),
    "upstreams.*.tls": ("ca_file", "verify", "server_name"),
    "routes.*": (
        "name",
        "match",
        "upstreams",
        "format",
        "strip_prefix",
        "rewrite",
        "limits",
        "heartbeat",
        "native_heartbeat",
        "usage",
    ),
    "routes.*.match": ("path", "model", "host", "headers"),
    "routes.*.limits": ("buffer", "on_slow_client", "stall_timeout", "max_body", "max_frame"),
    "auth": ("bearer",),
    "auth.bearer": ("file", "env"),
    "admin_auth": ("bearer",),
    "admin_auth.bearer": ("file", "env"),
    "cors": ("origins",),
    "tls": ("certificate", "key"),
    "telemetry": (
        "otlp",
        "protocol",
        "traces",
        "metrics",
        "sample",
        "service_name",
        "models",
        "model_limit",
        "slo",
        "compat",
        "capture_content",
    ),
    "telemetry.slo": ("ttft",),
    "logs": ("format", "level", "streams"),
}
"""Section ("*" stands for a name or a place in a list) → its keys."""
