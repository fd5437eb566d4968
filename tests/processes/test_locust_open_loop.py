"""Open loops and conversations with real Locust: arrivals are kept to, whoever sends them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from locust_process import run_of, start_locust, two_processes
from token_server import TOKEN_S, token_server

from loadtest.conductor.signoff import running_twin
from loadtest.records import RequestRecord
from loadtest.results import RunRows
from loadtest.scenario import parse_scenario
from loadtest.workload.arrivals import arrival_times_s

HEADLESS = ("--headless", "--only-summary", "--scenario", "load.yaml", "--runs-dir", "runs")
OPEN = """
name: open
seed: 5
input_tokens: {kind: constant, tokens: 8}
output_tokens: {kind: constant, tokens: 2}
settle_s: 0.5
spawn_rate_per_s: 100
arrivals: {kind: poisson}
stages:
  - {users: 40, rate_per_s: 20, hold_s: 3}
  - {users: 1, rate_per_s: 20, hold_s: 3}
"""
TALK = """
name: talk
endpoint: chat
input_tokens: {kind: constant, tokens: 64}
output_tokens: {kind: constant, tokens: 8}
session: {turns: {kind: constant, tokens: 3}, think_s: {kind: constant, mean_s: 0.1}}
settle_s: 0.5
spawn_rate_per_s: 100
stages: [{users: 3, hold_s: 3}]
"""


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    with token_server() as server:
        yield server.url


def drive(home: Path, scenario: str, *options: str) -> RunRows:
    (home / "load.yaml").write_text(scenario)
    process = start_locust(home, [*HEADLESS, *options])
    _, errors = process.communicate(timeout=90)
    folder, rows = run_of(home)
    assert (process.returncode, folder.read_manifest().state) == (0, "complete"), errors
    return rows


def last_signals(rows: RunRows) -> list[dict[str, float]]:
    """What each load process said last of its arrivals."""
    last = {sample.target: dict(sample.signals) for sample in rows.samples if sample.source == "client"}
    return list(last.values())


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_are_intended_when_the_law_says_and_what_was_not_sent_is_counted(
    tmp_path: Path, host: str, workers: int
) -> None:
    rows = drive(tmp_path, OPEN, "--host", host, *(two_processes() if workers == 2 else ()))
    stages = [event for event in rows.events if event.event == "stage"]
    assert [stage.data["rate_per_s"] for stage in stages] == [20, 20]
    end_ns = [stages[1].at_ns, next(e.at_ns for e in rows.events if e.event == "run_end")]
    for index, stage in enumerate(stages):
        laws = [due_ns for due_ns in law(rows, index, stage.at_ns) if due_ns < end_ns[index]]
        sent = [r.intended_ns for r in rows.requests if stage.at_ns <= r.intended_ns < end_ns[index]]
        assert set(sent) <= set(laws), "nothing is sent but what was due"
        assert len(sent) == len(set(sent)), "by one user each"
        if index == 0:
            assert set(sent) >= set(laws[:-20]), "forty users are enough for twenty a second"
        else:
            assert len(sent) < len(laws), "one user is not"
    assert sum(one["client_due_total"] - one["client_unsent_total"] for one in last_signals(rows)) == len(
        rows.requests
    )


def law(rows: RunRows, index: int, start_ns: int) -> list[int]:
    """When requests of a stage are due, by its seed alone."""

    scenario = parse_scenario(yaml.safe_load(OPEN))
    times_s = arrival_times_s(scenario.arrivals, 20, f"{scenario.seed}/{index}", 0, 1)
    return [start_ns + int(time_s * 1e9) for time_s, _ in zip(times_s, range(200), strict=False)]


def test_an_arrival_that_waited_for_a_user_is_late_and_the_client_is_not(tmp_path: Path, host: str) -> None:
    crowded = OPEN.replace("users: 40, rate_per_s: 20", "users: 2, rate_per_s: 60")
    rows = drive(tmp_path, crowded, "--host", host)
    waited = [r for r in rows.requests if r.free_ns is not None and r.free_ns > r.intended_ns]
    assert len(waited) > 5
    for request in waited:
        assert request.ttft_s is not None
        assert request.free_ns is not None
        assert request.e2e_s >= (request.free_ns - request.intended_ns) / 1e9 + TOKEN_S
        assert request.send_lateness_s is not None
        assert request.send_lateness_s <= request.e2e_s - (request.free_ns - request.intended_ns) / 1e9


def test_a_conversation_keeps_its_user_its_connection_and_its_think_time(tmp_path: Path) -> None:
    with running_twin("tiny") as host:
        rows = drive(tmp_path, TALK, "--host", host)
    conversations: defaultdict[int, list[RequestRecord]] = defaultdict(list)
    for request in rows.requests:
        assert request.session is not None
        conversations[request.session].append(request)
    assert all(turns[0].seq == session for session, turns in conversations.items())
    whole = [turns for turns in conversations.values() if len(turns) == 3 and turns[-1].succeeded]
    assert len(whole) >= 3
    for turns in whole:
        assert [turn.turn for turn in turns] == [0, 1, 2]
        assert Counter(turn.reused_connection for turn in turns[1:]) == {True: 2}
        for before, turn in pairwise(turns):
            assert turn.intended_ns - before.done_ns == 100_000_000, "latency begins when the thinking ends"
            assert turn.input_tokens == turn.planned_input_tokens
            assert before.input_tokens is not None
            assert before.output_tokens is not None
            assert turn.planned_input_tokens >= before.input_tokens + before.output_tokens + 64, (
                "all was sent again"
            )
