"""Telemetry as the configuration and the environment want it, built of its parts.

Owns which parts there are. Must not start any of them: threads begin in the process that serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.telemetry.choices import choose
from sidecar.telemetry.complaints import last_complaint
from sidecar.telemetry.otlp import span_exporter
from sidecar.telemetry.resource import make_resource
from sidecar.telemetry.span_export import SpanExport
from sidecar.telemetry.spans import SpanBuilder
from sidecar.telemetry.telemetry import Telemetry
from sidecar.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from opentelemetry.sdk.resources import Resource

    from sidecar import settings
    from sidecar.telemetry.choices import Choices
    from sidecar.telemetry.line_output import LineOutput
    from sidecar.telemetry.span_export import Counts


def assemble(
    asked: settings.Telemetry,
    environ: Mapping[str, str],
    clock: Callable[[], float],
    wall_clock_ns: Callable[[], int],
    lines: LineOutput | None = None,
) -> Telemetry:
    """Raises ValueError for what can never work, such as an extra that is not installed."""
    choices = choose(asked, environ)
    if not choices.is_on:
        return Telemetry(clock, wall_clock_ns, lines=lines)
    resource = make_resource(asked.service_name, environ)
    return Telemetry(
        clock,
        wall_clock_ns,
        tracing=Tracing(choices.sampling, joins_traces=choices.joins_traces),
        spans=_spans(asked, choices, resource, Uncounted()),
        lines=lines,
    )


def _spans(asked: settings.Telemetry, choices: Choices, resource: Resource, counts: Counts) -> SpanExport | None:
    if choices.traces is None:
        return None
    builder = SpanBuilder(resource, asked.compat, min(asked.slo_ttft_s, default=None))
    return SpanExport(span_exporter(choices.traces), builder.build, counts, choices.queue, last_complaint)


class Uncounted:
    """Where no metrics are kept, nobody counts."""

    def dropped(self, signal: str, reason: str, items: int) -> None:
        """Nobody wants to know."""

    def exported(self, signal: str, items: int) -> None:
        """Nobody wants to know."""
