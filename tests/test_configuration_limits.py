"""Limits on streams in the configuration file: what is read, what is refused, what is warned of and shown."""

from __future__ import annotations

import pytest

from sidecar.configuration import describe, load
from sidecar.settings import Callers, Limits, Settings

EVERYTHING = """
max_streams: 100
callers: {header: X-User, streams: 10}
upstreams:
  up: {url: 'http://127.0.0.1:8000', max_streams: 50}
routes:
  - name: chat
    upstreams: [up]
    priority: high
    preempt: true
    limits: {streams: 40, caller_streams: 4, queue: 30, queue_timeout: 1500ms}
  - {name: batch, upstreams: [up], match: {path: /batch}, priority: low}
"""


def read(text: str) -> Settings:
    loaded = load(text, source="c.yaml", environ={})
    assert loaded.settings is not None, loaded.render_problems()
    return loaded.settings


def test_every_limit_is_read() -> None:
    settings = read(EVERYTHING)
    chat, batch = settings.routes
    assert (settings.max_streams, settings.callers) == (100, Callers("X-User", 10))
    assert settings.upstreams["up"].max_streams == 50
    assert chat.limits == Limits(streams=40, caller_streams=4, queue=30, queue_timeout_s=1.5)
    assert (chat.priority, chat.preempt, batch.priority, batch.preempt) == ("high", True, "low", False)


def test_every_limit_is_shown() -> None:
    shown = describe(read(EVERYTHING))
    assert "limits 100 streams, 10 of one caller, by X-User\n" in shown
    assert "; 40 streams; 4 streams of one caller; 30 wait for up to 1500ms; priority high; preempts\n" in shown
    assert "; priority low\n" in shown
    assert "; at most 50 streams" in shown


def test_what_is_not_limited_is_not_shown() -> None:
    lines = describe(read("upstreams: {up: {url: 'http://127.0.0.1:8000'}}")).splitlines()
    shown = "\n".join(line for line in lines if not line.startswith("drain "))
    assert "limits" not in shown
    assert " streams" not in shown


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_streams", "0", "must be a whole number from 1 to"),
        ("max_streams", "-1", "must be a whole number"),
        ("max_streams", "1.5", "must be a whole number"),
        ("max_streams", "many", "must be a whole number"),
        ("callers", "{streams: 0}", "must be a whole number from 1 to"),
        ("callers", "{header: 'a b'}", "is not a header name"),
        ("callers", "{key: x}", "unknown key"),
    ],
)
def test_what_is_no_limit_is_refused(key: str, value: str, message: str) -> None:
    loaded = load(f"{key}: {value}\nupstreams: {{up: {{url: 'http://a'}}}}", source="c.yaml", environ={})
    assert loaded.settings is None
    assert [problem.path.partition(".")[0] for problem in loaded.problems] == [key]
    assert message in loaded.problems[0].message


@pytest.mark.parametrize(
    ("root", "route", "paths"),
    [
        ("", "limits: {streams: 5, queue: 5}", []),
        ("", "limits: {queue: 5}", ["routes[0].limits.queue"]),
        ("max_streams: 5", "limits: {queue: 5}", []),
        ("callers: {streams: 5}", "limits: {queue: 5}", []),
        ("callers: {header: X-User}", "format: native", ["callers.header"]),
        ("callers: {header: X-User}", "limits: {caller_streams: 5}", []),
        ("max_streams: 5", "limits: {streams: 6}", ["routes[0].limits.streams"]),
        ("max_streams: 5\ncallers: {streams: 6}", "format: native", ["callers.streams"]),
        ("", "limits: {streams: 5, caller_streams: 6}", ["routes[0].limits.caller_streams"]),
        ("", "preempt: true", ["routes[0].preempt"]),
        ("", "priority: low", []),
        ("", "priority: high\n    preempt: true", []),
    ],
)
def test_what_is_probably_not_meant_is_warned_of(root: str, route: str, paths: list[str]) -> None:
    text = f"""
{root}
upstreams: {{up: {{url: 'http://127.0.0.1:8000'}}}}
routes:
  - name: first
    match: {{path: /first}}
    upstreams: [up]
    {route}
  - {{name: second, match: {{path: /second}}, upstreams: [up]}}
"""
    assert [warning.partition(":")[0] for warning in read(text).warnings] == paths
