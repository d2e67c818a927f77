"""The Grafana dashboard: from the objective down to the process, a row for each question an operator asks.

Owns rows, panels and variables. Must not know how a panel looks nor how a query is put together.
"""

from __future__ import annotations

import json
from typing import Final

from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    Panel,
    VariableModel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from k8s.pack.objectives import BUDGET, OBJECTIVES
from k8s.pack.panels import PROMETHEUS, Look, Query, buckets, figures, lines, traces
from k8s.pack.queries import ENDED, ENDINGS, PROCESSES, RANGE, TTFT, mean, per_second, quantile, total, within

SIDECAR: Final = "llm_sidecar_streams_active"
VARIABLES: Final = {
    "job": f"label_values({SIDECAR}, job)",
    "instance": f'label_values({SIDECAR}{{job=~"$job"}}, instance)',
    "model": f'label_values({TTFT}_count{{job=~"$job"}}, gen_ai_request_model)',
    "route": f'label_values({ENDED}{{job=~"$job"}}, llm_sidecar_route)',
    "upstream": f'label_values({ENDED}{{job=~"$job"}}, llm_sidecar_upstream)',
}
QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
MODEL: Final = "gen_ai_request_model"
UPSTREAM: Final = "llm_sidecar_upstream"
Panels = list[Builder[Panel]]


def written() -> str:
    """The dashboard's JSON, as Grafana imports it."""
    return json.dumps(built().build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def built() -> dashboards.Dashboard:
    """The whole dashboard."""
    board = (
        dashboards.Dashboard("LLM sidecar")
        .uid("llm-sidecar")
        .description("Streams through the sidecar: objective, latency, endings, tokens, and the processes themselves.")
        .tags(["llm", "llm-sidecar"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .refresh("1m")
        .variables([*_datasources(), *(_variable(name, query) for name, query in VARIABLES.items()), _slow()])
    )
    for title, panels in _rows().items():
        board.with_row(dashboards.Row(title))
        for panel in panels:
            board.with_panel(panel)
    return board


def _rows() -> dict[str, Panels]:
    return {
        "Objective: 95 % of streams have their first token in time": _objective(),
        "Time to the first token": _first_token(),
        "The sidecar's own share": _overhead(),
        "Between tokens": _between_tokens(),
        "Traffic": _traffic(),
        "How streams end": _endings(),
        "Tokens": _tokens(),
        "The engine's own view": _engine(),
        "Processes": _processes(),
        "Telemetry itself": _telemetry(),
        "Slow traces": _traces(),
    }


def _objective() -> Panels:
    shares = [Query(within(each.edge), each.name) for each in OBJECTIVES]
    left = [Query(f"1 - (1 - {within(each.edge)}) / {BUDGET}", each.name) for each in OBJECTIVES]
    burn = (
        f'max by (slo, {MODEL}) (llm_sidecar:ttft_slow:ratio_rate1h{{job=~"$job", {MODEL}=~"$model"}})'
        " / on (slo) group_left () llm_sidecar:ttft_slo:budget"
    )
    return [
        figures(Look("In time, over the range shown", 8, "percentunit"), *shares, good_from=1 - BUDGET),
        figures(
            Look("Budget left, over the range shown", 8, "percentunit", "1: nobody waited too long. 0: 5 % did."),
            *left,
            good_from=0,
        ),
        lines(
            Look(
                "Burn rate, 1 h", 8, description="1 uses the budget up exactly; 14.4 pages. From the recorded ratios."
            ),
            Query(burn, f"{{{{slo}}}} {{{{{MODEL}}}}}"),
            limit=14.4,
        ),
    ]


def _first_token() -> Panels:
    def of(name: str, q: float) -> Query:
        return Query(quantile(q, TTFT, MODEL), f"{name} {{{{{MODEL}}}}}", has_exemplars=True)

    return [
        lines(Look("To the client, by model", 12, "s"), *(of(name, q) for name, q in QUANTILES.items())),
        buckets(Look("To the client, all streams", 12, "s"), per_second(f"{TTFT}_bucket", "le")),
    ]


def _overhead() -> Panels:
    overhead = "llm_sidecar_overhead_duration_seconds"
    phase = "llm_sidecar_phase"
    return [
        lines(
            Look("Added before the upstream is asked and to the first token", 12, "s"),
            *(Query(quantile(q, overhead, phase), f"{n} {{{{{phase}}}}}") for n, q in QUANTILES.items() if n != "p95"),
        ),
        lines(
            Look("Client's first token and upstream's first chunk", 12, "s"),
            Query(quantile(0.95, TTFT), "p95 to the client"),
            Query(quantile(0.95, "gen_ai_client_operation_time_to_first_chunk_seconds"), "p95 from the upstream"),
        ),
    ]


def _between_tokens() -> Panels:
    shown = {"p50": 0.5, "p95": 0.95}
    per_token, gap = "llm_sidecar_time_per_output_token_seconds", "llm_sidecar_stream_max_gap_seconds"
    return [
        lines(
            Look(
                "Time per output token, by model", 12, "s", "By the provider's own counts; streams without are left out"
            ),
            *(Query(quantile(q, per_token, MODEL), f"{name} {{{{{MODEL}}}}}") for name, q in shown.items()),
        ),
        lines(
            Look("Longest stall of a stream", 12, "s"),
            *(Query(quantile(q, gap), name) for name, q in QUANTILES.items()),
        ),
    ]


def _traffic() -> Panels:
    requests, calls = "http_server_request_duration_seconds", "gen_ai_client_operation_duration_seconds"
    return [
        lines(
            Look("Requests a second, by status", 8, "reqps"),
            Query(
                per_second(f"{requests}_count", "http_response_status_code", PROCESSES), "{{http_response_status_code}}"
            ),
        ),
        lines(
            Look("Running now", 8),
            Query(total(SIDECAR), "streams"),
            Query(total("http_server_active_requests"), "requests"),
            Query(total("llm_sidecar_queue"), "waiting for a place"),
        ),
        lines(
            Look("Duration of calls", 8, "s"),
            *(Query(quantile(q, calls), name, has_exemplars=True) for name, q in QUANTILES.items()),
        ),
        lines(
            Look(
                "Share of sidecars that have it up, by upstream", 24, "percentunit", "Checks answered, circuit closed."
            ),
            Query(
                f'avg by (llm_sidecar_upstream) (llm_sidecar_upstream_up{{{PROCESSES}, {UPSTREAM}=~"$upstream"}})',
                f"{{{{{UPSTREAM}}}}}",
            ),
        ),
    ]


def _endings() -> Panels:
    failed = f'llm_sidecar_outcome!~"completed|client_cancelled", {ENDINGS}'
    known = {
        "left by the client": 'llm_sidecar_outcome="client_cancelled"',
        "let go of: client too slow": 'llm_sidecar_outcome="client_too_slow"',
        "broken off by the upstream": 'llm_sidecar_outcome="upstream_broken", llm_sidecar_stage="after_first_token"',
        "refused": 'llm_sidecar_outcome="refused"',
    }
    everything = per_second(ENDED, selector=ENDINGS)
    return [
        lines(
            Look("By outcome", 8, "reqps"),
            Query(per_second(ENDED, "llm_sidecar_outcome", ENDINGS), "{{llm_sidecar_outcome}}"),
        ),
        lines(
            Look("Failures by error.type and stage", 8, "reqps"),
            Query(per_second(ENDED, "error_type, llm_sidecar_stage", failed), "{{error_type}} {{llm_sidecar_stage}}"),
        ),
        lines(
            Look("Share of all requests", 8, "percentunit"),
            *(
                Query(f"{per_second(ENDED, selector=f'{selector}, {ENDINGS}')} / {everything}", name)
                for name, selector in known.items()
            ),
        ),
    ]


def _tokens() -> Panels:
    usage = "gen_ai_client_inference_usage_{}_tokens_total"
    kinds = {
        "in": usage.format("input"),
        "out": usage.format("output"),
        "out, reasoning": usage.format("reasoning_output"),
        "in, written to cache": usage.format("cache_write_input"),
    }
    cached = f"{per_second(usage.format('cache_read_input'))} / {per_second(usage.format('input'))}"
    per_call = "gen_ai_client_token_usage"
    return [
        lines(Look("Tokens a second", 8), *(Query(per_second(counter), name) for name, counter in kinds.items())),
        lines(Look("Share of input out of the cache", 8, "percentunit"), Query(cached, "cached")),
        lines(
            Look("Tokens a call, mean", 8),
            Query(mean(per_call, "gen_ai_token_type"), "{{gen_ai_token_type}}"),
        ),
    ]


def _engine() -> Panels:
    return [
        lines(
            Look(
                "p95 of the first token: sidecar, vLLM, SGLang",
                24,
                "s",
                "Needs the engine's own metrics in the same Prometheus. Its buckets differ: compare shapes.",
            ),
            Query(quantile(0.95, TTFT), "sidecar, to the client"),
            Query(quantile(0.95, "gen_ai_client_operation_time_to_first_chunk_seconds"), "sidecar, from the upstream"),
            Query(quantile(0.95, "vllm:time_to_first_token_seconds", selector=""), "vLLM"),
            Query(quantile(0.95, "sglang:time_to_first_token_seconds", selector=""), "SGLang"),
        )
    ]


def _processes() -> Panels:
    each = "{{instance}} {{llm_sidecar_worker}}"
    lag = "llm_sidecar_event_loop_lag_seconds"
    buffered = f"llm_sidecar_buffered_bytes{{{PROCESSES}}} / (llm_sidecar_buffered_limit_bytes{{{PROCESSES}}} > 0)"
    open_ones = f"llm_sidecar_connections{{{PROCESSES}}} / (llm_sidecar_connections_limit{{{PROCESSES}}} > 0)"
    of_sidecars = f"and on (job, instance) {SIDECAR}{{{PROCESSES}}}"
    by = "job, instance, llm_sidecar_worker"
    cpu = f"sum by ({by}) (rate(process_cpu_time_seconds_total{{{PROCESSES}}}{RANGE})) {of_sidecars}"
    memory = f"sum by ({by}) (process_memory_usage_bytes{{{PROCESSES}}}) {of_sidecars}"
    return [
        lines(
            Look("Event loop lag, p99", 5, "s"),
            Query(quantile(0.99, lag, "instance, llm_sidecar_worker", PROCESSES), each),
            limit=0.05,
        ),
        lines(Look("Share of its bytes held for slow clients", 5, "percentunit"), Query(buffered, each), limit=0.8),
        lines(Look("Share of its connections open", 5, "percentunit"), Query(open_ones, each), limit=0.9),
        lines(Look("CPU, cores", 3), Query(cpu, each), limit=0.9),
        lines(Look("Memory", 3, "bytes"), Query(memory, each)),
        lines(
            Look("Workers that answer", 3, "", "Only where an instance has several"),
            Query(total("llm_sidecar_worker_up", "instance"), "{{instance}}"),
        ),
    ]


def _telemetry() -> Panels:
    signal, reason = "llm_sidecar_signal", "llm_sidecar_reason"
    name = "llm_sidecar_telemetry_{}".format
    dropped = per_second(name("dropped_total"), f"{signal}, {reason}", PROCESSES)
    return [
        lines(Look("Given up, a second", 8), Query(dropped, f"{{{{{signal}}}}} {{{{{reason}}}}}")),
        lines(
            Look("Delivered, a second", 8),
            Query(per_second(name("exported_total"), signal, PROCESSES), f"{{{{{signal}}}}}"),
        ),
        lines(Look("Waiting", 8), Query(total(name("queue"), signal), f"{{{{{signal}}}}}")),
    ]


def _traces() -> Panels:
    query = (
        '{ kind = client && span.llm_sidecar.ttft > $slow && span.gen_ai.request.model =~ "$model" '
        '&& span.llm_sidecar.upstream =~ "$upstream" } '
        "| select(span.llm_sidecar.ttft, span.gen_ai.response.time_to_first_chunk, span.gen_ai.request.model, "
        "span.llm_sidecar.upstream, span.llm_sidecar.outcome)"
    )
    return [traces(Look("Calls whose first token took longer than chosen above", 24), query)]


def _datasources() -> list[Builder[VariableModel]]:
    return [
        dashboards.DatasourceVariable("datasource").label("Prometheus").type("prometheus"),
        dashboards.DatasourceVariable("tempo").label("Tempo").type("tempo"),
    ]


def _variable(name: str, query: str) -> dashboards.QueryVariable:
    return (
        dashboards.QueryVariable(name)
        .label(name.capitalize())
        .datasource(PROMETHEUS)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _slow() -> dashboards.CustomVariable:
    return (
        dashboards.CustomVariable("slow")
        .label("Slow from, s")
        .values("0.3,0.7,1,2,5")
        .current(VariableOption(selected=True, text="0.7", value="0.7"))
    )
