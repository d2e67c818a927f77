"""What happened and who is told: made series for every alert of the pack, with the alerts they must raise and no other.

Owns the scenarios. Must not know how they are run. Times are minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

WHERE = {"namespace": "prod", "job": "llm-sidecar"}
PROCESS = {**WHERE, "instance": "a:9090"}
STEP = 2
"""Minutes between two samples of a burn scenario, so that days of them are soon played."""
HISTORY = 3 * 24 * 60
"""Minutes of good traffic before a burn scenario's trouble: as long as the longest window."""

Series = dict[str, str]
"""A series as PromQL writes it, with its samples as promtool reads them."""


@dataclass(frozen=True)
class Raised:
    """One alert: its labels beside the name, and its summary."""

    labels: Mapping[str, str]
    summary: str


@dataclass(frozen=True)
class Scenario:
    """Series, how long they run, and what is firing at the end of it."""

    name: str
    minutes: int
    series: Series
    raised: Mapping[str, list[Raised]] = field(default_factory=dict)
    sampled_every: int = 1
    evaluated_every: int = 1


def written(name: str, labels: Mapping[str, str]) -> str:
    """A series' name and labels."""
    return name + "{" + ", ".join(f'{label}="{value}"' for label, value in labels.items()) + "}"


def rising(per_minute: float, minutes: int) -> str:
    """A counter that always grows alike."""
    return f"0+{per_minute:g}x{minutes}"


def turning(*pieces: tuple[float, int], step: int = 1) -> str:
    """A counter that grows by so much a minute for so many minutes, then by the next piece."""
    samples, value = [], 0.0
    for per_minute, minutes in pieces:
        samples.append(f"{value:g}+{per_minute * step:g}x{minutes // step - 1}")
        value += per_minute * minutes
    return " ".join(samples)


# The objective. Traffic of 10 streams a minute, whose share slower than an edge changes after the history.


@dataclass(frozen=True)
class Slow:
    """For so many minutes this share of streams is slower than 300, 700 and 1000 ms."""

    minutes: int
    share: tuple[float, float, float]


NONE_SLOW = (0.0, 0.0, 0.0)


def streams(*pieces: Slow, model: str = "m", per_minute: float = 10, one: str = "1.0") -> Series:
    """The histogram of a model's first tokens; ``one`` is how the edge of 1 s is spelled."""
    labels = {**PROCESS, "gen_ai_request_model": model, "llm_sidecar_route": "all"}
    bucket = "llm_sidecar_time_to_first_token_seconds_bucket"
    series = {}
    for place, edge in enumerate(("0.3", "0.7", one)):
        grown = [(per_minute * (1 - piece.share[place]), piece.minutes) for piece in pieces]
        series[written(bucket, {**labels, "le": edge})] = turning((per_minute, HISTORY), *grown, step=STEP)
    everything = turning((per_minute, HISTORY), *((per_minute, piece.minutes) for piece in pieces), step=STEP)
    series[written(bucket, {**labels, "le": "+Inf"})] = everything
    series[written("llm_sidecar_time_to_first_token_seconds_count", labels)] = everything
    return series


def burns(slo: str, long: str, short: str, severity: str, summary: str, model: str = "m") -> Raised:
    labels = {
        **WHERE,
        "gen_ai_request_model": model,
        "slo": slo,
        "pages": "true" if slo == "ttft_700ms" else "false",
        "long": long,
        "short": short,
        "severity": severity,
    }
    return Raised(labels, f"{model}: {summary}")


def burn_scenario(name: str, series: Series, minutes: int, *raised: Raised) -> Scenario:
    found = {"LlmSidecarTtftBudgetBurn": list(raised)} if raised else {}
    return Scenario(name, HISTORY + minutes, series, found, sampled_every=STEP, evaluated_every=10)


SLOW_700 = (1.0, 1.0, 0.0)
SLOW_1000 = (1.0, 1.0, 1.0)


def fast(slo: str, severity: str, model: str = "m") -> Raised:
    return burns(slo, "1h", "5m", severity, f"100% of streams in 1h missed {slo} (burn rate ≥ 14.4)", model)


BURNING = [
    burn_scenario("nothing slow", streams(Slow(60, NONE_SLOW)), 60),
    burn_scenario("within the budget for ever", streams(Slow(600, (0.04, 0.04, 0.04))), 600),
    burn_scenario(
        "all slow for 70 minutes",
        streams(Slow(70, SLOW_700)),
        70,
        fast("ttft_300ms", "info"),
        fast("ttft_700ms", "page"),
    ),
    burn_scenario("all slow for 70 minutes, and over", streams(Slow(70, SLOW_700), Slow(20, NONE_SLOW)), 90),
    burn_scenario("all slow for 70 minutes, hardly anyone there", streams(Slow(70, SLOW_700), per_minute=1), 70),
    burn_scenario(
        "one model slow, one not",
        streams(Slow(70, SLOW_700)) | streams(Slow(70, NONE_SLOW), model="quick"),
        70,
        fast("ttft_300ms", "info"),
        fast("ttft_700ms", "page"),
    ),
    *(
        burn_scenario(
            f"slower than a second, spelled {spelling}",
            streams(Slow(70, SLOW_1000), one=spelling),
            70,
            fast("ttft_300ms", "info"),
            fast("ttft_700ms", "page"),
            fast("ttft_1000ms", "info"),
        )
        for spelling in ("1", "1.0")
    ),
    burn_scenario(
        "40 % slow for six hours",
        streams(Slow(400, (0.0, 0.4, 0.0))),
        400,
        burns("ttft_700ms", "6h", "30m", "page", "40% of streams in 6h missed ttft_700ms (burn rate ≥ 6)"),
    ),
    burn_scenario(
        "20 % slow for a day",
        streams(Slow(1500, (0.0, 0.2, 0.0))),
        1500,
        burns("ttft_700ms", "1d", "2h", "ticket", "20% of streams in 1d missed ttft_700ms (burn rate ≥ 3)"),
        burns("ttft_700ms", "3d", "6h", "ticket", "6.938% of streams in 3d missed ttft_700ms (burn rate ≥ 1)"),
    ),
    burn_scenario(
        "6 % slow for three days",
        streams(Slow(4400, (0.0, 0.06, 0.0))),
        4400,
        burns("ttft_700ms", "3d", "6h", "ticket", "6% of streams in 3d missed ttft_700ms (burn rate ≥ 1)"),
    ),
]

# How streams end: 40 a minute, some of them otherwise than completed.


def ended(outcome: str, per_minute: float, minutes: int, **labels: str) -> Series:
    everything = {
        **PROCESS,
        "llm_sidecar_route": "all",
        "llm_sidecar_upstream": "llm",
        "llm_sidecar_outcome": outcome,
        **labels,
    }
    return {written("llm_sidecar_streams_ended_total", everything): rising(per_minute, minutes)}


def early(error_type: str, outcome: str = "upstream_rejected") -> dict[str, str]:
    return {"outcome": outcome, "error_type": error_type, "llm_sidecar_stage": "before_first_token"}


AFTER = {"llm_sidecar_stage": "after_first_token"}


def told(severity: str, summary: str, **labels: str) -> list[Raised]:
    return [Raised({**WHERE, **labels, "severity": severity}, summary)]


def ending_scenario(name: str, raised: Mapping[str, list[Raised]], *series: Series, minutes: int = 20) -> Scenario:
    together: Series = {}
    for each in series:
        together |= each
    return Scenario(name, minutes, together, raised)


OF_LLM = {"llm_sidecar_upstream": "llm"}
ENDING = [
    ending_scenario(
        "an upstream refuses a quarter",
        {
            "LlmSidecarFailsBeforeFirstToken": told(
                "page", "25% of requests to llm fail before their first token", **OF_LLM
            )
        },
        ended("completed", 30, 20),
        ended(**early("503"), per_minute=10, minutes=20),
    ),
    ending_scenario(
        "an upstream is unreachable, silent and out of quota, each a little",
        {
            "LlmSidecarFailsBeforeFirstToken": told(
                "page", "10% of requests to llm fail before their first token", **OF_LLM
            )
        },
        ended("completed", 36, 20),
        ended(**early("connect_error", "upstream_unreachable"), per_minute=1, minutes=20),
        ended(**early("timeout", "timed_out"), per_minute=1, minutes=20),
        ended(**early("429"), per_minute=1, minutes=20),
        ended(**early("_OTHER", "internal"), per_minute=1, minutes=20),
    ),
    ending_scenario(
        "callers ask for what is not there",
        {},
        ended("completed", 30, 20),
        ended(**early("400"), per_minute=5, minutes=20),
        ended(**early("404"), per_minute=5, minutes=20),
    ),
    ending_scenario("callers leave early", {}, ended("completed", 30, 20), ended("client_cancelled", 30, 20)),
    ending_scenario(
        "half of hardly any fail", {}, ended("completed", 1, 20), ended(**early("503"), per_minute=1, minutes=20)
    ),
    ending_scenario(
        "a quarter fails, for four minutes",
        {},
        ended("completed", 30, 4),
        ended(**early("503"), per_minute=10, minutes=4),
        minutes=4,
    ),
    ending_scenario(
        "one stream in twenty breaks off",
        {"LlmSidecarTruncations": told("ticket", "5% of requests to llm break off after their first token", **OF_LLM)},
        ended("completed", 38, 20),
        ended("upstream_broken", 2, 20, error_type="truncated", **AFTER),
    ),
    ending_scenario(
        "one stream in two hundred breaks off",
        {},
        ended("completed", 199, 20),
        ended("upstream_broken", 1, 20, error_type="truncated", **AFTER),
    ),
    ending_scenario(
        "one client in twenty reads too slowly",
        {
            "LlmSidecarEvictions": told(
                "ticket", "5% of requests to llm end because their client reads too slowly", **OF_LLM
            )
        },
        ended("completed", 38, 20),
        ended("client_too_slow", 2, 20, **AFTER),
    ),
    ending_scenario(
        "one client in two hundred reads too slowly",
        {},
        ended("completed", 199, 20),
        ended("client_too_slow", 1, 20, **AFTER),
    ),
    ending_scenario(
        "new requests are refused for want of room",
        {"LlmSidecarOverloaded": told("page", "llm-sidecar refuses 0.2 requests a second, being full")},
        ended("completed", 40, 20),
        ended("refused", 12, 20, error_type="503", llm_sidecar_upstream=""),
    ),
    ending_scenario(
        "new requests are refused for other reasons",
        {},
        ended("completed", 40, 20),
        ended("refused", 12, 20, error_type="401", llm_sidecar_upstream=""),
    ),
]

# The upstreams.


def upstream_up(*instances: str) -> Series:
    """What each of several sidecars says of one upstream, from then on."""
    labels = {**PROCESS, "llm_sidecar_upstream": "llm"}
    return {
        written("llm_sidecar_upstream_up", {**labels, "instance": f"{place}:9090"}): samples
        for place, samples in enumerate(instances)
    }


UPSTREAMS = [
    Scenario(
        "most sidecars leave an upstream alone",
        30,
        upstream_up("1x5 0x25", "1x5 0x25", "1x30"),
        {"LlmSidecarUpstreamDown": told("page", "llm is left alone by most sidecars of llm-sidecar", **OF_LLM)},
    ),
    Scenario("one of three leaves it alone", 30, upstream_up("1x5 0x25", "1x30", "1x30")),
    Scenario("all leave it alone for a while", 30, upstream_up("1x5 0x8 1x17", "1x5 0x8 1x17")),
]

# The processes.

AT = "llm-sidecar at a:9090"
HERE = {"instance": "a:9090"}


def lag(late_share: float) -> Series:
    """Ten thousand turns a minute, of which this share is between 50 and 100 ms late."""
    name = "llm_sidecar_event_loop_lag_seconds_bucket"
    counts = {"0.001": 10_000 * (1 - late_share), "0.05": 10_000 * (1 - late_share), "0.1": 10_000, "+Inf": 10_000}
    return {written(name, {**PROCESS, "le": edge}): rising(count, 20) for edge, count in counts.items()}


def buffered(held: float, limit: float) -> Series:
    return {
        written("llm_sidecar_buffered_bytes", PROCESS): f"{held:g}x20",
        written("llm_sidecar_buffered_limit_bytes", PROCESS): f"{limit:g}x20",
    }


def connections(opened: float, limit: float) -> Series:
    return {
        written("llm_sidecar_connections", PROCESS): f"{opened:g}x20",
        written("llm_sidecar_connections_limit", PROCESS): f"{limit:g}x20",
    }


def cpu(user_s: float, system_s: float, labels: Mapping[str, str] = PROCESS) -> Series:
    """Seconds of CPU a minute."""
    spent = {"user": user_s, "system": system_s}
    name = "process_cpu_time_seconds_total"
    return {written(name, {**labels, "cpu_mode": mode}): rising(each, 20) for mode, each in spent.items()}


def dropped(per_minute: float, minutes: int, quiet: int) -> Series:
    labels = {**PROCESS, "llm_sidecar_signal": "traces", "llm_sidecar_reason": "queue_full"}
    return {written("llm_sidecar_telemetry_dropped_total", labels): turning((per_minute, minutes), (0, quiet + 1))}


PROCESSES = [
    Scenario(
        "buffers nearly full",
        20,
        buffered(230, 256),
        {
            "LlmSidecarBuffersFull": told(
                "ticket", f"{AT} holds 89.84% of the bytes it may hold for slow clients", **HERE
            )
        },
    ),
    Scenario("buffers half full", 20, buffered(128, 256)),
    Scenario("buffers without a bound", 20, buffered(230, 0)),
    Scenario(
        "connections nearly all open",
        20,
        connections(4750, 5000),
        {
            "LlmSidecarConnectionsFull": told(
                "ticket", f"{AT} has 95% of the client connections open that it may have", **HERE
            )
        },
    ),
    Scenario("connections half of them open", 20, connections(2500, 5000)),
    Scenario(
        "the loop is late",
        20,
        lag(0.02),
        {
            "LlmSidecarEventLoopLag": told(
                "ticket", f"{AT}: one turn of the data loop in a hundred is 75ms late", **HERE
            )
        },
    ),
    Scenario("the loop is late now and then", 20, lag(0.005)),
    Scenario(
        "a core is used up",
        20,
        cpu(50, 8),
        {"LlmSidecarCpuSaturated": told("ticket", f"{AT} uses 96.67% of the one core that it can use", **HERE)},
    ),
    Scenario("half a core is used", 20, cpu(25, 5)),
    Scenario(
        "three workers use half a core each",
        20,
        {
            series: values
            for worker in ("1", "2", "3")
            for series, values in cpu(25, 5, {**PROCESS, "llm_sidecar_worker": worker}).items()
        },
    ),
    Scenario("another program uses a core", 20, cpu(50, 8, {**PROCESS, "instance": "other:9100"})),
    Scenario(
        "spans are dropped",
        20,
        dropped(5, 20, 0),
        {
            "LlmSidecarTelemetryDropped": told(
                "ticket",
                "llm-sidecar gives up traces: queue_full",
                llm_sidecar_signal="traces",
                llm_sidecar_reason="queue_full",
            )
        },
    ),
    Scenario("spans were dropped, no longer", 20, dropped(5, 10, 10)),
]

# Who is there.

UP = written("up", PROCESS)
STREAMS = written("llm_sidecar_streams_active", PROCESS)
OTHER_STREAMS = written("llm_sidecar_streams_active", {**PROCESS, "job": "other", "instance": "b:9090"})
GONE = told("ticket", "llm-sidecar had sidecars within a day and has none now")

PRESENCE = [
    Scenario("all is well", 20, {UP: "1x20", STREAMS: "3x20"}),
    Scenario(
        "one does not answer",
        30,
        {UP: "1x10 0x20", STREAMS: "3x10 stale", OTHER_STREAMS: "0x30"},
        {
            "LlmSidecarDown": told("page", f"{AT} has not answered on its admin port for five minutes", **HERE),
            "LlmSidecarGone": GONE,
        },
    ),
    Scenario("one does not answer for a moment", 12, {UP: "1x10 0x2", STREAMS: "3x12"}),
    Scenario("another program does not answer", 30, {written("up", {**PROCESS, "job": "db"}): "0x30", STREAMS: "3x30"}),
    Scenario("a job has gone", 30, {STREAMS: "3x10 stale", OTHER_STREAMS: "0x30"}, {"LlmSidecarGone": GONE}),
    Scenario(
        "there never was one",
        20,
        {"something_else": "1x20"},
        {
            "LlmSidecarAbsent": [
                Raised({"severity": "page"}, "Prometheus knows of no sidecar at all: none runs, or none is scraped")
            ]
        },
    ),
]


def running(scenario: Scenario) -> Scenario:
    """The same beside a sidecar that is alive."""
    alive = {STREAMS: f"3x{scenario.minutes // scenario.sampled_every}"}
    return replace(scenario, series={**alive, **scenario.series})


SCENARIOS = [*(running(each) for each in (*BURNING, *ENDING, *UPSTREAMS, *PROCESSES)), *PRESENCE]
