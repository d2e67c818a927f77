"""What telemetry says of the process itself.

Owns the resource's attributes and where each comes from. Must not know any signal.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING
from urllib.parse import unquote

from opentelemetry.sdk.resources import Resource

from sidecar import __version__
from sidecar.telemetry import names

if TYPE_CHECKING:
    from collections.abc import Mapping


def make_resource(service_name: str, environ: Mapping[str, str]) -> Resource:
    """``service_name`` is the configuration's, "" where it leaves it to the environment."""
    told = _told(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    name = service_name or _text(environ.get("OTEL_SERVICE_NAME", "")) or told.get(names.SERVICE_NAME) or "llm-sidecar"
    own = {
        names.SERVICE_VERSION: __version__,
        names.SERVICE_INSTANCE_ID: str(uuid.uuid4()),
        names.SEMCONV_VERSION: names.SEMCONV,
    }
    return Resource.create({**own, **told, names.SERVICE_NAME: name})


def _told(text: str) -> dict[str, str]:
    """As the specification has it: key=value, separated by commas, percent-encoded; what is neither is left out."""
    pairs = (pair.partition("=") for pair in text.split(","))
    return {_text(key): unquote(_text(value)) for key, mark, value in pairs if mark and key.strip()}


def _text(value: str) -> str:
    """An environment may hold bytes that are no text; nothing that is sent can."""
    return value.strip().encode("utf-8", "replace").decode()
