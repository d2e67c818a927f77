"""Token counts of a stream whose choices each tell their own.

Owns the sum over them. Must not know how any server words a count.
"""

from __future__ import annotations

from sidecar.events import Usage


class ChoiceUsage:
    """What every choice told last, added up. A prompt that several choices share is counted by each, as it is told."""

    __slots__ = ("_told", "_totals")

    def __init__(self) -> None:
        self._told: dict[int, Usage] = {}
        self._totals = Usage()

    def add(self, index: int, usage: Usage) -> Usage:
        """The counts of the stream, now that choice ``index`` told ``usage``; ``native`` is what it told."""
        before = self._told.get(index) or Usage()
        self._told[index] = usage
        totals = self._totals
        self._totals = Usage(
            _moved(totals.input_tokens, before.input_tokens, usage.input_tokens),
            _moved(totals.output_tokens, before.output_tokens, usage.output_tokens),
            _moved(totals.total_tokens, before.total_tokens, usage.total_tokens),
            _moved(totals.cached_input_tokens, before.cached_input_tokens, usage.cached_input_tokens),
            _moved(totals.reasoning_tokens, before.reasoning_tokens, usage.reasoning_tokens),
            usage.native,
        )
        return self._totals


def _moved(total: int | None, before: int | None, now: int | None) -> int | None:
    if now is None and before is None:
        return total
    return (total or 0) - (before or 0) + (now or 0)
