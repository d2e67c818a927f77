"""Native is the upstream's body byte for byte, and typed the same events, however the body was cut on its way."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sidecar.app import App
from tests.app_support import Reply, asked, before, on_uvloop, request
from tests.replays import Recording, Replay, handmade, recorded, replaying

SEEDS = range(3)


async def relayed(app: App, replay: Replay, recording: Recording, cuts: list[int], format_name: str) -> Reply:
    """The sidecar's answer when the upstream sends this recording in these pieces."""
    replay.answer = recording.answer(cuts)
    headers = [("Content-Type", "application/json"), ("X-Stream-Format", format_name)]
    reply = await asked(app, request("POST", recording.path, b'{"model":"m","stream":true}', headers))
    assert (reply.status, reply.is_whole) == (200, True), recording.name
    return reply


def cuts_of(recording: Recording) -> list[list[int]]:
    return [[], *(recording.random_cuts(seed) for seed in SEEDS)]


async def check_native(recordings: Iterable[Recording]) -> None:
    async with replaying() as replay, before(replay.address) as app:
        for recording in recordings:
            for cuts in cuts_of(recording):
                reply = await relayed(app, replay, recording, cuts, "native")
                assert reply.body == recording.body, recording.name


async def check_typed(recordings: Iterable[Recording]) -> None:
    async with replaying() as replay, before(replay.address) as app:
        for recording in recordings:
            whole, *cut = [
                comparable(await relayed(app, replay, recording, cuts, "typed")) for cuts in cuts_of(recording)
            ]
            assert cut == [whole] * len(cut), recording.name
            assert [name for name, _ in whole if name in {"start", "done"}] == ["start", "done"], recording.name
            assert whole[-1][0] == "done", recording.name


def comparable(reply: Reply) -> list[tuple[str, Any]]:
    """The events less what is different every time."""
    changing = {"stream", "created", "ttft_ms", "duration_ms"}
    return [(name, {key: data[key] for key in data if key not in changing}) for name, data in reply.events()]


@on_uvloop
async def test_native_bytes_of_handmade_streams() -> None:
    await check_native(handmade())


@on_uvloop
async def test_native_bytes_of_recorded_streams(streams_dir: Path) -> None:
    await check_native(recorded(streams_dir))


@on_uvloop
async def test_typed_events_of_handmade_streams() -> None:
    await check_typed(handmade())


@on_uvloop
async def test_typed_events_of_recorded_streams(streams_dir: Path) -> None:
    await check_typed(recorded(streams_dir))
