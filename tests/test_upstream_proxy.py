"""Which proxy an upstream gets. No sockets."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.settings import Address
from sidecar.upstream.proxy import choose
from tests.upstream_support import upstream_at

PROXY = "http://proxy.test:3128"


def chosen(environ: dict[str, str], *, host: str = "llm.test", port: int = 443, **settings: Any) -> str | None:
    """The proxy's address for an upstream, as text."""
    settings.setdefault("scheme", "https")
    proxy = choose(upstream_at(Address(host, port), **settings), environ)
    return None if proxy is None else str(proxy.address)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_variables_for_https(name: str) -> None:
    assert chosen({name: PROXY}) == "proxy.test:3128"
    assert chosen({name: "proxy.test:3128"}) == "proxy.test:3128"
    assert chosen({name: ""}) is None


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "all_proxy"])
def test_variables_for_http(name: str) -> None:
    assert chosen({name: PROXY}, scheme="http") == "proxy.test:3128"


def test_a_variable_is_for_its_own_scheme() -> None:
    assert chosen({"HTTP_PROXY": PROXY}) is None
    assert chosen({"HTTPS_PROXY": PROXY}, scheme="http") is None
    assert chosen({"https_proxy": "http://first.test", "HTTPS_PROXY": PROXY, "ALL_PROXY": PROXY}) == "first.test:80"


def test_settings_outrank_the_environment() -> None:
    assert chosen({"HTTPS_PROXY": PROXY}, proxy="") is None
    assert chosen({"HTTPS_PROXY": PROXY, "NO_PROXY": "*"}, proxy="http://own.test:1") == "own.test:1"
    assert chosen({}, host="127.0.0.1", proxy=PROXY) == "proxy.test:3128"


def test_unix_sockets_have_no_proxy() -> None:
    assert choose(upstream_at(Address(path="/run/llm"), proxy=PROXY), {"ALL_PROXY": PROXY}) is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback_has_none_from_the_environment(host: str) -> None:
    assert chosen({"HTTPS_PROXY": PROXY}, host=host) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_exempt"),
    [
        ("*", "llm.test", True),
        ("llm.test", "llm.test", True),
        ("LLM.test", "llm.TEST", True),
        ("test", "llm.test", True),
        (".llm.test", "api.llm.test", True),
        (".llm.test", "llm.test", True),
        ("*.llm.test", "api.llm.test", True),
        ("llm.test", "other-llm.test", False),
        ("llm.test.evil", "llm.test", False),
        ("other.test, llm.test", "llm.test", True),
        ("other.test llm.test", "llm.test", True),
        ("llm.test:443", "llm.test", True),
        ("llm.test:8443", "llm.test", False),
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("10.0.0.0/8", "llm.test", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3:443", "10.1.2.3", True),
        ("10.1.2.3:80", "10.1.2.3", False),
        ("2.3", "10.1.2.3", False),
        ("fd00::/8", "fd00::1", True),
        ("[fd00::1]", "fd00:0::1", True),
        ("[fd00::1]:443", "fd00::1", True),
        ("fd00::1", "fd00::1", True),
        ("bad/cidr", "10.1.2.3", False),
        (".", "llm.test", False),
        ("", "llm.test", False),
    ],
)
def test_no_proxy(no_proxy: str, host: str, is_exempt: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert (chosen({"HTTPS_PROXY": PROXY, name: no_proxy}, host=host) is None) is is_exempt


@pytest.mark.parametrize(
    "url",
    ["socks5://u:secret@h:1", "https://u:secret@h", "http://u:secret@", "http://u:secret@h:99999", "http://[u:secret"],
)
def test_a_proxy_that_cannot_be_used_is_said_without_its_credentials(url: str) -> None:
    with pytest.raises(ValueError, match="HTTPS_PROXY") as caught:
        chosen({"HTTPS_PROXY": url})
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_credentials_are_decoded_and_kept_out_of_the_repr() -> None:
    proxy = choose(upstream_at(Address("h", 1), proxy="http://user:p%40ss@proxy.test"), {})
    assert proxy is not None
    assert proxy.headers == ((b"Proxy-Authorization", b"Basic dXNlcjpwQHNz"),)
    assert "dXNl" not in f"{proxy!r}{proxy}"
