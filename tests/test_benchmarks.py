"""The parts of the benchmarks that need no machine: pairs, tables, verdicts, configuration files."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks.__main__ import main
from benchmarks.budget import BUDGET, Line, Results
from benchmarks.burst import Burst, Bursts
from benchmarks.cancel import PHASES, WAYS, Cell, Row, render_cell, slowest
from benchmarks.departures import Departure
from benchmarks.line import DIALECTS, FORMATS, measure_line
from benchmarks.loads import CONNECTIONS, LOADS, LONG, PACED, SPANS, TELEMETRY_LOADS, Sample, quick
from benchmarks.machine import BenchmarkError, build_native
from benchmarks.proxies import (
    PROXIES,
    Certificate,
    Ports,
    envoy_config,
    litellm_config,
    nginx_config,
    sidecar_launch,
    sidecar_settings,
)
from benchmarks.report import budget_table, departure_table, load_table, number, ratio_table, report, table
from benchmarks.rounds import Rounds, take_turns
from benchmarks.telemetry import OFF, ON, VARIANTS, check_page
from sidecar.configuration import load_file

PORTS = Ports(listen=1001, upstream=1002, spare=1003, collector=1004)
SAMPLE = Sample(
    cpu_us_per_token=50.0,
    tokens_per_s=8000.0,
    streams_per_s=80.0,
    token_p50_us=100.0,
    token_p99_us=2000.0,
    token_p999_us=9000.0,
    added_p50_us=400.0,
    added_p99_us=3000.0,
    rss_kb_per_stream=12.0,
    failed=0,
)


def costing(*cpu_us: float | None) -> list[Sample | None]:
    return [None if value is None else replace(SAMPLE, cpu_us_per_token=value) for value in cpu_us]


def test_ratios_are_made_within_rounds_and_skip_rounds_one_side_missed() -> None:
    rounds = Rounds({"native": costing(10, 40, None, 30), "envoy": costing(20, 20, 20, None)})
    assert rounds.ratios("native", "envoy", "cpu_us_per_token") == [0.5, 2.0]
    assert rounds.median_ratio("native", "envoy", "cpu_us_per_token") == 1.25
    assert rounds.ratio_of_medians("native", "envoy", "cpu_us_per_token") == 1.5
    assert rounds.median_ratio("native", "nginx", "cpu_us_per_token") is None


def test_turns_alternate_and_a_failure_costs_its_own_place_only() -> None:
    asked: list[str] = []
    told: list[str] = []

    def measure(name: str) -> Sample:
        asked.append(name)
        if len(asked) == 2:
            raise BenchmarkError("it would not start")
        return SAMPLE

    rounds = take_turns(["a", "b", "c"], 2, measure, told.append)
    assert asked == ["a", "b", "c", "c", "b", "a"]
    assert rounds.samples == {"a": [SAMPLE, SAMPLE], "b": [None, SAMPLE], "c": [SAMPLE, SAMPLE]}
    assert rounds.reasons == {"b": "it would not start"}
    assert told[1] == "round 1, b: it would not start"


def test_a_sample_is_what_the_load_told_over_its_tokens() -> None:
    told = {
        "seconds": 10.0,
        "streams": 800,
        "failed": 1,
        "tokens": 80_000,
        "first_token_us": {"p50": 50_400.0, "p99": 53_000.0},
        "token_us": {"p50": 100.0, "p99": 2000.0, "p999": 9000.0},
    }
    sample = Sample.of(PACED, told, cpu_s=4.0, grown_bytes=2_400_000)
    assert sample == replace(SAMPLE, failed=1)
    with pytest.raises(BenchmarkError, match="not one token"):
        Sample.of(PACED, {**told, "tokens": 0}, 0.0, 0)


def test_first_requests_are_spread_over_a_stream_but_at_most_half_the_time() -> None:
    assert PACED.stagger_ms == 2050
    assert {load.name: load.stagger_ms for load in (*LOADS, LONG)}["idle"] == 10_000
    assert LONG.stagger_ms == 0


def test_a_quick_load_is_smaller_and_otherwise_the_same() -> None:
    for load in (*LOADS, *TELEMETRY_LOADS, CONNECTIONS, LONG):
        small = quick(load)
        assert (small.name, small.interval_us, small.title) == (load.name, load.interval_us, load.title)
        assert small.tokens * small.connections * small.seconds < load.tokens * load.connections * load.seconds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("inf"), "never"),
        (0, "0"),
        (0.05556, "0.056"),
        (1.234, "1.23"),
        (-12.34, "-12.3"),
        (8250.4, "8,250"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"


def test_the_load_table_says_what_failed_and_what_is_missing() -> None:
    failing = replace(SAMPLE, failed=3)
    rounds = Rounds(
        {"native": [SAMPLE, failing], "nginx": [None, None], "direct": [SAMPLE]}, {"nginx": "ended | at start"}
    )
    native, nginx, direct, envoy = load_table(rounds, {"envoy": "envoy is not installed"}).splitlines()[2:]
    assert "| 50.0 | 8,000 | 80.0 | 100 | 2,000 | 9,000 | 0.400 | 3.00 | 12.0 | 3 requests failed |" in native
    assert nginx.endswith("| – | 2 runs failed: ended / at start |")
    assert "| no proxy | – | 8,000 |" in direct
    assert envoy.endswith("| – | envoy is not installed |")


def test_the_ratio_table_shows_median_and_range() -> None:
    rounds = Rounds(
        {"native": costing(10, 40), "envoy": costing(20, 20), "nginx": costing(None, None), "direct": costing(0, 0)}
    )
    assert ratio_table(rounds, "cpu_us_per_token").splitlines() == [
        "|  | ÷ envoy | ÷ nginx |",
        "| --- | ---: | ---: |",
        "| native | 1.25 (0.500–2.00) | – |",
    ]


@pytest.mark.parametrize(("value", "verdict"), [(None, "not measured"), (1.0, "goal"), (1.2, "floor"), (1.3, "missed")])
def test_verdicts_where_less_is_better(value: float | None, verdict: str) -> None:
    assert Line("x", "×", 1.0, 1.2, lambda *_: None).verdict(value) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(0.6, "goal"), (0.4, "floor"), (0.3, "missed")])
def test_verdicts_where_more_is_better(value: float, verdict: str) -> None:
    assert Line("x", "×", 0.6, 0.4, lambda *_: None, more_is_better=True).verdict(value) == verdict


def departed(phase_ms: float, *, noticed: int = 2, left: int = 2) -> Row:
    cell = Cell(phase_ms if noticed else None, 2 * phase_ms if noticed else None, noticed, left)
    return {(phase, way): cell for phase in PHASES for way in WAYS}


def test_every_budget_line_finds_its_figure() -> None:
    everyone = {name: costing(50.0) for name in PROXIES}
    loads = {load.name: Rounds(everyone) for load in LOADS}
    loads["telemetry"] = Rounds({ON: costing(51.0, 53.0, 52.0), OFF: costing(50.0, 50.0, 50.0)})
    flatness = {"long": Rounds({"native": costing(51.0)}), "parts": Rounds({"native": costing(50.0)})}
    results = Results(loads, flatness, {"native": departed(0.5), "native, TLS": departed(0.8), "nginx": departed(9.0)})
    measured = [line.measure(results, "native") for line in BUDGET]
    assert measured == [1.0, 1.0, 1.0, 1.0, 0.4, 1.0, 12.0, 1.0, 0.8, 1.6, 1.02, 1.04]
    assert [line.measure(Results(), "native") for line in BUDGET] == [None] * len(BUDGET)
    assert "| ≤ 10.0 kB | ≤ 18.0 kB | 12.0 kB | floor | 12.0 kB | floor |" in budget_table(results)


def test_departures_tell_median_worst_and_what_was_never_noticed() -> None:
    def departure(left_at: float, noticed_at: float) -> Departure:
        made = Departure("prefill")
        made.left_at, made.noticed_at = left_at, noticed_at
        return made

    cell = Cell.of([departure(1.0, 1.001), departure(1.0, 1.003), departure(1.0, 0.0), departure(0.0, 1.0)])
    assert render_cell(cell) == "2.00 / 3.0, 1 of 3 never"
    assert render_cell(Cell.of([departure(1.0, 0.0)])) == "never"
    assert render_cell(Cell.of([departure(0.0, 0.0)])) == "phase not reached"


def test_a_departure_never_noticed_is_infinitely_late() -> None:
    assert slowest([departed(0.5), departed(0.7)]) == (0.7, 1.4)
    assert slowest([departed(0.5, noticed=1)]) == (0.5, float("inf"))
    assert slowest([departed(0.5, noticed=0)]) == (float("inf"), float("inf"))
    assert slowest([]) is None


def test_the_departure_table_has_a_line_for_every_phase_and_way() -> None:
    text = departure_table(Results(departures={"native": departed(0.5), "nginx": {}}))
    assert text.startswith("| phase, way of leaving | native |\n")
    assert text.count("0.50 / 1.0") == len(PHASES) * len(WAYS)
    assert "| stalled, half-close |" in text


def test_the_report_marks_a_quick_run_and_says_what_is_missing() -> None:
    results = Results({"paced": Rounds({"direct": [SAMPLE]})}, missing={"litellm": "litellm is not installed"})
    text = report(results, ["direct"], 1, is_quick=True)
    assert "its figures mean nothing" in text
    assert "* litellm: litellm is not installed" in text
    assert "## 200 streams at 50 tokens/s" in text
    assert "3,000 streams at 1 token/s\n" not in text


def test_the_report_tells_what_telemetry_costs_and_which_setting_the_others_have() -> None:
    spans = Rounds({ON: [replace(SAMPLE, token_p99_us=2500.0)], OFF: [SAMPLE]})
    paced = Rounds({ON: costing(52.0, 56.0, 60.0), OFF: costing(50.0, 50.0, 50.0)})
    text = report(Results({"telemetry": paced, "spans": spans}), ["native"], 3, is_quick=False)
    assert "CPU/token on ÷ off: median 1.12 of 1.04, 1.12, 1.20." in text
    assert "Median of token latency's p99s on and off: 2,500 and 2,000 µs." in text
    assert "| telemetry | metrics are kept" in text


TOLD_OF_BURST = {
    "served": {"count": 1000, "over_ms": 1200.0},
    "refused": {"count": 997, "over_ms": 240.0},
    "answered": 1999,
    "lost": 1,
    "broken_off": 2,
}


def test_a_burst_loses_what_was_neither_served_to_its_end_nor_refused() -> None:
    assert Burst.of(TOLD_OF_BURST, 3.5) == Burst(1000, 997, 1 + 2 + 2, 240.0, 3.5)


def test_the_report_tells_connections_and_bursts() -> None:
    ours, bare = [Burst(1000, 1000, 0, 240.0, 3.0), Burst(1000, 1000, 0, 300.0, 5.0)], [Burst(0, 2000, 0, 200.0)] * 2
    bursts = Bursts(taken={"native": ours, "bare aiohttp": bare}, reason="the | ended")
    results = Results({"connections": Rounds({"native": [SAMPLE]})}, bursts=bursts)
    text = report(results, ["native"], 2, is_quick=False)
    assert "## 5,000 streams at 1 token/s for a minute" in text
    assert "Of the whole run: native took 40 % of its core." in text
    assert "| native | 1,000 | 1,000 | 0 | 300 | 5.00 |" in text
    assert "median 1.35 × of 1.20, 1.50; at most 1.5 × is wanted." in text
    assert "5.00 ms of at most 50." in text
    assert "Not all was measured: the / ended" in text


def test_the_load_of_connections_is_whole_and_open_for_a_minute() -> None:
    stream_s = CONNECTIONS.tokens * CONNECTIONS.interval_us / 1e6
    assert CONNECTIONS.stagger_ms == 10_000
    assert CONNECTIONS.seconds - CONNECTIONS.spread_s >= stream_s == 60


def test_the_load_of_spans_ends_250_streams_a_second() -> None:
    stream_s = (SPANS.first_token_us + (SPANS.tokens - 1) * SPANS.interval_us) / 1e6
    assert SPANS.connections * (SPANS.seconds - 1.5 * stream_s) / stream_s / SPANS.seconds == pytest.approx(
        250, rel=0.05
    )


def test_both_telemetry_settings_are_ones_the_sidecar_accepts(tmp_path: Path) -> None:
    on = VARIANTS[ON].launch("", PORTS, tmp_path)
    loaded = load_file(on.command[-1], environ={})
    assert loaded.settings is not None, loaded.render_problems()
    assert loaded.settings.telemetry.otlp == "http://127.0.0.1:1004"
    assert (loaded.settings.logs.format, loaded.settings.logs.streams) == ("json", True)
    off = VARIANTS[OFF].launch("", PORTS, tmp_path)
    loaded = load_file(off.command[-1], environ={})
    assert loaded.settings is not None, loaded.render_problems()
    assert not loaded.settings.logs.streams
    assert off.environ == {"OTEL_SDK_DISABLED": "true"}


def delivered(**counts: float) -> str:
    name = "llm_sidecar_telemetry_exported_total"
    return "".join(f'{name}{{llm_sidecar_signal="{signal}"}} {count}\n' for signal, count in counts.items())


def test_a_run_whose_telemetry_did_not_arrive_is_none() -> None:
    page = delivered(traces=5.0, metrics=2.0, logs=5.0)
    check_page(page)
    with pytest.raises(BenchmarkError, match="not delivered: logs, traces"):
        check_page(delivered(traces=0.0, metrics=2.0))
    dropped = 'llm_sidecar_telemetry_dropped_total{llm_sidecar_reason="queue_full",llm_sidecar_signal="traces"} 3.0\n'
    with pytest.raises(BenchmarkError, match="3 spans, points or lines were dropped"):
        check_page(page + dropped)


@pytest.mark.parametrize("tls", [False, True])
def test_the_sidecars_configuration_is_one_it_accepts(tmp_path: Path, tls: bool) -> None:
    made = Certificate(tmp_path / "certificate.pem", tmp_path / "key.pem")
    for file in (made.certificate, made.key):
        file.touch()
    launch = sidecar_launch(PORTS, tmp_path, made if tls else None)
    loaded = load_file(launch.command[-1], environ={})
    assert loaded.settings is not None, loaded.render_problems()
    assert loaded.settings.listen.port == PORTS.listen
    assert loaded.settings.upstreams["llm"].address.port == PORTS.upstream
    assert bool(loaded.settings.tls.certificate) is tls
    assert loaded.settings.upstreams["llm"].scheme == ("https" if tls else "http")


def test_the_others_configurations_name_both_ports(tmp_path: Path) -> None:
    nginx = nginx_config(PORTS, tmp_path)
    assert "listen 127.0.0.1:1001 " in nginx
    assert "server 127.0.0.1:1002;" in nginx
    assert nginx.count("{") == nginx.count("}")
    for config in (envoy_config(PORTS), litellm_config(PORTS), sidecar_settings(PORTS, None)):
        assert "1002" in yaml.safe_dump(config)


def test_wrong_parts_and_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--only", "nonsense"], ["--rounds", "0"], ["--proxies", "squid"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
    assert "squid: not one of native, envoy" in capsys.readouterr().err


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr("benchmarks.__main__.raise_open_files", lambda: 0)
    assert main(["--only", "paced"]) == 2
    assert "no C compiler" in capsys.readouterr().err


@pytest.mark.optional_platform
def test_the_native_programs_compile(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    build_native(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"upstream", "load", "collector", "burst"}


def test_the_line_measures_every_dialect_and_format() -> None:
    measured = measure_line(tokens=20)
    assert {dialect: tuple(formats) for dialect, formats in measured.items()} == dict.fromkeys(DIALECTS, FORMATS)
    assert all(value > 0 for formats in measured.values() for value in formats.values())
