"""Arrivals of an open loop: each is taken once, by the first user in line, or counted as unsent."""

from __future__ import annotations

import gevent
from hypothesis import given
from hypothesis import strategies as st

from loadtest.workers.schedule import Schedule

START_NS = 7_000_000_000


class Clock:
    """Stands still until it is told the time, seconds after the start of the stage."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns

    def go_to(self, elapsed_s: float) -> None:
        self.now_ns = START_NS + int(elapsed_s * 1e9)


def counts(schedule: Schedule) -> tuple[float, float, float]:
    signals = schedule.signals()
    return signals["client_due_total"], signals["client_backlog"], signals["client_unsent_total"]


def test_nobody_waits_in_a_closed_loop_and_nothing_is_counted() -> None:
    schedule = Schedule(Clock())
    schedule.begin(None, START_NS)
    assert schedule.take() is None
    assert schedule.signals() == {}


def test_an_arrival_keeps_its_due_time_however_late_it_is_taken() -> None:
    schedule = Schedule(clock := Clock())
    schedule.begin((0.5, 1.0, 3.0), START_NS)
    clock.go_to(2.0)
    assert [schedule.take(), schedule.take()] == [START_NS + 500_000_000, START_NS + 1_000_000_000]
    assert counts(schedule) == (2, 0, 0)


def test_who_is_ended_while_waiting_takes_no_arrival_along() -> None:
    schedule = Schedule(clock := Clock())
    schedule.begin((60.0,), START_NS)
    waiting = [gevent.spawn(schedule.take) for _ in range(2)]
    gevent.idle()
    gevent.killall(waiting)
    clock.go_to(61.0)
    assert schedule.take() == START_NS + 60_000_000_000


def test_users_in_line_take_the_next_stages_arrivals() -> None:
    schedule = Schedule(clock := Clock())
    schedule.begin((60.0,), START_NS)
    waiting = gevent.spawn(schedule.take)
    gevent.idle()
    clock.go_to(1.0)
    schedule.begin((0.0,), clock.now_ns)
    assert waiting.get(timeout=5) == clock.now_ns
    schedule.begin((60.0,), clock.now_ns)
    waiting = gevent.spawn(schedule.take)
    gevent.idle()
    schedule.begin(None, clock.now_ns)
    assert waiting.get(timeout=5) is None, "a closed loop begins: send at once"


def test_after_the_end_nobody_is_let_through() -> None:
    schedule = Schedule(Clock())
    schedule.begin((60.0,), START_NS)
    waiting = gevent.spawn(schedule.take)
    gevent.idle()
    schedule.end()
    gevent.idle()
    assert not waiting.ready()
    waiting.kill()


@given(
    times_s=st.lists(st.floats(0, 100), max_size=30).map(sorted),
    taken=st.integers(0, 30),
    ends_s=st.floats(0, 120),
)
def test_due_is_what_was_taken_and_what_was_not(times_s: list[float], taken: int, ends_s: float) -> None:
    schedule = Schedule(clock := Clock())
    schedule.begin(times_s, START_NS)
    clock.go_to(ends_s)
    due = [time_s for time_s in times_s if START_NS + int(time_s * 1e9) <= clock.now_ns]
    got = [schedule.take() for _ in range(min(taken, len(due)))]
    assert got == [START_NS + int(time_s * 1e9) for time_s in due[: len(got)]]
    assert counts(schedule) == (len(due), len(due) - len(got), 0)
    schedule.end()
    assert counts(schedule) == (len(due), 0, len(due) - len(got))
