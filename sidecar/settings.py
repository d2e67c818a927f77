"""What the sidecar can be told: frozen, typed, every default in one place.

Owns the shape of the configuration after it has been checked. Must not know YAML, files or the environment
(`configuration` reads those) nor what any part does with its share.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

KIB: Final = 1024
MIB: Final = 1024 * KIB

SlowClientPolicy = Literal["pause", "evict"]
UsagePolicy = Literal["as_asked", "request"]
CredentialsPolicy = Literal["replace", "if_missing", "client", "none"]
Propagation = Literal["trace", "trace_and_baggage", "none"]
EofRule = Literal["truncated", "complete"]
OtlpProtocol = Literal["http/protobuf", "grpc"]
Reader = Literal["langfuse", "legacy", "openinference", "openlit"]
LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen or connect: TCP ``host`` and ``port``, or a Unix socket's ``path``."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix://{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Reachable from this machine alone."""
        return bool(self.path) or self.host in {"127.0.0.1", "::1", "localhost"}


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where a secret is read: one of ``file`` (re-read when it changes) and ``env``. Never the secret itself."""

    file: str = ""
    env: str = ""

    def __str__(self) -> str:
        return f"file {self.file}" if self.file else f"environment variable {self.env}"


@dataclass(frozen=True, slots=True)
class AwsKeySource:
    """Where a pair of AWS keys is read: ``profile`` of a shared-credentials ``file`` (re-read when it changes), or the
    environment variables that the other three name. Never the keys themselves."""

    file: str = ""
    profile: str = "default"
    access_key_id: str = ""
    secret_access_key: str = ""
    session_token: str = ""

    def __str__(self) -> str:
        if self.file:
            return f"profile {self.profile} of file {self.file}"
        return f"environment variables {self.access_key_id} and {self.secret_access_key}"


@dataclass(frozen=True, slots=True)
class AwsSigning:
    """Every request is signed with AWS Signature Version 4, for ``service`` in ``region``."""

    region: str
    keys: AwsKeySource
    service: str = "bedrock"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What an upstream is shown.

    ``policy``: "replace" (ours, whatever the client sent), "if_missing" (ours unless the client sent one of its own),
    "client" (pass the client's own), "none" (strip the client's). ``header`` and ``prefix`` say how ours is sent;
    ``aws`` stands instead of a ``secret`` that is sent as it is.
    """

    policy: CredentialsPolicy = "none"
    header: str = "Authorization"
    prefix: str = "Bearer "
    secret: SecretSource | None = None
    aws: AwsSigning | None = None

    @property
    def are_ours(self) -> bool:
        """The sidecar has a secret for this upstream."""
        return self.secret is not None or self.aws is not None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds; see the Deadlines section of docs/design.md."""

    connect_s: float = 5.0
    first_token_s: float = 120.0
    idle_s: float = 60.0
    total_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class UpstreamTls:
    """How an https upstream is verified: the system's CAs, or ``ca_file``. ``verify=False`` is warned of."""

    ca_file: str = ""
    verify: bool = True
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One LLM API.

    ``scheme`` is "http" or "https"; ``address`` where to connect; ``authority`` the Host header; ``base_path`` the
    URL's own path prefix, without a trailing slash. ``set_headers``/``remove_headers`` edit every request. ``proxy``
    follows HTTPS_PROXY/HTTP_PROXY/NO_PROXY when None; "" is no proxy. ``forwarded`` adds X-Forwarded-For, -Proto and
    -Host. ``propagate`` says what it learns of the trace a request belongs to.
    """

    name: str
    scheme: Literal["http", "https"]
    address: Address
    authority: str
    base_path: str = ""
    dialect: str = "auto"
    credentials: Credentials = Credentials()
    model_map: tuple[tuple[str, str], ...] = ()
    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()
    timeouts: Timeouts = Timeouts()
    tls: UpstreamTls = UpstreamTls()
    proxy: str | None = None
    forwarded: bool = False
    eof: EofRule = "truncated"
    propagate: Propagation = "trace"

    @property
    def url(self) -> str:
        """The configured URL, as people write it."""
        return str(self.address) if self.address.path else f"{self.scheme}://{self.authority}{self.base_path}"


@dataclass(frozen=True, slots=True)
class Match:
    """What a request must look like; every field given must fit. "" or () matches anything.

    ``path``: exact, ``*`` for one segment, ``**`` for any. ``model``: glob. ``host`` and ``headers``: exact or glob.
    """

    path: str = "/**"
    model: str = ""
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one route, in bytes and seconds; see the Buffers section of docs/design.md."""

    buffer_bytes: int = 256 * KIB
    on_slow_client: SlowClientPolicy = "pause"
    stall_timeout_s: float = 30.0
    max_body_bytes: int = 16 * MIB
    max_frame_bytes: int = 16 * MIB


@dataclass(frozen=True, slots=True)
class Route:
    """Request → upstreams, format, limits. ``rewrite`` replaces the path whole; ``strip_prefix`` is taken off first.

    ``heartbeat_s`` is for typed streams, 0 for none; ``native_heartbeat`` lets it into native SSE streams too (real
    SDKs break on it). ``usage`` "request" asks the upstream for counts that its dialect reports only where asked.
    """

    name: str
    upstreams: tuple[str, ...]
    match: Match = Match()
    format: str = "native"
    limits: Limits = Limits()
    strip_prefix: str = ""
    rewrite: str = ""
    heartbeat_s: float = 15.0
    native_heartbeat: bool = False
    usage: UsagePolicy = "as_asked"


@dataclass(frozen=True, slots=True)
class Cors:
    """Browser origins that may call the traffic port; none by default. "*" is any."""

    origins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerTls:
    """Certificate and key files for the traffic port; "" is plain HTTP."""

    certificate: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What is told of requests, and to whom. None and "" leave a question to the ``OTEL_*`` variables of the
    environment, and where those are silent too, to OpenTelemetry's defaults.

    ``otlp``: the collector's base URL. ``sample``: the share of traces begun here that is kept. ``models``:
    names that metrics always show, besides ``model_limit`` others. ``slo_ttft_s``: objectives, each an
    edge of the TTFT buckets; spans that miss the strictest are marked. ``compat``: readers whose own names are added.
    """

    otlp: str = ""
    protocol: OtlpProtocol | None = None
    traces: bool | None = None
    metrics: bool | None = None
    sample: float | None = None
    service_name: str = ""
    models: tuple[str, ...] = ()
    model_limit: int = 100
    slo_ttft_s: tuple[float, ...] = (0.3, 0.7, 1.0)
    compat: tuple[Reader, ...] = ()
    capture_content: bool | None = None


@dataclass(frozen=True, slots=True)
class Logs:
    """Lines on standard error; ``streams`` adds one for every request that is over."""

    format: LogFormat = "console"
    level: LogLevel = "info"
    streams: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration."""

    upstreams: dict[str, Upstream]
    routes: tuple[Route, ...]
    listen: Address = Address("127.0.0.1", 8080)
    admin: Address = Address("127.0.0.1", 9090)
    auth: SecretSource | None = None
    admin_auth: SecretSource | None = None
    cors: Cors = Cors()
    tls: ServerTls = ServerTls()
    max_buffered_bytes: int = 256 * MIB
    max_header_bytes: int = 64 * KIB
    telemetry: Telemetry = Telemetry()
    logs: Logs = Logs()
    warnings: tuple[str, ...] = field(default=())
