"""The pages tell the truth: examples load and run, links lead somewhere, and tables equal the code they describe."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

import msgspec
import pytest

from sidecar.app.accepting import GATE_MOVES
from sidecar.configuration import load
from sidecar.drain import DOINGS, MOVES
from sidecar.errors import CODES, ENDINGS, Outcome
from sidecar.formats.payloads import PAYLOADS
from sidecar.gateway.connection import AWAITED_MOVES
from sidecar.session import CLIENT_MOVES, REACTIONS, UPSTREAM_MOVES
from sidecar.settings import Connections, Limits, Route, Settings, Timeouts
from sidecar.units import format_size, parse_duration
from sidecar.workers.seat import MOVES as WORKER_MOVES

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)]+)\)")
TICKED = re.compile(r"`([^`]+)`")
NODE = shutil.which("node")


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


def table(page: Path, first_column: str) -> list[list[str]]:
    """The cells of the table whose header row begins with this column, header and rule left out."""
    lines = iter(page.read_text().splitlines())
    for line in lines:
        if line.startswith(f"| {first_column} |"):
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert len(rows) > 1, f"{page.name} has no table that begins with {first_column}"
    return rows[1:]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def written(value: object) -> str:
    return str(value.value) if isinstance(value, Enum) else "yes" if value is True else "no" if value is False else ""


EXAMPLES = [(page.name, number, text) for page in PAGES for number, text in enumerate(blocks(page, "yaml"))]


@pytest.mark.parametrize(("page", "number", "text"), EXAMPLES, ids=[f"{page}-{number}" for page, number, _ in EXAMPLES])
def test_every_configuration_shown_loads(page: str, number: int, text: str) -> None:
    loaded = load(text, source=f"{page}, block {number}", environ={})
    assert loaded.settings is not None, loaded.render_problems()


def test_there_are_configurations_to_load() -> None:
    assert any(page == "README.md" for page, _, _ in EXAMPLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    missing = []
    for link in LINK.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def test_every_make_target_and_command_shown_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = "\n".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"\bmake ([a-z]+)\b(?= *(?:[A-Z]+=|#|`|\n|\())", pages)) <= targets
    shown = "\n".join(text for page in PAGES for text in blocks(page, "console"))
    assert set(re.findall(r"^\$ sidecar (\w+)", shown, re.MULTILINE)) == {"run", "check"}


# Endings


def test_the_endings_table_is_the_codes() -> None:
    shown = {}
    for outcome, status, codes in table(README, "outcome"):
        pairs = re.findall(r"`(\w+)` (\d{3}|\(the upstream's own\))", codes)
        shown[outcome] = (None if status == "–" else status, dict(pairs))
    expected: dict[str, tuple[str | None, dict[str, str]]] = {
        outcome.value: (ending.done_status, {}) for outcome, ending in ENDINGS.items()
    }
    for name, code in CODES.items():
        told = "(the upstream's own)" if name == "upstream_status" else str(code.http_status)
        expected[code.outcome.value][1][name] = told
    assert shown == expected
    assert shown.keys() == {outcome.value for outcome in Outcome}


def test_the_table_of_codes_is_the_codes() -> None:
    page = ROOT / "docs/typed-events.md"
    expected = [
        [
            f"`{name}`",
            "its own" if name == "upstream_status" else str(code.http_status),
            written(code.retryable),
            code.outcome.value,
        ]
        for name, code in CODES.items()
    ]
    assert table(page, "code") == expected


# States


@pytest.mark.parametrize(
    ("kind", "moves"),
    [("upstream", UPSTREAM_MOVES), ("client", CLIENT_MOVES), ("gate", GATE_MOVES), ("worker", WORKER_MOVES)],
)
def test_the_moves_shown_are_the_legal_ones(kind: str, moves: dict[Enum, dict[Enum, Enum]]) -> None:
    expected = [
        [written(state), written(signal), written(after)]
        for state, legal in moves.items()
        for signal, after in legal.items()
    ]
    assert table(ROOT / "docs/design.md", f"{kind} | on") == expected


def test_what_is_awaited_of_a_client_is_shown() -> None:
    expected = [
        [state.value, ", ".join(sorted(each.value for each in after))] for state, after in AWAITED_MOVES.items()
    ]
    assert table(ROOT / "docs/design.md", "awaited | then") == expected


def test_the_reactions_shown_are_the_tables() -> None:
    expected = [[*map(written, state), reaction.value] for state, reaction in REACTIONS.items()]
    assert table(ROOT / "docs/design.md", "upstream | client") == expected


def test_the_leave_shown_is_the_table() -> None:
    expected = [
        [mode, written(state), written(word), written(after)]
        for mode, moves in MOVES.items()
        for state, row in moves.items()
        for word, after in row.items()
    ]
    assert table(ROOT / "docs/design.md", "mode | state | on") == expected


def test_what_a_leave_means_is_the_table() -> None:
    expected = [[written(state), *map(written, dataclasses.astuple(doing))] for state, doing in DOINGS.items()]
    assert table(ROOT / "docs/design.md", "leave") == expected


# Typed events


def fields_of(kind: type[msgspec.Struct]) -> list[str]:
    """Field names in their order; "?" marks one that may be left out."""
    return [field.encode_name + ("" if field.required else "?") for field in msgspec.structs.fields(kind)]


def test_the_table_of_events_is_the_vocabulary() -> None:
    rows = table(ROOT / "docs/typed-events.md", "event")
    assert {TICKED.findall(name)[0]: TICKED.findall(data) for name, _, data in rows} == {
        name: fields_of(kind) for name, kind in PAYLOADS.items()
    }


def transcripts() -> Iterable[str]:
    for page in PAGES:
        for _, text in FENCE.findall(page.read_text()):
            begin = text.find("id: ")
            if begin >= 0 and "\nevent: done" in text:
                yield text[begin:]


def test_every_transcript_shown_is_of_the_protocol() -> None:
    shown = list(transcripts())
    assert len(shown) == 2
    for transcript in shown:
        names = []
        for number, frame in enumerate(transcript.strip().split("\n\n"), start=1):
            fields = dict(line.split(": ", 1) for line in frame.splitlines())
            assert list(fields) == ["id", "event", "data"]
            assert fields["id"].endswith(f"-{number}")
            names.append(fields["event"])
            data = msgspec.json.decode(fields["data"], type=PAYLOADS[names[-1]])
            assert msgspec.json.decode(msgspec.json.encode(data)) == json.loads(fields["data"])
        assert names[0] == "start"
        assert names[-1] == "done"
        assert names.count("done") == 1


# Limits


def default_of(rows: Iterable[list[str]], key: str) -> str:
    return next(row[1] for row in rows if row[0].startswith(f"`{key}`")).strip("`")


def test_the_limits_shown_are_the_defaults() -> None:
    limits, timeouts, settings = Limits(), Timeouts(), Settings({}, ())
    sizes = {
        "buffer": limits.buffer_bytes,
        "max_body": limits.max_body_bytes,
        "max_frame": limits.max_frame_bytes,
        "max_buffered": settings.max_buffered_bytes,
        "max_header": settings.max_header_bytes,
    }
    connections = Connections()
    durations = {
        "stall_timeout": limits.stall_timeout_s,
        "heartbeat": Route("", ()).heartbeat_s,
        "connections.header_timeout": connections.header_timeout_s,
        "connections.body_timeout": connections.body_timeout_s,
    }
    deadlines = {
        "connect": timeouts.connect_s,
        "first_token": timeouts.first_token_s,
        "idle": timeouts.idle_s,
        "total": timeouts.total_s,
    }
    reference = list(every_table(ROOT / "docs/configuration.md", "key"))
    for rows, prefixes in ((table(README, "what"), ("", "")), (reference, ("limits.", "timeouts."))):
        for name, size in sizes.items():
            prefix = prefixes[0] if name in {"buffer", "max_body", "max_frame"} else ""
            assert default_of(rows, prefix + name) == format_size(size)
        for name, duration_s in durations.items():
            prefix = prefixes[0] if name == "stall_timeout" else ""
            assert parse_duration(default_of(rows, prefix + name)) == duration_s
    for name, duration_s in deadlines.items():
        shown = table(README, "deadline (`timeouts` of an upstream)")
        assert parse_duration(default_of(shown, name)) == duration_s
        assert parse_duration(default_of(reference, f"timeouts.{name}")) == duration_s


def every_table(page: Path, first_column: str) -> Iterable[list[str]]:
    """The rows of all tables that begin with this column."""
    inside = False
    for line in page.read_text().splitlines():
        if line.startswith(f"| {first_column} |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("| ---"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


# The reader


HARNESS = """
const [body, size] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const bytes = new TextEncoder().encode(body);
globalThis.fetch = async () => {
  const pieces = [];
  for (let at = 0; at < bytes.length; at += size) pieces.push(bytes.slice(at, at + size));
  return new Response(new ReadableStream({
    pull(controller) {
      if (pieces.length) controller.enqueue(pieces.shift());
      else controller.close();
    },
  }), { headers: { "X-Stream-Format": "typed" } });
};
const seen = [];
streamTyped("http://sidecar/", {}, (event, data) => seen.push([event, data]))
  .then((done) => console.log(JSON.stringify({ seen, done })))
  .catch((error) => console.log(JSON.stringify({ seen, error: error.message })));
"""


def read_in_javascript(body: str, piece_bytes: int) -> dict[str, object]:
    (reader,) = blocks(README, "js")
    assert NODE is not None
    run = subprocess.run(
        [NODE, "--eval", reader + HARNESS],
        input=json.dumps([body, piece_bytes]),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    answer: dict[str, object] = json.loads(run.stdout)
    return answer


STREAM = (
    'id: s-1\nevent: start\ndata: {"stream":"s"}\n\n: keep-alive\n\n'
    'id: s-2\nevent: token\ndata: {"index":0,"text":"é: \\n"}\n\n'
)
DONE = 'id: s-3\nevent: done\ndata: {"status":"completed"}\n\n'


@pytest.mark.optional_platform
@pytest.mark.skipif(NODE is None, reason="needs node to run the JavaScript reader")
@pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
def test_the_javascript_reader_takes_done_for_the_authority(piece_bytes: int) -> None:
    start, token, done = {"stream": "s"}, {"index": 0, "text": "é: \n"}, {"status": "completed"}
    whole = read_in_javascript(STREAM + DONE, piece_bytes)
    assert whole == {"seen": [["start", start], ["token", token], ["done", done]], "done": done}
    cut = read_in_javascript(STREAM + DONE[:-1], piece_bytes)
    assert cut == {"seen": [["start", start], ["token", token]], "error": "cut: the stream ended without done"}


def test_the_javascript_reader_is_short() -> None:
    (reader,) = blocks(README, "js")
    assert len(reader.splitlines()) <= 36
