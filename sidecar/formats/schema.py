"""The JSON Schema of every typed event's data, made from the code that writes it.

Owns how the vocabulary is published. Must not know how it is sent.
``python -m sidecar.formats.schema > docs/events.schema.json`` publishes it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec

from sidecar.formats.payloads import PAYLOADS


def events_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) with one property for each event's name: its value is the event's data."""
    references, definitions = msgspec.json.schema_components(PAYLOADS.values(), ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llm-sidecar typed events: the data of each event, by the event's name",
        "description": "Fields may be added to an event's data; those listed keep their meaning.",
        "type": "object",
        "properties": dict(zip(PAYLOADS, references, strict=True)),
        "additionalProperties": False,
        "$defs": definitions,
    }


def render() -> str:
    """The schema as it is published."""
    return json.dumps(events_schema(), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
