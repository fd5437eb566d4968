"""A server that hangs ends the load; one that is slow, or has nothing to do, does not."""

from __future__ import annotations

from loadtest.scenario import Timeouts
from loadtest.workers.watchdog import Watchdog

S = 1_000_000_000
LIMITS = Timeouts(first_token_s=60.0, between_tokens_s=30.0)


def test_requests_that_wait_longer_than_any_may_end_the_load_with_one_sentence() -> None:
    dog = Watchdog(LIMITS, 0)
    assert dog.look(60 * S, 8, None) is None
    sentence = dog.look(61 * S, 8, None)
    assert sentence is not None
    assert "nothing for 61 s while 8 requests" in sentence


def test_one_stream_that_still_gets_tokens_is_a_server_that_lives() -> None:
    dog = Watchdog(LIMITS, 0)
    assert [dog.look(now * S, 8, (now - 59) * S) for now in range(60, 600)] == [None] * 540
    assert dog.look(660 * S, 8, 540 * S) is not None


def test_tokens_of_a_user_that_left_still_count() -> None:
    dog = Watchdog(LIMITS, 0)
    dog.look(50 * S, 8, 50 * S)
    assert dog.look(100 * S, 8, None) is None


def test_a_time_without_requests_is_no_silence() -> None:
    dog = Watchdog(LIMITS, 0)
    dog.look(500 * S, 0, 10 * S)
    assert dog.look(501 * S, 1, 10 * S) is None
    assert dog.look(561 * S, 1, 10 * S) is not None
