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
Mode = Literal["egress", "ingress"]
Commit = Literal["headers", "first_content", "request"]
Priority = Literal["low", "normal", "high"]


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
class HealthCheck:
    """How an upstream is asked whether it is up: ``path``, every ``interval_s``. Any status below 500 within
    ``timeout_s`` says yes; it takes ``unhealthy_after`` failures in a row to be down, ``healthy_after`` answers to be
    up again. A ``path`` of "" is no check."""

    path: str = "/health"
    interval_s: float = 5.0
    timeout_s: float = 2.0
    healthy_after: int = 1
    unhealthy_after: int = 3


@dataclass(frozen=True, slots=True)
class Circuit:
    """When an upstream is left alone: after ``failures`` in a row, for ``backoff_s``, doubled up to ``max_backoff_s``
    with every trial that fails. 0 failures is never."""

    failures: int = 5
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """One LLM API.

    ``scheme`` is "http" or "https"; ``address`` where to connect; ``authority`` the Host header; ``base_path`` the
    URL's own path prefix, without a trailing slash. ``set_headers``/``remove_headers`` edit every request. ``proxy``
    follows HTTPS_PROXY/HTTP_PROXY/NO_PROXY when None; "" is no proxy. ``forwarded`` adds X-Forwarded-For, -Proto and
    -Host. ``propagate`` says what it learns of the trace a request belongs to. ``max_streams`` is how many it may have
    at once, 0 for any number; without a ``health`` check only what streams meet there tells of its health.
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
    max_streams: int = 0
    health: HealthCheck | None = None
    circuit: Circuit = Circuit()

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
    """Bounds of one route, in bytes and seconds; see the Buffers section of docs/design.md.

    ``streams`` and ``caller_streams`` are how many may be active at once, in all and for one caller; 0 is no limit. Up
    to ``queue`` more wait for a place, each for ``queue_timeout_s``.
    """

    buffer_bytes: int = 256 * KIB
    on_slow_client: SlowClientPolicy = "pause"
    stall_timeout_s: float = 30.0
    max_body_bytes: int = 16 * MIB
    max_frame_bytes: int = 16 * MIB
    streams: int = 0
    caller_streams: int = 0
    queue: int = 0
    queue_timeout_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Retry:
    """When a request is tried again, as long as nothing has reached its client.

    ``attempts`` in all, 0 for one at each upstream; ``statuses`` are the answers that lead to another one besides
    failures to connect and to answer in time. ``budget`` is the share of requests that may be second tries.
    ``max_wait_s`` is the longest that is waited before the same upstream is asked again, as its Retry-After may want.
    ``hedge_after_s``: without content for so long, the next upstream is asked beside the first; 0 is never.
    """

    attempts: int = 0
    statuses: tuple[int, ...] = (429, 500, 502, 503, 504, 529)
    budget: float = 0.2
    max_wait_s: float = 2.0
    hedge_after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """Request → upstreams, format, limits. ``rewrite`` replaces the path whole; ``strip_prefix`` is taken off first.

    ``heartbeat_s`` is for typed streams, 0 for none; ``native_heartbeat`` lets it into native SSE streams too (real
    SDKs break on it). ``usage`` "request" asks the upstream for counts that its dialect reports only where asked.

    ``weights`` says how often each upstream is asked first; without it they are asked in order. ``commit`` is when the
    client's answer begins. A stream of a higher ``priority`` may take a queued place of a lower one, and with
    ``preempt`` end one that has had no token.
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
    weights: tuple[int, ...] = ()
    retry: Retry = Retry()
    commit: Commit = "headers"
    priority: Priority = "normal"
    preempt: bool = False


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
class Callers:
    """Who calls: whoever bears the same key, or names itself alike in ``header``. ``streams`` is how many one caller
    may have at once, 0 for any number."""

    header: str = ""
    streams: int = 0


@dataclass(frozen=True, slots=True)
class Drain:
    """How the process takes its leave: ``delay_s`` after it was asked to it takes no more streams, and ``timeout_s``
    after that it ends those that are left."""

    delay_s: float = 5.0
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Connections:
    """Bounds of the traffic port's connections. ``most`` 0 is what the process's descriptors allow. A request's head
    has to be there ``header_timeout_s`` after its first byte, a body that is read whole ``body_timeout_s`` after its
    head."""

    most: int = 0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration.

    ``mode``: "ingress" before model servers, whose health is ours, or "egress" beside an application, which is never
    refused. ``max_streams`` is how many may be active at once in all ``workers``; 0 is no limit. ``workers`` 0 is one
    for each core.
    """

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
    mode: Mode = "egress"
    max_streams: int = 0
    callers: Callers = Callers()
    drain: Drain = Drain()
    connections: Connections = Connections()
    workers: int = 1
    warnings: tuple[str, ...] = field(default=())

    def check_of(self, upstream: Upstream) -> HealthCheck | None:
        """How this upstream is checked: as it says, else in ingress mode by the default check; None for not at all."""
        check = upstream.health or (HealthCheck() if self.mode == "ingress" else None)
        return check if check is not None and check.path else None
