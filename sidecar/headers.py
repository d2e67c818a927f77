"""Which headers travel, in each direction: hop-by-hop rules, credentials, forwarding, CORS.

Owns the one rule that no upstream ever receives a credential meant for another. Pure functions over raw header lists,
names as they were sent. Must not know sockets, aiohttp or where secrets are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import unquote_plus

from sidecar.errors import Failure
from sidecar.record import Trace
from sidecar.settings import Cors, Settings, Upstream

Headers = list[tuple[bytes, bytes]]

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-authentication-info",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that end at this hop (RFC 9110 section 7.6.1, with the Proxy-* of practice)."""

CREDENTIAL_HEADERS: Final = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"ocp-apim-subscription-key",
        b"x-amz-security-token",
        b"x-amz-date",
        b"x-amz-content-sha256",
        b"cookie",
    }
)
"""Headers that hold a client's credentials, whichever API it meant them for, or are part of what it signed."""

CREDENTIAL_PARAMETERS: Final = frozenset(
    {
        "key",
        "api_key",
        "api-key",
        "apikey",
        "access_token",
        "token",
        "x-amz-algorithm",
        "x-amz-credential",
        "x-amz-date",
        "x-amz-expires",
        "x-amz-security-token",
        "x-amz-signature",
        "x-amz-signedheaders",
    }
)
"""Query parameters that hold them."""

FORWARDED_HEADERS: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"})

SIDECAR_SETS: Final = frozenset({b"host", b"content-length", b"expect", b"accept-encoding", b"x-stream-format"})
"""Headers of a request that the sidecar writes itself or keeps to itself, whatever the client sent."""

_TRACE: Final = frozenset({b"traceparent", b"tracestate"})
_BAGGAGE: Final = frozenset({b"baggage"})
"""W3C Trace Context and Baggage. Baggage says whatever a caller's own services told each other."""

_NO_KEYS: Final = frozenset({b"cookie", b"x-amz-date", b"x-amz-content-sha256"})
"""Dropped like credentials, but not what an LLM API takes for one."""

_KEEPS_CONNECTION_ONLY: Final = frozenset({b"keep-alive", b"close", b""})
_EXPOSED: Final = b"X-Stream-Id, X-Stream-Format, Retry-After, RateLimit, RateLimit-Policy"
_METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_FIELD_NAMES: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]{1,4096}")


def credential_headers(settings: Settings) -> frozenset[bytes]:
    """The lower-case names under which any upstream of ``settings`` takes a credential, and the well-known ones."""
    own = {upstream.credentials.header.lower().encode() for upstream in settings.upstreams.values()}
    return CREDENTIAL_HEADERS | own


class HeaderPolicy:
    """What one upstream is sent, precomputed from its settings.

    ``credential_names`` comes from `credential_headers`: a header that is a credential for one upstream is one
    everywhere.
    """

    __slots__ = (
        "_credential_names",
        "_drops",
        "_drops_with_trace",
        "_has_secret",
        "_name",
        "_policy",
        "_prefix",
        "_set",
        "_trace_headers",
        "_upstream",
    )

    def __init__(self, upstream: Upstream, credential_names: frozenset[bytes] = CREDENTIAL_HEADERS) -> None:
        credentials = upstream.credentials
        self._upstream = upstream
        self._policy = credentials.policy
        self._has_secret = credentials.secret is not None
        self._name = credentials.header.encode()
        self._prefix = credentials.prefix.encode()
        fixed = [(name.encode(), value.encode()) for name, value in upstream.set_headers]
        removed = {name.lower().encode() for name in upstream.remove_headers}
        # What is removed in any case is no credential to be passed on here.
        self._credential_names = (credential_names | {credentials.header.lower().encode()}) - removed
        edited = {name.lower() for name, _ in fixed} | removed
        # A tracestate says nothing without its traceparent.
        has_trace = upstream.propagate != "none" and b"traceparent" not in edited
        self._trace_headers = _TRACE - edited if has_trace else frozenset[bytes]()
        kept_back = {"trace": _BAGGAGE, "trace_and_baggage": frozenset[bytes](), "none": _BAGGAGE | _TRACE}
        self._drops = HOP_BY_HOP | SIDECAR_SETS | FORWARDED_HEADERS | edited | kept_back[upstream.propagate]
        self._drops_with_trace = self._drops | _TRACE
        self._set: Headers = [(b"Host", upstream.authority.encode()), (b"Accept-Encoding", b"identity"), *fixed]

    def request(
        self,
        raw: Iterable[tuple[bytes, bytes]],
        target: str,
        *,
        credential: str | None,
        own_bearer_consumed: bool,
        client_host: str = "",
        scheme: str = "http",
        trace: Trace | None = None,
    ) -> tuple[str, Headers]:
        """The request target and headers for the upstream, from the client's own.

        ``credential`` is the secret's text where the upstream has one. ``own_bearer_consumed``: the client's
        Authorization held the sidecar's own bearer, so it is no credential for anyone else. ``trace`` goes in place of
        the client's own trace headers, which travel on where it is None. Host and Accept-Encoding are set;
        Content-Length, Transfer-Encoding and Expect are the caller's to add. Raises Failure internal for a missing or
        unusable ``credential``. What cannot stand in a head is refused by whoever renders it.
        """
        travelling, theirs, forwarded = self._sorted(raw, self._drops if trace is None else self._drops_with_trace)
        if own_bearer_consumed:
            theirs = [field for field in theirs if field[0].lower() != b"authorization"]
        keeps_theirs = self._policy == "client" or (
            self._policy == "if_missing" and (_holds_key(theirs) or has_query_credentials(target))
        )
        headers = [*self._set, *travelling]
        if keeps_theirs:
            headers += theirs
        else:
            target = strip_query_credentials(target)
            if self._has_secret:
                headers.append((self._name, self._prefix + _sendable(credential)))
        if trace is not None:
            headers += [field for field in trace.headers if field[0] in self._trace_headers]
        if self._upstream.forwarded:
            headers += _forwarded(forwarded, client_host, scheme)
        return target, headers

    def _sorted(
        self, raw: Iterable[tuple[bytes, bytes]], drops: frozenset[bytes]
    ) -> tuple[Headers, Headers, list[tuple[bytes, bytes]]]:
        """The headers that travel as they are, the client's credentials, and what says where it came from."""
        credential_names = self._credential_names
        travelling: Headers = []
        theirs: Headers = []
        aside: Headers = []
        named: frozenset[bytes] = frozenset()
        for field in raw:
            name = field[0].lower()
            if name in credential_names:
                theirs.append(field)
            elif name not in drops:
                travelling.append(field)
            elif name == b"connection":
                named |= _connection_names(field[1])
            elif name in FORWARDED_HEADERS or name == b"host":
                aside.append((name, field[1]))
        if named:
            travelling = [field for field in travelling if field[0].lower() not in named]
            theirs = [field for field in theirs if field[0].lower() not in named]
        return travelling, theirs, aside


def _connection_names(value: bytes) -> frozenset[bytes]:
    return frozenset(option.strip().lower() for option in value.split(b",")) - _KEEPS_CONNECTION_ONLY


def _holds_key(theirs: Headers) -> bool:
    return any(name.lower() not in _NO_KEYS for name, _ in theirs)


def _sendable(credential: str | None) -> bytes:
    if not credential or not credential.isascii() or not credential.isprintable():
        raise Failure("internal", "the upstream's credential is not usable")
    return credential.encode("ascii")


def _forwarded(aside: Headers, client_host: str, scheme: str) -> Headers:
    """This hop added to what earlier proxies said: appended to lists, and only in default of a -Proto or -Host."""
    seen: dict[bytes, bytes] = {}
    for name, value in aside:
        seen[name] = seen[name] + b", " + value if name in seen else value
    client, protocol, host = client_host.encode(), scheme.encode(), seen.get(b"host", b"")
    hop = [b"proto=" + protocol]
    if client:
        hop.insert(0, b'for="[%b]"' % client if b":" in client else b"for=" + client)
    if host and b'"' not in host and b"\\" not in host:
        hop.append(b'host="%b"' % host)
    result = [
        (b"X-Forwarded-For", _appended(seen.get(b"x-forwarded-for"), client)),
        (b"X-Forwarded-Proto", seen.get(b"x-forwarded-proto", protocol)),
        (b"X-Forwarded-Host", seen.get(b"x-forwarded-host", host)),
        (b"Forwarded", _appended(seen.get(b"forwarded"), b";".join(hop))),
    ]
    return [field for field in result if field[1]]


def _appended(earlier: bytes | None, value: bytes) -> bytes:
    return b", ".join(part for part in (earlier, value) if part)


def has_query_credentials(target: str) -> bool:
    """Whether the request target's query holds a credential."""
    query = target.partition("?")[2]
    return bool(query) and any(map(_is_credential_parameter, _parameters(query)))


def strip_query_credentials(target: str) -> str:
    """The request target without the query parameters that hold credentials; untouched where there is none."""
    if not has_query_credentials(target):
        return target
    path, _, query = target.partition("?")
    kept = "&".join(parameter for parameter in _parameters(query) if not _is_credential_parameter(parameter))
    return f"{path}?{kept}" if kept else path


def _parameters(query: str) -> list[str]:
    # Some servers take ";" for "&", so a key must not hide behind one.
    return query.replace(";", "&").split("&")


def _is_credential_parameter(parameter: str) -> bool:
    return unquote_plus(parameter.partition("=")[0]).strip().lower() in CREDENTIAL_PARAMETERS


def response_headers(raw: Iterable[tuple[bytes, bytes]], drops: frozenset[bytes] = HOP_BY_HOP) -> Headers:
    """An upstream's headers as the client gets them: order and spelling kept, less hop-by-hop ones and any X-Stream-*.

    ``drops`` are the names that do not travel, in lower case: with the hop-by-hop ones what will be said anew.
    """
    kept: Headers = []
    named: frozenset[bytes] = frozenset()
    for field in raw:
        name = field[0].lower()
        if name not in drops:
            if not name.startswith(b"x-stream-"):
                kept.append(field)
        elif name == b"connection":
            named |= _connection_names(field[1])
    return [field for field in kept if field[0].lower() not in named] if named else kept


STREAM_HEADERS: Final = frozenset({b"cache-control", b"x-accel-buffering", b"x-stream-id", b"x-stream-format"})
"""What `stream_headers` sets, in lower case."""


def stream_headers(stream_id: str, format_name: str) -> Headers:
    """What every stream's answer carries, so that no cache or proxy on the way holds it back."""
    return [
        (b"Cache-Control", b"no-cache, no-transform"),
        (b"X-Accel-Buffering", b"no"),
        (b"X-Stream-Id", stream_id.encode()),
        (b"X-Stream-Format", format_name.encode()),
    ]


def cors_headers(cors: Cors, origin: str | None) -> Headers:
    """What lets a browser page of ``origin`` read an answer; nothing for an origin that is not allowed."""
    if not cors.origins:
        return []
    if "*" in cors.origins:
        allowed = [(b"Access-Control-Allow-Origin", b"*")] if origin else []
    elif origin in cors.origins:
        allowed = [(b"Vary", b"Origin"), (b"Access-Control-Allow-Origin", origin.encode())]
    else:
        return [(b"Vary", b"Origin")]
    return [*allowed, (b"Access-Control-Expose-Headers", _EXPOSED)] if allowed else []


def preflight_headers(cors: Cors, origin: str, requested_method: str, requested_headers: str | None) -> Headers:
    """The answer to a CORS preflight. Raises Failure forbidden_origin where the origin or method is not allowed."""
    if not is_allowed_origin(cors, origin) or requested_method.encode() not in _METHODS.split(b", "):
        raise Failure("forbidden_origin", "this origin may not call the sidecar")
    headers = [field for field in cors_headers(cors, origin) if field[0] != b"Access-Control-Expose-Headers"]
    headers += [(b"Access-Control-Allow-Methods", _METHODS), (b"Access-Control-Max-Age", b"600")]
    # "*" would not cover Authorization, so the names asked for are named.
    if requested_headers and _FIELD_NAMES.fullmatch(requested_headers):
        headers.append((b"Access-Control-Allow-Headers", requested_headers.encode()))
    return headers


def is_allowed_origin(cors: Cors, origin: str) -> bool:
    """Whether a page of ``origin`` may call the traffic port."""
    return "*" in cors.origins or origin in cors.origins


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a request is a CORS preflight (Fetch standard, "CORS-preflight request")."""
    return method == "OPTIONS" and "Origin" in headers and "Access-Control-Request-Method" in headers
