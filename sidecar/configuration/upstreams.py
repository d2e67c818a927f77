"""The ``upstreams`` section.

Owns its meaning but that of ``credentials``. Must not know routes: a policy that depends on them is left open here
(None) and settled in `reading`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sidecar.configuration.addresses import UpstreamUrl, parse_proxy, parse_upstream_url
from sidecar.configuration.credentials import read_credentials
from sidecar.configuration.fields import Section, header_name, header_value
from sidecar.configuration.wellbeing import read_circuit, read_health
from sidecar.headers import CREDENTIAL_HEADERS, HOP_BY_HOP, SIDECAR_SETS
from sidecar.settings import Address, Credentials, Timeouts, Upstream, UpstreamTls

if TYPE_CHECKING:
    from collections.abc import Collection

_OURS: Final = HOP_BY_HOP | SIDECAR_SETS
_SECRET_NAME: Final = re.compile(r"(?i).*(?:^|[-_])(?:key|token|secret|password|auth|authorization|cookie)")
_SECRET_VALUE: Final = re.compile(
    r"(?i)(?:bearer|basic|token)\s+\S|\b(?:sk|pk|rk|gsk|hf|xai)[-_][a-z0-9_-]{6,}|\bAIza|\beyJ"
)
_NOWHERE: Final = UpstreamUrl("http", Address("127.0.0.1", 9), "localhost")


@dataclass(frozen=True, slots=True)
class UpstreamDraft:
    """An upstream as its section says; ``has_credentials`` is false where it leaves the policy open."""

    upstream: Upstream
    has_credentials: bool
    line: int


def read_upstreams(root: Section, dialects: Collection[str]) -> dict[str, UpstreamDraft]:
    """Every upstream by name, those with problems too, so that routes can be checked against them."""
    return {name: _read_upstream(name, section, dialects) for name, section in root.named_sections("upstreams")}


def _read_upstream(name: str, section: Section, dialects: Collection[str]) -> UpstreamDraft:
    if "url" not in section:
        section.complain("url", "is missing")
    url = section.checked("url", parse_upstream_url, _NOWHERE)
    credentials = read_credentials(section, url.address.host)
    headers = section.section("headers")
    upstream = Upstream(
        name=name,
        scheme=url.scheme,
        address=url.address,
        authority=url.authority,
        base_path=url.base_path,
        dialect=section.choice("dialect", ("auto", *dialects), "auto"),
        credentials=credentials or Credentials(),
        model_map=section.pairs("model_map", _model_pair),
        set_headers=headers.pairs("set", _set_header),
        remove_headers=headers.texts("remove", _removed_header),
        timeouts=_read_timeouts(section.section("timeouts")),
        tls=_read_tls(section, url),
        proxy=section.checked("proxy", parse_proxy, None),
        forwarded=section.boolean("forwarded", default=False),
        eof=section.choice("eof", ("truncated", "complete"), "truncated"),
        propagate=section.choice("propagate", ("trace", "trace_and_baggage", "none"), "trace"),
        max_streams=section.count("max_streams", 0),
        health=read_health(section),
        circuit=read_circuit(section),
    )
    return UpstreamDraft(upstream, credentials is not None, section.line)


def _read_timeouts(section: Section) -> Timeouts:
    default = Timeouts()
    return Timeouts(
        connect_s=section.duration("connect", default.connect_s),
        first_token_s=section.duration("first_token", default.first_token_s),
        idle_s=section.duration("idle", default.idle_s),
        total_s=section.duration("total", default.total_s),
    )


def _read_tls(section: Section, url: UpstreamUrl) -> UpstreamTls:
    below = section.section("tls")
    if "tls" in section and url is not _NOWHERE and url.scheme != "https":
        section.complain("tls", "means nothing for an upstream whose url is not https")
    return UpstreamTls(
        ca_file=below.text("ca_file"),
        verify=below.boolean("verify", default=True),
        server_name=below.text("server_name"),
    )


def _model_pair(asked: str, sent: str) -> tuple[str, str]:
    if not asked or not sent:
        raise ValueError("must map a model's name to another")
    return asked, sent


def _set_header(name: str, value: str) -> tuple[str, str]:
    lower = header_name(name).lower().encode()
    if lower in CREDENTIAL_HEADERS or _SECRET_NAME.fullmatch(name) or _SECRET_VALUE.search(value):
        raise ValueError("looks like a credential: use credentials, which reads it from a file or the environment")
    if lower in _OURS:
        raise ValueError("is a header the sidecar itself sets")
    return name, header_value(value)


def _removed_header(name: str) -> str:
    if header_name(name).lower().encode() in _OURS:
        raise ValueError("is a header the sidecar itself sets")
    return name
