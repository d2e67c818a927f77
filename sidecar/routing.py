"""Which route a request takes, and what its path and model become on the way to an upstream.

Owns path safety, route matching, model mapping and the reading of a body's "model" and "stream". Pure: no sockets, no
aiohttp. Must not know how requests arrive or how upstreams are reached.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote

import msgspec

from sidecar.dialects.usage_on_request import includes_usage
from sidecar.errors import Failure
from sidecar.settings import Match, Route, Settings, Upstream

Fits = Callable[[str], object]

_PLAIN_PATH: Final = re.compile(r"(?:/(?!\.)[A-Za-z0-9._~!$&'()*+,=:@-]+)+/?|/")
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_STILL_ENCODED: Final = re.compile(r"%(?:2[ef]|5c|[01][0-9a-f]|25|7f)", re.IGNORECASE)
_ENCODED_SLASH: Final = re.compile(r"%2f", re.IGNORECASE)
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_SENDABLE: Final = re.compile(r"[!-~]*")
_MODEL_PARENTS: Final = frozenset({"model", "models", "deployments"})
_PATH_MODEL: Final = re.compile(
    r"/models/(?P<gemini>[^/:]+):[A-Za-z]+\Z"  # /v1beta/models/{model}:streamGenerateContent
    r"|/model/(?P<bedrock>[^/]+)/"  # /model/{id}/invoke-with-response-stream
    r"|/deployments/(?P<azure>[^/]+)(?:/|\Z)"  # /openai/deployments/{name}/chat/completions
)


class BodyPeek(msgspec.Struct, frozen=True, gc=False):
    """What routing reads of a JSON body: None where it is absent or not of its type."""

    model: str | None = None
    stream: bool | None = None
    includes_usage: bool = False


class _Peek(msgspec.Struct, gc=False):
    model: Any = None
    stream: Any = None
    stream_options: Any = None


_peek_decoder: Final = msgspec.json.Decoder(_Peek)
_object_decoder: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encoder: Final = msgspec.json.Encoder()

_PATHS_KNOWN: Final = 256
"""How many request paths are remembered: clients use a handful, and none is longer than a request line may be."""


class Router:
    """The routes in file order, compiled once."""

    def __init__(self, settings: Settings) -> None:
        self._rules = [_Rule(route) for route in settings.routes]
        self._knows_models = any(rule.fits_model is not None for rule in self._rules)

    def match(self, path: str, host: str, headers: Mapping[str, str], model: str | None) -> Route:
        """The first route whose every match field fits.

        ``path`` comes from `safe_path`; ``host`` is the Host header; ``headers`` looks names up without regard to case.
        Raises Failure route_not_found, or model_missing when the first route that fits otherwise matches on a model
        and ``model`` is None.
        """
        for rule in self._rules:
            if not rule.fits(path, host, headers):
                continue
            if rule.fits_model is None:
                return rule.route
            if model is None:
                raise Failure("model_missing", "this route is chosen by model, and the request names none")
            if rule.fits_model(model):
                return rule.route
        raise Failure("route_not_found", "no route fits this request")

    def needs_model(self, path: str, host: str, headers: Mapping[str, str]) -> bool:
        """Whether `match` has to be told the model, so that the body has to be read before a route is chosen."""
        if self._knows_models:
            for rule in self._rules:
                if rule.fits(path, host, headers):
                    return rule.fits_model is not None
        return False


class _Rule:
    """One route's match fields as functions; None where anything fits."""

    __slots__ = ("_fits_headers", "_fits_host", "_fits_path", "fits_model", "route")

    def __init__(self, route: Route) -> None:
        match = route.match
        self.route = route
        self._fits_path = None if match.path == "/**" else path_pattern(match.path).fullmatch
        self._fits_host = _glob(match.host.lower()) if match.host else None
        self._fits_headers = tuple((name, _glob(pattern)) for name, pattern in match.headers)
        self.fits_model = _glob(match.model) if match.model else None

    def fits(self, path: str, host: str, headers: Mapping[str, str]) -> bool:
        """Whether every field but the model fits."""
        if self._fits_path is not None and not self._fits_path(path):
            return False
        if self._fits_host is not None and not self._fits_host(host_name(host)):
            return False
        for name, fits in self._fits_headers:
            value = headers.get(name)
            if value is None or not fits(value):
                return False
        return True


def covers(earlier: Match, later: Match) -> bool:
    """Whether every request that fits ``later`` fits ``earlier`` too, as far as can be told from the patterns."""
    is_literal = "*" not in later.path
    covers_path = earlier.path in {"/**", later.path} or (
        is_literal and path_pattern(earlier.path).fullmatch(later.path)
    )
    return (
        bool(covers_path)
        and earlier.model in {"", "*", later.model}
        and earlier.host in {"", "*", later.host}
        and set(earlier.headers) <= set(later.headers)
    )


def path_pattern(pattern: str) -> re.Pattern[str]:
    """A path pattern compiled: ``*`` is one whole or part segment, ``**`` any number of segments, none included."""
    pieces = []
    for piece in re.split(r"(/\*\*(?=/|\Z)|\*)", pattern):
        if piece == "/**":
            pieces.append(r"(?:/.*)?")
        elif piece == "*":
            pieces.append(r"[^/]+")
        else:
            pieces.append(re.escape(piece))
    return re.compile("".join(pieces), re.DOTALL)


def host_name(host: str) -> str:
    """The Host header in lower case, without its port or an IPv6 address's brackets."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def split_target(target: str) -> tuple[str, str]:
    """A request target's raw path and its query with the "?", or ""."""
    path, mark, query = target.partition("?")
    return path, mark + query


@lru_cache(_PATHS_KNOWN)
def safe_path(path: str) -> str:
    """The raw path percent-decoded, for matching; a slash encoded inside a model's name stays "%2F".

    Raises Failure bad_request for a path that an upstream might read as another than the one matched: dot segments,
    empty segments, encoded slashes elsewhere, backslashes, control characters, double encoding, broken escapes.
    """
    if _PLAIN_PATH.fullmatch(path):
        return path
    if not path.startswith("/") or not path.isascii() or "#" in path or _BAD_ESCAPE.search(path):
        raise _bad_path()
    parent = ""
    segments = path.split("/")[1:]
    decoded = [""]
    for position, segment in enumerate(segments):
        is_last = position == len(segments) - 1
        if not segment and not is_last:
            raise _bad_path()
        decoded.append(_safe_segment(segment, is_model=parent in _MODEL_PARENTS))
        parent = decoded[-1]
    return "/".join(decoded)


def _safe_segment(segment: str, *, is_model: bool) -> str:
    parts = _ENCODED_SLASH.split(segment)
    if len(parts) > 1 and not is_model:
        raise _bad_path()
    try:
        texts = [unquote(part, errors="strict") for part in parts]
    except UnicodeDecodeError:
        raise _bad_path() from None
    for text in texts:
        # Some servers read "..;x" as "..", so what follows a semicolon does not count.
        if text.partition(";")[0] in {".", ".."} or _UNPRINTABLE.search(text) or _STILL_ENCODED.search(text):
            raise _bad_path()
    return "%2F".join(texts)


def _bad_path() -> Failure:
    return Failure("bad_request", "the request's path is not acceptable")


def target_path(route: Route, upstream: Upstream, target: str, model: str | None = None) -> str:
    """The request target for ``upstream``: its base path, then the request's raw path less the route's
    ``strip_prefix``, or the route's ``rewrite``; the query is kept. ``model`` replaces one that the path names.

    Raises Failure bad_request for a query that cannot stand in a request line. The path has passed `safe_path`.
    """
    path, query = split_target(target)
    if not _SENDABLE.fullmatch(query):
        raise Failure("bad_request", "the request's query is not acceptable")
    path = sent_path(route, upstream, path)
    if model is not None:
        path = _with_model(path, model)
    return f"{path}{query}"


def sent_path(route: Route, upstream: Upstream, path: str) -> str:
    """A request's path, raw or decoded and without a query, as ``upstream`` is asked for it."""
    if route.rewrite:
        path = route.rewrite
    elif route.strip_prefix:
        path = _without_prefix(path, route.strip_prefix)
    return upstream.base_path + path


def _without_prefix(path: str, prefix: str) -> str:
    # Segments are counted, not characters, so that an escaped spelling of the prefix is taken off too.
    count = prefix.count("/")
    segments = path.split("/")
    if unquote("/".join(segments[: count + 1])) != prefix:
        return path
    return "/" + "/".join(segments[count + 1 :])


@lru_cache(_PATHS_KNOWN)
def model_from_path(path: str) -> str | None:
    """The model that a path or request target names (Gemini, Bedrock, Azure), decoded; None where it names none."""
    found = _PATH_MODEL.search(path.partition("?")[0])
    return unquote(found[found.lastgroup or 0]) if found else None


def _with_model(path: str, model: str) -> str:
    found = _PATH_MODEL.search(path)
    if found is None:
        return path
    start, end = found.span(found.lastgroup or 0)
    return path[:start] + quote(model, safe="") + path[end:]


def mapped_model(upstream: Upstream, model: str | None) -> str | None:
    """The model to send to ``upstream`` instead of ``model``; None where its model_map leaves it alone.

    An exact entry goes before globs, globs in file order, and "*" last.
    """
    if not upstream.model_map or model is None:
        return None
    fallback = None
    matched = None
    for asked, sent in upstream.model_map:
        if asked == model:
            return sent
        if asked == "*":
            fallback = sent
        elif matched is None and _glob(asked)(model):
            matched = sent
    return matched or fallback


def peek_body(body: bytes) -> BodyPeek:
    """The "model" and "stream" of a JSON body, without building the rest of it. Never raises."""
    try:
        peek = _peek_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return BodyPeek()
    return BodyPeek(
        model=peek.model if isinstance(peek.model, str) else None,
        stream=peek.stream if isinstance(peek.stream, bool) else None,
        includes_usage=includes_usage(peek.stream_options),
    )


def rewrite_model(body: bytes, model: str) -> bytes:
    """``body`` with its top-level "model" replaced; every other value keeps its very bytes.

    Raises Failure bad_request for a body that is not a JSON object.
    """
    try:
        members = _object_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Failure("bad_request", "the request's body is not a JSON object") from None
    members["model"] = msgspec.Raw(_encoder.encode(model))
    return _encoder.encode(members)


@cache
def _glob(pattern: str) -> Fits:
    return re.compile(fnmatch.translate(pattern)).match
