"""The published schema is what the code writes."""

from __future__ import annotations

from pathlib import Path

from sidecar.formats.payloads import PAYLOADS
from sidecar.formats.schema import events_schema, render

PUBLISHED = Path(__file__).parent.parent / "docs" / "events.schema.json"


def test_published_schema_is_the_generated_one() -> None:
    assert PUBLISHED.read_text(encoding="utf-8") == render(), (
        "run: python -m sidecar.formats.schema > docs/events.schema.json"
    )


def test_schema_defines_the_data_of_every_event() -> None:
    schema = events_schema()
    assert list(schema["properties"]) == list(PAYLOADS)
    for reference in schema["properties"].values():
        assert reference["$ref"].removeprefix("#/$defs/") in schema["$defs"]


def test_optional_fields_are_not_required() -> None:
    definitions = events_schema()["$defs"]
    assert definitions["TokenData"]["required"] == ["index", "text"]
    assert definitions["StartData"]["required"] == ["stream", "route", "upstream", "model", "created"]
    assert definitions["ErrorData"]["required"] == ["code", "message", "retryable"]
    assert "warnings" not in definitions["DoneData"]["required"]
