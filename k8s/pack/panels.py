"""How panels look: the few kinds the dashboard has, with their titles, units and queries.

Owns the calls of grafana-foundation-sdk for one panel. Must not know which panels there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, tempo, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.tempo import SearchTableType

PROMETHEUS: Final = DataSourceRef(type_val="prometheus", uid="$datasource")
TEMPO: Final = DataSourceRef(type_val="tempo", uid="$tempo")
WIDTH: Final = 24
HEIGHT: Final = 8


@dataclass(frozen=True)
class Query:
    """One line or family of lines. ``has_exemplars``: its points lead to traces."""

    expression: str
    legend: str = ""
    has_exemplars: bool = False


@dataclass(frozen=True)
class Look:
    """What every panel has: how wide it is of 24, the unit of its values, and what it says below its title."""

    title: str
    span: int
    unit: str = "short"
    description: str = ""


AnyPanel = TypeVar("AnyPanel", timeseries.Panel, stat.Panel, heatmap.Panel, table.Panel)


def lines(look: Look, *queries: Query, limit: float | None = None) -> timeseries.Panel:
    """Lines over time; ``limit`` is drawn as a line of its own."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
    panel = _dressed(timeseries.Panel(), look).legend(legend.show_legend(True)).tooltip(tooltip).fill_opacity(5)
    if limit is not None:
        style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE)
        panel.thresholds(_steps(("transparent", None), ("red", limit))).thresholds_style(style)
    return panel.min(0).targets([_target(query, place) for place, query in enumerate(queries)])


def figures(look: Look, *queries: Query, good_from: float | None = None) -> stat.Panel:
    """Single figures, green from ``good_from`` on and red below it."""
    reduced = common.ReduceDataOptions().calcs(["lastNotNull"])
    panel = _dressed(stat.Panel(), look).reduce_options(reduced).color_mode(BigValueColorMode.VALUE)
    if good_from is not None:
        panel.thresholds(_steps(("red", None), ("green", good_from)))
    return panel.targets([_target(query, place).instant() for place, query in enumerate(queries)])


def buckets(look: Look, histogram: str) -> heatmap.Panel:
    """A histogram's buckets over time, with the exemplars on it."""
    color = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    query = Query(histogram, "{{le}}", has_exemplars=True)
    panel = _dressed(heatmap.Panel(), look).color(color).y_axis(heatmap.YAxisConfig().unit(look.unit))
    return panel.targets([_target(query, 0).format(PromQueryFormat.HEATMAP)])


def traces(look: Look, traceql: str) -> table.Panel:
    """Traces that a TraceQL query finds, newest first; each leads to its trace."""
    query = tempo.TempoQuery().ref_id("A").query_type("traceql").query(traceql).limit(50)
    panel = _dressed(table.Panel(), look).datasource(TEMPO)
    return panel.targets([query.table_type(SearchTableType.SPANS).datasource(TEMPO)])


def _dressed(panel: AnyPanel, look: Look) -> AnyPanel:
    panel.title(look.title).datasource(PROMETHEUS).span(look.span).height(HEIGHT).unit(look.unit)
    return panel.description(look.description) if look.description else panel


def _target(query: Query, place: int) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expression).ref_id(chr(ord("A") + place)).range().datasource(PROMETHEUS)
    if query.legend:
        target.legend_format(query.legend)
    return target.exemplar(True) if query.has_exemplars else target


def _steps(*steps: tuple[str, float | None]) -> dashboards.ThresholdsConfig:
    return (
        dashboards.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=color) for color, value in steps])
    )
