"""The state of one stream: the tables of moves, the marks of time, the one outcome."""

from __future__ import annotations

import itertools

import pytest

from sidecar.errors import Failure, Outcome
from sidecar.events import Extension, Finish, Media, Reasoning, Refusal, Start, Token, ToolCall, UpstreamError, Usage
from sidecar.session import (
    CLIENT_MOVES,
    REACTIONS,
    UPSTREAM_MOVES,
    ClientState,
    IllegalMoveError,
    Reaction,
    Session,
    Signal,
    UpstreamState,
)

JOINT = list(itertools.product(UpstreamState, ClientState, Signal))
BEFORE_END = {UpstreamState.QUEUED, UpstreamState.CONNECTING, UpstreamState.WAITING, UpstreamState.STREAMING}


def in_state(upstream: UpstreamState, client: ClientState, *, has_sent: bool = False) -> Session:
    session = Session(0.0)
    session.upstream, session.client, session.has_sent = upstream, client, has_sent
    return session


def waiting() -> Session:
    return in_state(UpstreamState.WAITING, ClientState.ATTACHED)


@pytest.mark.parametrize(("upstream", "client", "signal"), JOINT)
def test_each_move_follows_its_table_or_raises(upstream: UpstreamState, client: ClientState, signal: Signal) -> None:
    session = in_state(upstream, client)
    upstream_next, client_next = UPSTREAM_MOVES[upstream].get(signal), CLIENT_MOVES[client].get(signal)
    if upstream_next is None and client_next is None:
        with pytest.raises(IllegalMoveError, match=f"{signal.value} while {upstream.value}/{client.value}"):
            session.move(signal)
        assert (session.upstream, session.client) == (upstream, client)
    else:
        session.move(signal)
        assert (session.upstream, session.client) == (upstream_next or upstream, client_next or client)


def test_the_tables_know_every_state_and_signal() -> None:
    assert set(UPSTREAM_MOVES) == set(UpstreamState)
    assert set(CLIENT_MOVES) == set(ClientState)
    known = {signal for row in UPSTREAM_MOVES.values() for signal in row}
    assert known | {signal for row in CLIENT_MOVES.values() for signal in row} == set(Signal)


def test_every_joint_state_has_a_reaction() -> None:
    assert set(REACTIONS) == set(itertools.product(UpstreamState, ClientState, (False, True)))


@pytest.mark.parametrize(("upstream", "client", "has_sent"), list(REACTIONS))
def test_reactions_are_those_of_the_design(upstream: UpstreamState, client: ClientState, has_sent: bool) -> None:
    reaction = in_state(upstream, client, has_sent=has_sent).reaction
    if upstream in BEFORE_END:
        expected = Reaction.CARRY_ON if client is ClientState.ATTACHED else Reaction.ABORT_UPSTREAM
    elif upstream is UpstreamState.FAILED and client is ClientState.ATTACHED:
        expected = Reaction.TELL_CLIENT if has_sent else Reaction.TRY_NEXT
    else:
        expected = Reaction.CLOSE
    assert reaction is expected


def test_the_reaction_follows_every_move() -> None:
    session = waiting()
    reactions = []
    for signal in (Signal.CONTENT, Signal.CLIENT_GONE, Signal.UPSTREAM_FAILED):
        session.move(signal)
        reactions.append(session.reaction)
    assert reactions == [Reaction.CARRY_ON, Reaction.ABORT_UPSTREAM, Reaction.CLOSE]


@pytest.mark.parametrize(
    "event",
    [Token(0, "a"), Reasoning(0, "a"), Refusal(0, "a"), ToolCall(0, 0, "{"), Media(0, "audio", "audio/wav", "AA==")],
)
def test_content_begins_the_stream(event: Token) -> None:
    session = waiting()
    session.advance([event], 5.0)
    session.advance([event], 7.0)
    assert session.upstream is UpstreamState.STREAMING
    assert (session.first_content_at, session.last_content_at, session.content_events) == (5.0, 7.0, 2)


@pytest.mark.parametrize(
    "event",
    [
        Start("r", "m"),
        Token(0, ""),
        Reasoning(0, "", signature="s"),
        Refusal(0, ""),
        ToolCall(0, 0, id="c", name="f"),
        Media(0, "audio", "audio/wav", ""),
        Extension("ping", {}),
        Usage(1, 2, 3),
        Finish(0, "stop", "stop"),
    ],
)
def test_what_bears_no_content_leaves_it_waiting(event: Token) -> None:
    session = waiting()
    session.advance([event], 5.0)
    assert session.upstream is UpstreamState.WAITING
    assert session.first_content_at is None


def test_the_last_usage_and_the_first_error_stand() -> None:
    session = waiting()
    session.advance(
        [Usage(output_tokens=1), UpstreamError("first"), Usage(output_tokens=2), UpstreamError("then")], 1.0
    )
    assert session.usage == Usage(output_tokens=2)
    assert session.upstream_error == UpstreamError("first")


def test_finish_marks_are_told_in_the_order_of_their_choices() -> None:
    session = waiting()
    session.advance([Finish(2, "length", "l"), Finish(0, "stop", "s"), Finish(2, "tool_calls", "t")], 1.0)
    ended = session.ended(Outcome.COMPLETED, None, 2.0)
    assert ended.finish_reasons == [Finish(0, "stop", "s"), Finish(2, "tool_calls", "t")]


def test_the_first_announcement_stands() -> None:
    session = waiting()
    assert session.end(Outcome.CLIENT_CANCELLED, 3.0)
    assert not session.end(Outcome.INTERNAL, 4.0, Failure("internal", "late"))
    assert (session.outcome, session.failure, session.ended_at) == (Outcome.CLIENT_CANCELLED, None, 3.0)


def test_what_the_client_is_told_is_in_milliseconds() -> None:
    session = Session(10.0)
    session.upstream = UpstreamState.WAITING
    session.advance([Token(0, "a")], 10.5)
    session.first_sent_at = 10.25
    ended = session.ended(Outcome.TIMED_OUT, Failure("idle_timeout", "idle"), 12.0)
    assert (ended.status, ended.ttft_ms, ended.duration_ms, ended.content_events) == ("timed_out", 250.0, 2000.0, 1)


def test_no_content_has_no_ttft() -> None:
    assert waiting().ended(Outcome.COMPLETED, None, 1.0).ttft_ms is None
