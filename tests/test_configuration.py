"""The configuration file: what it gives, and what is said of what is wrong with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.configuration import Loaded, apply_overrides, describe, for_upstream_url, load, load_file
from sidecar.configuration.keys import KEYS
from sidecar.dialects import DIALECTS
from sidecar.formats import FORMATS
from sidecar.settings import (
    Address,
    AwsKeySource,
    AwsSigning,
    Circuit,
    Connections,
    Cors,
    Credentials,
    HealthCheck,
    Limits,
    Logs,
    Match,
    Retry,
    Route,
    SecretSource,
    ServerTls,
    Settings,
    Telemetry,
    Timeouts,
    Upstream,
    UpstreamTls,
)

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "config").glob("*.yaml"))


def read(text: str) -> Settings:
    loaded = load(text, source="c.yaml", environ={})
    assert loaded.settings is not None, loaded.render_problems()
    return loaded.settings


def refused(text: str | bytes) -> dict[str, str]:
    """Path → message of every problem."""
    loaded = load(text, source="c.yaml", environ={})
    assert loaded.settings is None
    messages: dict[str, str] = {}
    for problem in loaded.problems:
        messages[problem.path] = f"{messages.get(problem.path, '')}{problem.message}; "
    return messages


def with_upstream(text: str, *, url: str = "http://127.0.0.1:8000") -> str:
    return f"upstreams:\n  up:\n    url: {url}\n    {text}\n"


def with_route(text: str) -> str:
    return with_upstream(f"dialect: auto\nroutes:\n  - name: r\n    upstreams: [up]\n    {text}")


def test_one_upstream_alone_has_every_default() -> None:
    settings = read("upstreams: {local: {url: 'http://127.0.0.1:8000'}}")
    local = Upstream(
        "local", "http", Address("127.0.0.1", 8000), "127.0.0.1:8000", credentials=Credentials(policy="client")
    )
    assert settings == Settings({"local": local}, (Route("default", ("local",)),))


def test_the_reference_file_gives_every_setting() -> None:
    settings = read((ROOT / "config" / "sidecar.yaml").read_text())
    vllm, openai = settings.upstreams["vllm"], settings.upstreams["openai"]
    assert settings.auth == SecretSource(file="/var/run/secrets/llm-sidecar/bearer")
    assert settings.admin_auth == SecretSource(env="SIDECAR_ADMIN_BEARER")
    assert settings.cors == Cors(("https://app.example.com",))
    assert settings.tls == ServerTls("/etc/llm-sidecar/tls.crt", "/etc/llm-sidecar/tls.key")
    assert vllm.credentials == Credentials("replace", secret=SecretSource(file="/var/run/secrets/llm/vllm-key"))
    assert vllm.model_map == (("gpt-4o", "qwen3-32b"), ("gpt-*", "qwen3-8b"))
    assert (vllm.set_headers, vllm.remove_headers) == ((("X-Team", "search"),), ("User-Agent",))
    assert (vllm.timeouts, vllm.proxy, vllm.forwarded, vllm.eof) == (Timeouts(), None, False, "truncated")
    assert openai.tls == UpstreamTls("/etc/ssl/certs/ca-certificates.crt", server_name="api.openai.com")
    assert (openai.address, openai.authority, openai.proxy) == (Address("api.openai.com", 443), "api.openai.com", "")
    keys = AwsKeySource("", "default", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    signing = AwsSigning("eu-central-1", keys)
    assert settings.upstreams["bedrock"].credentials == Credentials("replace", aws=signing)
    chat, local, _, legacy = settings.routes
    headers = (("X-Env", "live"),)
    match = Match("/v1/chat/completions", "gpt-*", "*.internal.example.com", headers)
    limits = Limits(streams=1000, caller_streams=20, queue=200)
    assert chat == Route("chat", ("vllm", "openai"), match, limits=limits, priority="high", preempt=True)
    assert (local.strip_prefix, legacy.rewrite) == ("/local", "/v1/chat/completions")
    assert settings.telemetry == Telemetry(
        "http://127.0.0.1:4318",
        "http/protobuf",
        traces=True,
        metrics=True,
        sample=1.0,
        service_name="llm-sidecar",
        models=("gpt-4o", "qwen3-32b"),
        compat=("langfuse", "openlit", "openinference", "legacy"),
        capture_content=False,
    )
    assert settings.logs == Logs()
    assert settings.connections == Connections(most=5000)


def test_values_that_differ_from_the_defaults_are_read() -> None:
    limits = "limits: {buffer: 1MiB, on_slow_client: evict, stall_timeout: 500ms, max_body: 1KiB, max_frame: 2KiB}"
    rest = "heartbeat: 0s\n    native_heartbeat: true\n    format: typed"
    settings = read(f"listen: unix:///run/s.sock\nmax_buffered: 1GiB\nmax_header: 8KiB\n{with_route(limits)}    {rest}")
    route = settings.routes[0]
    assert route.limits == Limits(1024**2, "evict", 0.5, 1024, 2048)
    assert (route.heartbeat_s, route.native_heartbeat, route.format) == (0.0, True, "typed")
    assert settings.listen == Address(path="/run/s.sock")
    assert (settings.max_buffered_bytes, settings.max_header_bytes) == (1024**3, 8192)
    connections = read(
        f"connections: {{most: 7, header_timeout: 2s, body_timeout: 3s}}\n{with_route(rest)}"
    ).connections
    assert connections == Connections(7, 2.0, 3.0)
    upstream = read(with_upstream("eof: complete")).upstreams["up"]
    assert upstream.eof == "complete"


def test_how_the_health_of_an_upstream_is_told() -> None:
    settings = read(with_upstream("eof: complete"))
    assert (settings.mode, settings.upstreams["up"].health) == ("egress", None)
    upstream = read(with_upstream("health: {}")).upstreams["up"]
    assert (upstream.health, upstream.circuit) == (HealthCheck(), Circuit())
    check = "health: {path: '/v1/models?x=1', interval: 1s, timeout: 500ms, healthy_after: 2, unhealthy_after: 9}"
    upstream = read(with_upstream(f"{check}\n    circuit: {{failures: 0, backoff: 2s, max_backoff: 2s}}")).upstreams[
        "up"
    ]
    assert upstream.health == HealthCheck("/v1/models?x=1", 1.0, 0.5, 2, 9)
    assert upstream.circuit == Circuit(0, 2.0, 2.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("health: {path: health}", "must begin with /"),
        ("health: {path: '/a b'}", "must begin with /"),
        ("health: {unhealthy_after: 0}", "from 1 to 9999"),
        ("circuit: {failures: many}", "from 0 to 9999"),
        ("circuit: {backoff: 2m}", "is shorter than backoff"),
        ("health: yes", "must be keys and values"),
    ],
)
def test_health_that_cannot_be_meant(text: str, words: str) -> None:
    loaded = load(with_upstream(text), source="c.yaml", environ={})
    assert loaded.settings is None
    assert words in loaded.render_problems()


def test_in_ingress_mode_every_upstream_is_checked() -> None:
    text = with_upstream("health: {path: /up, interval: 1s, timeout: 3s}")
    settings = read(f"mode: ingress\n{text}")
    assert settings.mode == "ingress"
    up = settings.upstreams["up"]
    assert settings.check_of(up) == up.health
    assert settings.check_of(replace(up, health=None)) == HealthCheck()
    assert replace(settings, mode="egress").check_of(replace(up, health=None)) is None
    assert any(warning.startswith("upstreams.up.health.timeout: 3s is longer") for warning in settings.warnings)
    assert "checked at /up every 1s, left alone for 1s after 5 failures in a row" in describe(settings)


def test_what_is_passed_on_of_a_trace() -> None:
    assert read(with_upstream("forwarded: false")).upstreams["up"].propagate == "trace"
    for value in ("trace", "trace_and_baggage", "none"):
        assert read(with_upstream(f"propagate: {value}")).upstreams["up"].propagate == value


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_loads_and_is_described(path: Path) -> None:
    loaded = load_file(str(path), environ={})
    assert loaded.settings is not None, loaded.render_problems()
    described = describe(loaded.settings)
    assert all(route.name in described for route in loaded.settings.routes)
    assert all(f"warning: {warning}" in described for warning in loaded.settings.warnings)


def test_the_reference_file_and_the_page_name_every_key() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    reference = (ROOT / "config" / "sidecar.yaml").read_text()
    words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    commented = set(re.findall(r"([a-z_]+):", reference))
    keys = {key for section in KEYS.values() for key in section}
    assert keys - words == set()
    assert keys - commented == set()
    leaves = {
        f"{kind.split('.')[-1]}.{key}" for kind, section in KEYS.items() if kind.count(".") == 2 for key in section
    }
    qualified = {leaf for leaf in leaves if not leaf.startswith("credentials.")}
    assert {leaf for leaf in qualified if f"`{leaf}`" not in page} == set()
    assert {name for name in (*DIALECTS, *FORMATS) if f"`{name}`" not in page} == set()


def test_all_problems_are_told_at_once_in_order_of_line() -> None:
    text = """\
listen: 8080
upstreams:
  vllm:
    urll: http://127.0.0.1:8000
    timeouts: {connect: 5, idle: 60sec}
routes:
  - name: chat
    upstreams: [vllm, openai]
    limits: {on_slow_client: spill}
"""
    loaded = load(text, source="c.yaml", environ={})
    assert loaded.render_problems().splitlines() == [
        "c.yaml:1: listen: must be HOST:PORT, such as 127.0.0.1:8080, or unix:///path",
        "c.yaml:3: upstreams.vllm.url: is missing",
        "c.yaml:4: upstreams.vllm.urll: unknown key; did you mean url?",
        "c.yaml:5: upstreams.vllm.timeouts.connect: needs a unit: one of ms, s, m, h, as in 30s",
        "c.yaml:5: upstreams.vllm.timeouts.idle: has an unknown unit: write one of ms, s, m, h, as in 30s",
        "c.yaml:8: routes[0].upstreams: names an upstream that does not exist; there is vllm",
        "c.yaml:9: routes[0].limits.on_slow_client: must be one of pause, evict",
    ]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("", "", "is empty"),
        ("# nothing\n", "", "is empty"),
        ("null", "", "must be keys and values"),
        ("- a", "", "must be keys and values"),
        ("{}", "upstreams", "at least one"),
        ("upstreams: {}", "upstreams", "at least one"),
        ("upstreams:", "upstreams", "must be keys and values"),
        ("a: [", "", "is not YAML"),
        ("upstreams:\n\tup: 1", "", "tab"),
        ("a: 1\n---\nb: 2", "", "several documents"),
        (b"a: \xff", "", "UTF-8"),
        ("a: \x00", "", "character"),
        ('a: "\\UFFFFFFFF"', "", "escape"),
        ("a: !!python/object:os.system x", "a", "tags"),
        ("? [a]\n: b", "", "not plain text"),
        ("a: &x {}\nb: {<<: *x}", "b", "merge keys"),
        ("a: *nowhere", "", "is not YAML"),
        ("[" * 5000, "", "nested deeper"),
        ("{a: " * 40 + "b" + "}" * 40, "", "nested deeper"),
        ("a: &a [*a]", "", "nested deeper"),
        ("a: " + "x" * 1024 * 1024, "", "larger than 1 MiB"),
        (
            "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
            + "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)),
            "",
            "aliases counted",
        ),
    ],
)
def test_what_is_no_configuration_is_explained(text: str | bytes, path: str, message: str) -> None:
    assert message in refused(text)[path]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("timeouts: 5s", "upstreams.up.timeouts", "keys and values: connect"),
        ("timeouts: {idle: 0s}", "upstreams.up.timeouts.idle", "above zero"),
        ("timeouts: {idle: }", "upstreams.up.timeouts.idle", "no value"),
        ("timeouts: {idle: [1s]}", "upstreams.up.timeouts.idle", "single value"),
        ("timeouts: {idle: 5s, idle: 6s}", "upstreams.up.timeouts.idle", "given twice"),
        ("dialect: openai", "upstreams.up.dialect", "one of auto, openai-chat"),
        ("forwarded: 1", "upstreams.up.forwarded", "true or false"),
        ("eof: maybe", "upstreams.up.eof", "truncated, complete"),
        ("propagate: baggage", "upstreams.up.propagate", "trace, trace_and_baggage, none"),
        ("propagate: true", "upstreams.up.propagate", "trace, trace_and_baggage, none"),
        ("proxy: socks5://127.0.0.1:1", "upstreams.up.proxy", "http://HOST:PORT"),
        ("tls: {verify: false}", "upstreams.up.tls", "not https"),
        ("model_map: [a]", "upstreams.up.model_map", "keys and values"),
        ("model_map: {a: ''}", "upstreams.up.model_map.a", "must map"),
        ("headers: {set: {Host: x}}", "upstreams.up.headers.set.Host", "itself sets"),
        ("headers: {set: {'a b': x}}", "upstreams.up.headers.set.?", "not a header name"),
        ('headers: {set: {X-A: "a\\nb"}}', "upstreams.up.headers.set.X-A", "not a header value"),
        ("headers: {remove: [Connection]}", "upstreams.up.headers.remove[0]", "itself sets"),
        ("headers: {remove: X-A}", "upstreams.up.headers.remove", "must be a list"),
        ("credentials: always", "upstreams.up.credentials", "client, none or a section"),
        ("credentials: {}", "upstreams.up.credentials", "exactly one of file and env"),
        ("credentials: {file: /a, env: A}", "upstreams.up.credentials", "exactly one of file and env"),
        ("credentials: {file: relative}", "upstreams.up.credentials.file", "absolute path"),
        ("credentials: {env: A, header: Host}", "upstreams.up.credentials.header", "cannot carry"),
        ("credentials: {env: A, when: never}", "upstreams.up.credentials.when", "always, if_missing"),
        ("credentials: {aws: x}", "upstreams.up.credentials.aws", "must be keys and values"),
        ("credentials: {aws: {region: eu-central-1}}", "upstreams.up.credentials.aws", "exactly one of file and env"),
        ("credentials: {aws: {file: /k}}", "upstreams.up.credentials.aws.region", "the host of the url names none"),
        ("credentials: {aws: {file: /k, region: Frankfurt}}", "upstreams.up.credentials.aws.region", "an AWS region"),
        ("credentials: {aws: {file: k}}", "upstreams.up.credentials.aws.file", "absolute path"),
        ("credentials: {aws: {file: /k, profile: '[x]'}}", "upstreams.up.credentials.aws.profile", "name of a profile"),
        ("credentials: {aws: {file: /k, service: 'a b'}}", "upstreams.up.credentials.aws.service", "such as bedrock"),
        ("credentials: {aws: {file: /k}, when: always}", "upstreams.up.credentials.when", "means nothing beside aws"),
        ("credentials: {aws: {file: /k}, env: A}", "upstreams.up.credentials.env", "means nothing beside aws"),
        ("credentials: {aws: {env: {}, profile: x}}", "upstreams.up.credentials.aws.profile", "nothing without file"),
        (
            "credentials: {aws: {env: {access_key_id: A}}}",
            "upstreams.up.credentials.aws.env.secret_access_key",
            "is missing",
        ),
        (
            "credentials: {aws: {env: {access_key_id: AKIAIOSFODNN7EXAMPLE, secret_access_key: B}}}",
            "upstreams.up.credentials.aws.env.access_key_id",
            "looks like a key id",
        ),
    ],
)
def test_upstream_problems(text: str, path: str, message: str) -> None:
    assert message in refused(with_upstream(text))[path]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("nam: x", "routes[0].nam", "did you mean name?"),
        ("match: {path: v1}", "routes[0].match.path", "begins with /"),
        ("match: {path: /v1/**x}", "routes[0].match.path", "segment of its own"),
        ("match: {path: /v1/%20}", "routes[0].match.path", "begins with /"),
        ("match: {model: 4}", "routes[0].match.model", "YAML takes this for a number"),
        ("match: {headers: {'': x}}", "routes[0].match.headers.?", "not a header name"),
        ("format: sse", "routes[0].format", "one of native, typed"),
        ("rewrite: v1", "routes[0].rewrite", "begins with /"),
        ("rewrite: /a?b=c", "routes[0].rewrite", "without a query"),
        ("strip_prefix: /a/../b", "routes[0].strip_prefix", "dot segments"),
        ("rewrite: /a\n    strip_prefix: /b", "routes[0].rewrite", "means nothing"),
        ("limits: {buffer: 256}", "routes[0].limits.buffer", "needs a unit"),
        ("limits: {buffer: 0B}", "routes[0].limits.buffer", "above zero"),
        ("heartbeat: never", "routes[0].heartbeat", "not a duration"),
        ("\n  - name: r\n    upstreams: [up]", "routes[1].name", "earlier route"),
        ("\n  - name: s", "routes[1].upstreams", "at least one"),
        ("\n  - name: s\n    upstreams: [up, up]", "routes[1].upstreams", "twice"),
        ("\n  - upstreams: [up]", "routes[1].name", "is missing"),
        ("\n  - name: a b\n    upstreams: [up]", "routes[1].name", "not a name"),
    ],
)
def test_route_problems(text: str, path: str, message: str) -> None:
    assert message in refused(with_route(text))[path]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("admin: 127.0.0.1:8080", "admin", "same address"),
        ("listen: :8080", "listen", "HOST:PORT"),
        ("listen: 127.0.0.1:70000", "listen", "port from 0 to 65535"),
        (f"listen: h:{'9' * 5000}", "listen", "port from 0 to 65535"),
        ("listen: '::1:8080'", "listen", "without brackets"),
        ("listen: '[::g]:80'", "listen", "IPv6"),
        ("listen: unix://run", "listen", "absolute path"),
        (f"listen: unix:///{'x' * 200}", "listen", "107 bytes"),
        ("auth: {}", "auth", "needs bearer"),
        ("auth: {bearer: {}}", "auth.bearer", "exactly one"),
        ("tls: {key: /k}", "tls", "both"),
        ("connections: {most: -1}", "connections.most", "whole number"),
        ("connections: {most: 12345678}", "connections.most", "whole number"),
        ("connections: {header_timeout: 0s}", "connections.header_timeout", "above zero"),
        ("connections: {body_timeout: 10}", "connections.body_timeout", "needs a unit"),
        ("cors: {origins: ['https://a/b']}", "cors.origins[0]", "without a path"),
        ("routes: []", "routes", "at least one route"),
        ("max_header: 64", "max_header", "needs a unit"),
    ],
)
def test_process_problems(text: str, path: str, message: str) -> None:
    assert message in refused(with_upstream("dialect: auto") + text)[path]


def test_several_upstreams_need_routes_of_one_dialect() -> None:
    upstreams = "upstreams: {a: {url: 'http://a', dialect: anthropic}, b: {url: 'http://b', dialect: raw}, c: {url: 'http://c'}}\n"
    assert "is missing" in refused(upstreams)["routes"]
    assert (
        "different dialects" in refused(upstreams + "routes: [{name: r, upstreams: [a, c, b]}]")["routes[0].upstreams"]
    )
    assert read(upstreams + "routes: [{name: r, upstreams: [a, c]}]").routes[0].upstreams == ("a", "c")


def test_a_name_that_is_none_is_refused() -> None:
    assert "not a name" in refused("upstreams: {'a b': {url: 'http://a'}}")["upstreams.?"]


@pytest.mark.parametrize(
    ("url", "address", "authority", "base_path"),
    [
        ("http://Host.Example", Address("host.example", 80), "host.example", ""),
        ("https://h:8443/api/v2/", Address("h", 8443), "h:8443", "/api/v2"),
        ("https://h:443/", Address("h", 443), "h", ""),
        ("http://[::1]:80/x%20y", Address("::1", 80), "[::1]", "/x%20y"),
        ("http://[2001:DB8::1]:8000", Address("2001:db8::1", 8000), "[2001:db8::1]:8000", ""),
        ("unix:///run/vllm.sock", Address(path="/run/vllm.sock"), "localhost", ""),
    ],
)
def test_upstream_urls(url: str, address: Address, authority: str, base_path: str) -> None:
    upstream = read(with_upstream("dialect: auto", url=f"'{url}'")).upstreams["up"]
    assert (upstream.address, upstream.authority, upstream.base_path) == (address, authority, base_path)


@pytest.mark.parametrize(
    "url",
    [
        "host:80",
        "ftp://h",
        "http://",
        "http://h:0",
        "http://h:99999",
        "http://h:x",
        "http://h/a/../b",
        "http://h/%2e%2e/b",
        "http://h//b",
        "http://h#f",
        "http://h?a=1",
        "http://h/a b",
        "http://höst",
        "http://h\\\\evil",
        "unix://relative",
        "http://[::1",
    ],
)
def test_urls_that_name_no_upstream_are_refused(url: str) -> None:
    assert list(refused(with_upstream("dialect: auto", url=f'"{url}"'))) == ["upstreams.up.url"]


SECRET = "sk-N0T4Real5ecret"


@pytest.mark.parametrize(
    "text",
    [
        with_upstream(f"credentials: {{value: {SECRET}}}"),
        with_upstream(f"credentials: {{api_key: {SECRET}, file: /k}}"),
        with_upstream(f"credentials: {SECRET}"),
        with_upstream(f"credentials: {{{SECRET}: }}"),
        with_upstream(f"credentials: {{file: {SECRET}}}"),
        with_upstream(f"credentials: {{env: {SECRET}}}"),
        with_upstream(f"credentials: {{env: A, prefix: Bearer {SECRET}}}"),
        with_upstream(f"credentials: {{env: A, when: {SECRET}}}"),
        with_upstream(f"credentials: [{SECRET}]"),
        with_upstream(f"credentials: {{aws: {SECRET}}}"),
        with_upstream(f"credentials: {{aws: {{secret_access_key: {SECRET}}}}}"),
        with_upstream(f"credentials: {{aws: {{file: {SECRET}, region: {SECRET}, service: {SECRET}}}}}"),
        with_upstream(f"credentials: {{aws: {{file: /k, profile: '[{SECRET}'}}}}"),
        with_upstream(f"credentials: {{aws: {{env: {SECRET}}}}}"),
        with_upstream(f"credentials: {{aws: {{env: {{access_key_id: A, secret_access_key: {SECRET}}}}}}}"),
        *(
            with_upstream(f"headers: {{set: {{{name}: {SECRET}}}}}")
            for name in ("Authorization", "X-API-KEY", "api-key", "x-goog-api-key", "Cookie", "X-My-Token", "X-Plain")
        ),
        with_upstream(f"headers: {{set: {{X-Plain: Bearer {SECRET}}}}}"),
        with_upstream("dialect: auto", url=f"https://user:{SECRET}@h"),
        with_upstream("dialect: auto", url=f"https://{SECRET}@h"),
        with_upstream("dialect: auto", url=f"https://h/?key={SECRET}"),
        with_upstream(f"proxy: http://user:{SECRET}@h:1"),
        with_upstream(f"dialect: {SECRET}"),
        with_upstream(f"timeouts: {{idle: {SECRET}}}"),
        with_upstream(f"{SECRET}: 1"),
        with_upstream("dialect: auto") + f"auth: {{bearer: {SECRET}}}",
        with_upstream("dialect: auto") + f"auth: {SECRET}",
        with_upstream("dialect: auto") + f"admin_auth: {{bearer: {{token: {SECRET}}}}}",
        with_upstream("dialect: auto") + f"cors: {{origins: [{SECRET}]}}",
        with_upstream("dialect: auto") + f"listen: {SECRET}",
        with_route(f"upstreams: [{SECRET}]").replace("    upstreams: [up]\n", ""),
        f"a: *{SECRET}",
        f"a: '{SECRET}",
        f"a: !{SECRET} x",
        f"a: b: {SECRET}",
        f"%{SECRET}\n---\na: b",
    ],
)
def test_a_literal_secret_is_refused_and_never_repeated(text: str) -> None:
    loaded = load(text, source="c.yaml", environ={})
    assert loaded.settings is None
    assert loaded.problems
    shown = f"{loaded.render_problems()} {loaded!r}"
    assert "N0T4Real" not in shown


def test_credentials_are_told_as_they_are_meant() -> None:
    texts = {
        "client": Credentials(policy="client"),
        "none": Credentials(policy="none"),
        "{env: A}": Credentials("replace", secret=SecretSource(env="A")),
        "{file: /k, when: if_missing}": Credentials("if_missing", secret=SecretSource(file="/k")),
        "{env: A, header: x-api-key}": Credentials("replace", "x-api-key", "", SecretSource(env="A")),
        "{env: A, prefix: ''}": Credentials("replace", "Authorization", "", SecretSource(env="A")),
        "{env: A, header: X-A, prefix: 'Key '}": Credentials("replace", "X-A", "Key ", SecretSource(env="A")),
    }
    read_back = {text: read(with_upstream(f"credentials: {text}")).upstreams["up"].credentials for text in texts}
    assert read_back == texts


@pytest.mark.parametrize(
    ("host", "region", "service"),
    [
        ("bedrock-runtime.eu-central-1.amazonaws.com", "eu-central-1", "bedrock"),
        ("bedrock-runtime-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", "bedrock"),
        ("vpce-0a1b-2c.bedrock-runtime.ap-southeast-2.vpce.amazonaws.com", "ap-southeast-2", "bedrock"),
        ("bedrock-runtime.cn-north-1.amazonaws.com.cn", "cn-north-1", "bedrock"),
        ("bedrock-mantle.us-east-1.api.aws", "us-east-1", "bedrock-mantle"),
        ("aws-external-anthropic.us-east-1.api.aws", "us-east-1", "aws-external-anthropic"),
        ("bedrock-runtime.amazonaws.com", "", ""),
        ("eu-central-1.example.com", "", ""),
        ("bedrock-runtime.eu-central-1.amazonaws.com.example.com", "", ""),
    ],
)
def test_region_and_service_are_the_hosts_unless_they_are_said(host: str, region: str, service: str) -> None:
    text = with_upstream("credentials: {aws: {file: /k, profile: p}}", url=f"https://{host}")
    if region:
        aws = read(text).upstreams["up"].credentials.aws
        assert aws == AwsSigning(region, AwsKeySource("/k", "p"), service)
    else:
        assert list(refused(text)) == ["upstreams.up.credentials.aws.region"]
    said = with_upstream("credentials: {aws: {file: /k, region: xx-test-1, service: s}}", url=f"https://{host}")
    assert read(said).upstreams["up"].credentials.aws == AwsSigning("xx-test-1", AwsKeySource("/k"), "s")


def test_a_host_that_is_not_awss_is_signed_for_as_bedrock() -> None:
    text = with_upstream("credentials: {aws: {file: /k, region: xx-test-1}}", url="https://bedrock-mantle.example.com")
    assert read(text).upstreams["up"].credentials.aws == AwsSigning("xx-test-1", AwsKeySource("/k"), "bedrock")


def test_a_problem_of_aws_has_its_path_and_line() -> None:
    text = "upstreams:\n  up:\n    url: http://h\n    credentials:\n      aws:\n        file: /k\n        regoin: x\n"
    shown = load(text, source="c.yaml", environ={}).render_problems()
    assert "c.yaml:7: upstreams.up.credentials.aws.regoin: unknown key; did you mean region?" in shown
    assert "c.yaml:5: upstreams.up.credentials.aws.region: is missing" in shown


def test_signing_is_described_by_where_its_keys_are() -> None:
    text = with_upstream("credentials: {aws: {file: /k, region: eu-central-1}}")
    assert "signed for AWS bedrock in eu-central-1 with profile default of file /k" in describe(read(text))


def test_unset_credentials_pass_the_clients_own_only_to_an_upstream_that_stands_alone() -> None:
    text = """
upstreams:
  alone: {url: 'http://a'}
  shared: {url: 'http://b'}
  said: {url: 'http://c', credentials: client}
  idle: {url: 'http://d'}
routes:
  - {name: one, match: {path: /one}, upstreams: [alone]}
  - {name: two, match: {path: /two}, upstreams: [alone]}
  - {name: three, match: {path: /three}, upstreams: [shared, said]}
  - {name: four, match: {path: /four}, upstreams: [shared]}
"""
    policies = {name: upstream.credentials.policy for name, upstream in read(text).upstreams.items()}
    assert policies == {"alone": "client", "shared": "none", "said": "client", "idle": "none"}


def test_how_another_try_is_made_is_read_and_described() -> None:
    keys = "{attempts: 4, statuses: [429, 503], budget: 0.5, max_wait: 5s, hedge_after: 500ms}"
    text = (
        "upstreams: {a: {url: 'http://a'}, b: {url: 'http://b'}}\n"
        f"routes: [{{name: r, upstreams: {{a: 3, b: 0}}, commit: request, format: typed, retry: {keys}}}]"
    )
    settings = read(text)
    (route,) = settings.routes
    assert (route.upstreams, route.weights, route.commit) == (("a", "b"), (3, 0), "request")
    assert route.retry == Retry(4, (429, 503), 0.5, 5.0, 0.5)
    assert settings.warnings == ()
    for words in (
        "a (3), b (0)",
        "commit at request",
        "4 attempts",
        "after 429, 503",
        "budget 0.5",
        "hedge after 500ms",
    ):
        assert words in describe(settings)
    assert read(with_route("retry: {statuses: []}")).routes[0].retry == Retry(statuses=())


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("retry: {attempts: 21}", "retry.attempts", "from 0 to 20"),
        ("retry: {statuses: [503, 400]}", "retry.statuses[1]", "wrong"),
        ("retry: {statuses: [200]}", "retry.statuses[0]", "from 400 to 599"),
        ("retry: {budget: 20%}", "retry.budget", "share"),
        ("retry: {hedge_after: 3}", "retry.hedge_after", "unit"),
        ("commit: body", "commit", "must be one of headers, first_content, request"),
    ],
)
def test_what_is_wrong_with_another_try(text: str, path: str, message: str) -> None:
    assert message in refused(with_route(text))[f"routes[0].{path}"]


@pytest.mark.parametrize(
    ("weights", "message"), [("{up: 0}", "above zero"), ("{up: -1}", "whole number"), ("{no: 1}", "exist")]
)
def test_weights_that_choose_nobody(weights: str, message: str) -> None:
    problems = refused(with_upstream(f"dialect: auto\nroutes: [{{name: r, upstreams: {weights}}}]"))
    assert message in "".join(problems.values())


@pytest.mark.parametrize(
    ("dialect", "text", "warning"),
    [
        ("auto", "retry: {hedge_after: 1s}", "no second upstream is ever asked"),
        ("auto", "retry: {hedge_after: 3m}", "has failed by then"),
        ("opaque-sse", "commit: first_content", "its headers commit"),
        ("ollama-chat", "commit: request", "not always server-sent events"),
        ("openai-chat", "commit: request", "no heartbeats"),
    ],
)
def test_what_never_comes_to_pass_is_warned_of(dialect: str, text: str, warning: str) -> None:
    settings = read(with_upstream(f"dialect: {dialect}\nroutes: [{{name: r, upstreams: [up], {text}}}]"))
    assert any(warning in each for each in settings.warnings)


def test_aliases_may_share_whole_values() -> None:
    settings = read(
        "upstreams:\n  a: {url: 'http://a', timeouts: &t {idle: 5s}}\n  b: {url: 'http://b', timeouts: *t}\n"
        "routes: [{name: r, upstreams: [a, b]}]"
    )
    assert [upstream.timeouts.idle_s for upstream in settings.upstreams.values()] == [5.0, 5.0]


def test_a_missing_file_is_a_problem_like_any_other(tmp_path: Path) -> None:
    loaded = load_file(str(tmp_path / "none.yaml"), environ={})
    assert loaded.render_problems() == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"


def test_an_upstreams_url_alone_is_a_configuration() -> None:
    settings = for_upstream_url("https://api.openai.com/v1", environ={}).settings
    assert settings is not None
    assert settings.upstreams["upstream"].url == "https://api.openai.com/v1"
    assert settings.upstreams["upstream"].credentials.policy == "client"
    assert settings.routes == (Route("default", ("upstream",)),)
    assert settings.warnings == ()


def test_the_command_line_goes_before_the_file_and_is_checked() -> None:
    settings = read(with_route("format: typed"))
    changed = apply_overrides(settings, environ={}, listen="[::1]:1", admin="unix:///a", format="native").settings
    assert changed is not None
    assert (changed.listen, changed.admin) == (Address("::1", 1), Address(path="/a"))
    assert [route.format for route in changed.routes] == ["native"]
    assert apply_overrides(settings, environ={}).settings == settings
    wrong: Loaded = for_upstream_url("http://h", environ={}, listen="x", admin="127.0.0.1:8080", format="sse")
    assert [problem.path for problem in wrong.problems] == ["--admin", "--format", "--listen"]
    assert for_upstream_url("ftp://h", environ={}).render_problems().startswith("command line: --upstream: must be")


def warnings(text: str, environ: dict[str, str] | None = None) -> list[str]:
    settings = load(text, source="c.yaml", environ={"KEY": "k"} if environ is None else environ).settings
    assert settings is not None
    return [warning.partition(":")[0] for warning in settings.warnings]


INJECTED = "credentials: {env: KEY}"


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        (with_upstream(INJECTED), []),
        ("listen: 0.0.0.0:8080\n" + with_upstream(INJECTED), ["listen"]),
        ("listen: 0.0.0.0:8080\n" + with_upstream("dialect: auto"), []),
        ("listen: 0.0.0.0:8080\nauth: {bearer: {env: KEY}}\n" + with_upstream(INJECTED), ["auth"]),
        ("admin: 0.0.0.0:9090\n" + with_upstream("dialect: auto"), ["admin"]),
        ("cors: {origins: ['*']}\n" + with_upstream(INJECTED), ["cors.origins"]),
        (with_upstream(INJECTED, url="http://h"), ["upstreams.up.url"]),
        (with_upstream("tls: {verify: false}", url="https://h"), ["upstreams.up.tls.verify"]),
        (with_upstream("tls: {ca_file: /no/such}", url="https://h"), ["upstreams.up.tls.ca_file"]),
        (with_upstream("credentials: {env: UNSET}"), ["upstreams.up.credentials"]),
        (with_upstream("credentials: {file: /no/such}"), ["upstreams.up.credentials"]),
        (with_upstream("credentials: {aws: {file: /no/such, region: eu-central-1}}"), ["upstreams.up.credentials.aws"]),
        (with_upstream("timeouts: {idle: 1h, total: 1m, first_token: 1m}"), ["upstreams.up.timeouts.idle"]),
        (with_route("\n  - {name: s, match: {path: /x}, upstreams: [up]}"), ["routes[1]"]),
        ("max_buffered: 1KiB\n" + with_route("format: native"), ["routes[0].limits.buffer"]),
        ("connections: {most: 9999999}\n" + with_upstream("dialect: auto"), ["connections"]),
        (
            "upstreams: {a: {url: 'http://a'}, b: {url: 'http://b'}}\nroutes: [{name: r, upstreams: [a]}]",
            ["upstreams.b"],
        ),
    ],
)
def test_warnings(text: str, paths: list[str]) -> None:
    assert warnings(text) == paths


YAML_PIECES = st.lists(
    st.sampled_from(
        [
            *(
                "upstreams:",
                "routes:",
                "up:",
                "url:",
                "http://h",
                "credentials:",
                "timeouts:",
                "match:",
                "auth:",
                "tls:",
            ),
            *(
                "\n",
                "\n  ",
                "\n    ",
                " ",
                "- ",
                "{",
                "}",
                "[",
                "]",
                ",",
                ": ",
                "&a ",
                "*a",
                "<<: ",
                "? ",
                "|",
                ">",
                "#",
            ),
            *(
                "'",
                '"',
                '"\\UFFFFFFFF"',
                "!!binary ",
                "!!set ",
                "--- ",
                "%YAML 9.9\n",
                "\t",
                "\ud800",
                "\ufeff",
                "5s",
                "~",
            ),
        ]
    ),
    max_size=30,
).map("".join)


@given(YAML_PIECES | st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_gives_settings_or_problems(text: str | bytes) -> None:
    loaded = load(text, source="c.yaml", environ={})
    assert (loaded.settings is None) == bool(loaded.problems)
    assert all(problem.line >= 1 for problem in loaded.problems)
