"""A server that hangs ends the load; one that is slow, or has nothing to do, does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from loadtest.records import Outcome, RequestRecord
from loadtest.scenario import Timeouts
from loadtest.workers.watchdog import ANSWERS_KEPT, Watchdog, silence_limit_s

S = 1_000_000_000
LIMITS = Timeouts(first_token_s=60.0, between_tokens_s=30.0)


def at(last_token_ns: int | None) -> Callable[[], int | None]:
    return lambda: last_token_ns


def test_requests_that_wait_longer_than_any_may_end_the_load_with_one_sentence() -> None:
    dog = Watchdog(LIMITS, 0)
    assert dog.look(60 * S, 8, at(None)) is None
    died = dog.look(61 * S, 8, at(None))
    assert died is not None
    assert "nothing for 61 s while 8 requests" in str(died)
    assert died.exit_code == 3


def test_one_stream_that_still_gets_tokens_is_a_server_that_lives() -> None:
    dog = Watchdog(LIMITS, 0)
    assert [dog.look(now * S, 8, at((now - 59) * S)) for now in range(60, 600)] == [None] * 540
    assert dog.look(660 * S, 8, at(540 * S)) is not None


def test_tokens_of_a_user_that_left_still_count() -> None:
    dog = Watchdog(LIMITS, 0)
    barks(dog, ended(55, "client_cancel", last_token_ns=50 * S))
    assert dog.look(100 * S, 8, at(None)) is None
    assert dog.look(111 * S, 8, at(None)) is not None


def test_streams_are_not_looked_at_while_requests_end_well() -> None:
    def never() -> int | None:
        raise AssertionError("a thousand streams would be looked at")

    dog = Watchdog(LIMITS, 0)
    barks(dog, ended(10, "ok", last_token_ns=10 * S))
    assert dog.look(70 * S, 8, never) is None


def test_a_time_without_requests_is_no_silence() -> None:
    dog = Watchdog(LIMITS, 0)
    dog.look(500 * S, 0, at(10 * S))
    assert dog.look(501 * S, 1, at(10 * S)) is None
    assert dog.look(561 * S, 1, at(10 * S)) is not None


@pytest.mark.parametrize(
    ("gaps_p99_s", "limit_s"),
    [([], 60.0), ([0.05, 0.06], 60.0), ([12.0], 60.0), ([20.0, 20.0, 21.0], 100.0), ([0.1, 0.1, 29.0], 60.0)],
)
def test_a_silence_is_five_times_the_usual_gap_of_a_slow_server(
    gaps_p99_s: list[float], limit_s: float
) -> None:
    assert silence_limit_s(LIMITS, gaps_p99_s) == limit_s


def test_a_server_as_slow_as_it_was_before_does_not_hang() -> None:
    dog = Watchdog(LIMITS, 0)
    barks(dog, *(ended(9, "ok", last_token_ns=9 * S, gap_p99_s=20.0) for _ in range(3)))
    assert dog.look(108 * S, 2, at(None)) is None
    assert dog.look(110 * S, 2, at(None)) is not None


def test_it_is_the_latest_good_answers_that_say_what_is_usual() -> None:
    dog = Watchdog(LIMITS, 0)
    slow = [ended(1, "ok", gap_p99_s=20.0)] * ANSWERS_KEPT
    barks(dog, *slow, *[ended(1, "client_cancel", gap_p99_s=29.0)] * ANSWERS_KEPT)
    assert dog.look(100 * S, 2, at(None)) is None
    assert dog.look(102 * S, 2, at(None)) is not None
    barks(dog, *[ended(3, "ok", gap_p99_s=0.1)] * ANSWERS_KEPT)
    assert dog.look(64 * S, 2, at(None)) is not None


def ended(at_s: float, outcome: Outcome, **more: Any) -> RequestRecord:
    return RequestRecord(
        worker=0,
        seq=0,
        outcome=outcome,
        endpoint="chat",
        planned_input_tokens=1,
        planned_output_tokens=1,
        intended_ns=0,
        done_ns=int(at_s * S),
        **more,
    )


def barks(dog: Watchdog, *records: RequestRecord) -> list[str]:
    return [str(error) for record in records if (error := dog.ended(record)) is not None]


@pytest.mark.parametrize("outcome", ["connect_refused", "reset_midstream", "http_5xx", "stream_error"])
def test_nothing_but_failures_for_five_seconds_is_a_dead_server(outcome: Outcome) -> None:
    dog = Watchdog(LIMITS, 0)
    barks(dog, ended(9, "ok", last_token_ns=9 * S), *(ended(10 + n, outcome) for n in range(3)))
    assert dog.look(15 * S, 2, at(None)) is None
    died = dog.look(16 * S, 2, at(None))
    assert died is not None
    assert "the last 3 requests failed" in str(died)


@pytest.mark.parametrize("outcome", ["http_429", "http_503_admission", "http_4xx", "ok"])
def test_a_server_that_says_no_is_alive(outcome: Outcome) -> None:
    dog = Watchdog(LIMITS, 0)
    barks(dog, *(ended(10 + n, "http_5xx") for n in range(9)), ended(19, outcome))
    assert dog.look(25 * S, 2, at(None)) is None


def test_a_token_of_anybody_is_a_sign_of_life() -> None:
    dog = Watchdog(LIMITS, 0)
    barks(dog, *(ended(10 + n, "http_5xx") for n in range(9)))
    assert dog.look(25 * S, 2, at(19 * S)) is None


def test_while_more_requests_wait_than_failed_nobody_is_dead() -> None:
    dog = Watchdog(LIMITS, 0)
    barks(dog, *(ended(10, "http_5xx") for _ in range(9)))
    assert dog.look(16 * S, 10, at(None)) is None
    assert dog.look(16 * S, 9, at(None)) is not None


def test_users_that_rest_after_they_all_stalled_do_not_hide_the_silence() -> None:
    dog = Watchdog(LIMITS, 0)
    barks(dog, *(ended(60, "stall_ttft") for _ in range(4)))
    assert dog.look(61 * S, 0, at(None)) is not None


def test_the_third_of_the_first_answers_that_refuse_ends_the_load_with_the_servers_words() -> None:
    dog = Watchdog(LIMITS, 0)
    refusal = ended(1, "http_4xx", http_status=401, error="bad key")
    assert barks(dog, refusal, refusal) == []
    (sentence,) = barks(dog, refusal)
    assert "refused the first 3 requests (401: bad key)" in sentence


def test_refusals_after_an_answer_are_rows_and_no_more() -> None:
    dog = Watchdog(LIMITS, 0)
    assert barks(dog, ended(1, "ok"), *(ended(n, "http_4xx") for n in range(2, 20))) == []
