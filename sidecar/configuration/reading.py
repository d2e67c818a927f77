"""A configuration from its three sources: a file, one upstream's URL, and the command line's overrides.

Owns the order of reading and what only the whole shows: credentials left open, warnings. Must not know how single keys
look (`fields`, `upstreams`, `routes`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from sidecar.configuration.addresses import parse_address, parse_origin, parse_upstream_url
from sidecar.configuration.checks import warnings_of
from sidecar.configuration.credentials import read_secret_source
from sidecar.configuration.fields import NOT_IN_THE_FILE, Section, header_name
from sidecar.configuration.problems import Loaded, Problems
from sidecar.configuration.routes import read_routes
from sidecar.configuration.telling import read_logs, read_telemetry
from sidecar.configuration.upstreams import UpstreamDraft, read_upstreams
from sidecar.configuration.yaml_tree import Scalar, parse
from sidecar.dialects import DIALECTS
from sidecar.formats import FORMATS
from sidecar.settings import (
    Callers,
    Connections,
    Cors,
    Credentials,
    Drain,
    Route,
    SecretSource,
    ServerTls,
    Settings,
    Upstream,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sidecar.settings import Address

T = TypeVar("T")

MOST_WORKERS: Final = 256
MOST_CONNECTIONS: Final = 9_999_999


def load_file(path: str, *, environ: Mapping[str, str]) -> Loaded:
    """The configuration in the file at ``path``; a file that cannot be read is a problem like any other."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        problems = Problems()
        problems.add(0, "", f"cannot be read: {error.strerror}")
        return problems.loaded(path, None)
    return load(content, source=path, environ=environ)


def load(text: str | bytes, *, source: str, environ: Mapping[str, str]) -> Loaded:
    """The configuration in ``text``, or every problem in it at once. ``source`` is what problems call it."""
    problems = Problems()
    tree = parse(text, problems)
    if tree is None:
        return problems.loaded(source, None)
    root = Section(tree, "", "", 1, problems)
    settings = _read_root(root)
    if problems.found:
        return problems.loaded(source, None)
    return Loaded(source, replace(settings, warnings=warnings_of(settings, environ)))


def for_upstream_url(
    url: str,
    *,
    environ: Mapping[str, str],
    listen: str | None = None,
    admin: str | None = None,
    format: str | None = None,  # noqa: A002 - the option's name
    workers: str | None = None,
) -> Loaded:
    """The configuration of ``sidecar run --upstream URL``: one upstream, and one route for everything."""
    problems = Problems()
    parsed = _option(problems, "--upstream", url, parse_upstream_url)
    if parsed is None:
        return problems.loaded("command line", None)
    upstream = Upstream(
        name="upstream",
        scheme=parsed.scheme,
        address=parsed.address,
        authority=parsed.authority,
        base_path=parsed.base_path,
        credentials=Credentials(policy="client"),
    )
    settings = Settings({upstream.name: upstream}, (Route("default", (upstream.name,)),))
    return apply_overrides(settings, environ=environ, listen=listen, admin=admin, format=format, workers=workers)


def apply_overrides(
    settings: Settings,
    *,
    environ: Mapping[str, str],
    listen: str | None = None,
    admin: str | None = None,
    format: str | None = None,  # noqa: A002 - the option's name
    workers: str | None = None,
) -> Loaded:
    """``settings`` with what the command line says instead; ``format`` is then every route's."""
    problems = Problems()
    routes = settings.routes
    if format is not None:
        if format not in FORMATS:
            problems.add(0, "--format", f"must be one of {', '.join(FORMATS)}")
        routes = tuple(replace(route, format=format) for route in routes)
    settings = replace(
        settings,
        listen=_address(problems, "--listen", listen, settings.listen),
        admin=_address(problems, "--admin", admin, settings.admin),
        routes=routes,
        workers=_workers(problems, workers, settings.workers),
    )
    _check_addresses(settings, lambda message: problems.add(0, "--admin", message))
    if problems.found:
        return problems.loaded("command line", None)
    return Loaded("command line", replace(settings, warnings=warnings_of(settings, environ)))


def parse_workers(text: str) -> int:
    """A number of processes; 0 for ``auto``."""
    if text == "auto":
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 3 or not 1 <= int(text) <= MOST_WORKERS:
        raise ValueError(f"must be a number from 1 to {MOST_WORKERS}, or auto")
    return int(text)


def _read_root(root: Section) -> Settings:
    default = Settings({}, ())
    drafts = read_upstreams(root, DIALECTS)
    if not drafts:
        root.complain("upstreams", "needs at least one upstream with its url")
    routes = read_routes(root, drafts, FORMATS)
    settings = Settings(
        upstreams={name: _settled(draft, routes) for name, draft in drafts.items()},
        routes=routes,
        listen=root.checked("listen", parse_address, default.listen),
        admin=root.checked("admin", parse_address, default.admin),
        auth=_read_bearer(root, "auth"),
        admin_auth=_read_bearer(root, "admin_auth"),
        cors=Cors(root.section("cors").texts("origins", parse_origin)),
        tls=_read_server_tls(root.section("tls")),
        max_buffered_bytes=root.size("max_buffered", default.max_buffered_bytes),
        max_header_bytes=root.size("max_header", default.max_header_bytes),
        max_streams=root.count("max_streams", default.max_streams),
        callers=_read_callers(root.section("callers")),
        telemetry=read_telemetry(root.section("telemetry")),
        logs=read_logs(root.section("logs")),
        mode=root.choice("mode", ("egress", "ingress"), default.mode),
        drain=_read_drain(root.section("drain")),
        connections=_read_connections(root.section("connections")),
        workers=root.checked("workers", parse_workers, default.workers),
    )
    _check_addresses(settings, lambda message: root.complain("admin", message))
    return settings


def _settled(draft: UpstreamDraft, routes: Sequence[Route]) -> Upstream:
    """An upstream that says nothing of credentials gets the client's own only where no request could have meant
    them for another: every route to it leads nowhere else."""
    upstream = draft.upstream
    if draft.has_credentials:
        return upstream
    leads = [route.upstreams for route in routes if upstream.name in route.upstreams]
    is_alone = bool(leads) and all(names == (upstream.name,) for names in leads)
    return replace(upstream, credentials=Credentials(policy="client" if is_alone else "none"))


def _read_callers(section: Section) -> Callers:
    default = Callers()
    return Callers(
        header=section.checked("header", header_name, default.header),
        streams=section.count("streams", default.streams),
    )


def _read_bearer(root: Section, key: str) -> SecretSource | None:
    if key not in root:
        return None
    section = root.section(key)
    if "bearer" not in section:
        section.problems.add(section.line, section.path, "needs bearer, with file or env")
        return None
    if isinstance(section.node("bearer"), Scalar):
        section.complain("bearer", NOT_IN_THE_FILE)
        return None
    return read_secret_source(section.section("bearer"))


def _read_server_tls(section: Section) -> ServerTls:
    if ("certificate" in section) != ("key" in section):
        section.problems.add(section.line, section.path, "needs both certificate and key")
    return ServerTls(section.text("certificate"), section.text("key"))


def _read_drain(section: Section) -> Drain:
    default = Drain()
    return Drain(
        delay_s=section.duration("delay", default.delay_s, zero=True),
        timeout_s=section.duration("timeout", default.timeout_s),
    )


def _read_connections(section: Section) -> Connections:
    default = Connections()
    return Connections(
        section.count("most", default.most, 0, MOST_CONNECTIONS),
        section.duration("header_timeout", default.header_timeout_s),
        section.duration("body_timeout", default.body_timeout_s),
    )


def _check_addresses(settings: Settings, complain: Callable[[str], None]) -> None:
    # Port 0 takes a free port each time, so two of them do not clash.
    if settings.listen == settings.admin and (settings.listen.port or settings.listen.path):
        complain("is the same address as listen")


def _address(problems: Problems, option: str, text: str | None, default: Address) -> Address:
    if text is None:
        return default
    return _option(problems, option, text, parse_address) or default


def _workers(problems: Problems, text: str | None, default: int) -> int:
    if text is None:
        return default
    number = _option(problems, "--workers", text, parse_workers)
    return default if number is None else number


def _option(problems: Problems, option: str, text: str, parse_text: Callable[[str], T]) -> T | None:
    try:
        return parse_text(text)
    except ValueError as error:
        problems.add(0, option, str(error))
        return None
