"""Tokens that come several to a read were held back, and by whom decides what the wall is called."""

from __future__ import annotations

from typing import Any

import pytest
from fake_run import FakeRun, FakeStage, verdict_of

from loadtest.records import RequestRecord
from loadtest.reporter import question
from loadtest.reporter.bursts import burst_ratio
from loadtest.reporter.observation import Wall, Window
from loadtest.request_table import RequestTable
from loadtest.workers.reply import Reply, gap_quantile_s

MS = 1_000_000
WINDOW = Window(index=0, label="8 users", users=8, start_ns=0, settled_ns=0, end_ns=10**12)
CLIENT_LAG_S = 0.002


def answer(reads_of: list[int], *, step_ms: int = 20, **more: Any) -> RequestRecord:
    """A good answer whose reads carry so many token events each, one event a step of the engine."""
    reply, at_ns = Reply(is_stream=True), 0
    for events in reads_of:
        at_ns += events * step_ms * MS
        reply.date_tokens(events, at_ns)
    fields: dict[str, Any] = {
        "worker": 0,
        "seq": 0,
        "outcome": "ok",
        "endpoint": "chat",
        "planned_input_tokens": 1,
        "planned_output_tokens": 64,
        "intended_ns": 0,
        "first_token_ns": reply.first_token_ns,
        "last_token_ns": reply.last_token_ns,
        "done_ns": at_ns,
        "output_tokens": 64,
        "chunks": reply.chunks,
        "coalesced_reads": reply.coalesced_reads,
        "gap_p50_s": gap_quantile_s(reply.sorted_gaps_ns(), 0.5),
    }
    return RequestRecord(**{**fields, **more})


def ratio(*answers: RequestRecord, lag_s: float | None = CLIENT_LAG_S) -> float | None:
    return question.answer(RequestTable.of(answers), burst_ratio([WINDOW], lag_s))


@pytest.mark.parametrize(
    ("reads_of", "share"),
    [([1] * 64, 0.0), ([2] * 32, 1.0), ([8] * 8, 1.0), ([64], 1.0), ([1] * 40 + [2] * 12, 0.0)],
)
def test_an_answer_is_in_bursts_when_most_tokens_came_with_the_one_before(
    reads_of: list[int], share: float
) -> None:
    assert ratio(answer(reads_of)) == share


def test_it_is_a_share_of_the_answers() -> None:
    assert ratio(answer([8] * 8), *[answer([1] * 64)] * 3) == 0.25


def test_several_tokens_in_one_event_are_no_burst() -> None:
    """As --stream-interval 8 sends them: 64 tokens in eight events, a read each."""
    assert ratio(answer([1] * 8, step_ms=160)) == 0.0


def test_who_was_late_himself_cannot_tell() -> None:
    assert ratio(answer([8] * 8), lag_s=0.019) == 1.0
    assert ratio(answer([8] * 8), lag_s=0.021) is None
    assert ratio(answer([8] * 8), lag_s=None) is None


@pytest.mark.parametrize(
    "silent", [answer([7]), answer([8] * 8, outcome="truncated"), answer([8] * 8, gap_p50_s=None)]
)
def test_short_and_broken_answers_tell_nothing(silent: RequestRecord) -> None:
    assert ratio(silent) is None
    assert ratio() is None


def wall_of(**more: Any) -> Wall:
    fast = FakeStage(users=16)
    broken = FakeStage(**{"users": 24, "slow_share": 0.5, **more})
    return verdict_of(FakeRun(stages=(fast, broken))).observation.wall


def test_a_level_that_breaks_in_bursts_met_the_network() -> None:
    wall = wall_of(burst_share=0.9)
    assert wall.name == "network"
    assert "90% of the answers at 24 users came in bursts" in wall.evidence


def test_half_of_the_answers_or_fewer_do_not_name_it() -> None:
    assert wall_of(burst_share=0.4).name == wall_of(burst_share=0.0).name == "slo"


def test_what_the_client_did_is_not_the_network() -> None:
    assert wall_of(burst_share=0.9, lateness_s=0.1).name == "client"


def test_bursts_in_a_level_that_held_are_no_wall() -> None:
    verdict = verdict_of(FakeRun(stages=(FakeStage(users=16, burst_share=1.0),)))
    assert verdict.observation.wall.name == "none"
