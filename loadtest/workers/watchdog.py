"""When to end the load early: the server hangs, has died, or takes no request of this kind. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from statistics import median
from typing import Final

from estimator.errors import EXIT_UNREACHABLE, PlainError
from loadtest.records import Outcome, RequestRecord
from loadtest.scenario import Timeouts

DEAD_S: Final = 5.0
"""Failures without a sign of life for so long are no hiccup. A server that restarts is back later still."""
FAILURES_MIN: Final = 3
GAPS_OF_SILENCE: Final = 5
"""A server that usually pauses so long between tokens hangs when it has paused so many times as long."""
ANSWERS_KEPT: Final = 100
"""Good answers, the latest, that say what is usual; one that had a bad moment does not."""
SIGNS_OF_DEATH: Final[frozenset[Outcome]] = frozenset(
    {
        *("connect_refused", "connect_timeout", "dns", "tls"),
        *("reset_reused", "reset_fresh", "reset_midstream", "truncated"),
        *("http_5xx", "stream_error", "stall_ttft", "stall_gap", "deadline"),
    }
)
REFUSALS: Final[frozenset[Outcome]] = frozenset({"http_4xx", "bad_payload"})
"""Answers to a request that is wrong, or is at the wrong address: the next one will get the same."""


class ServerDied(PlainError):  # noqa: N818  (reads as what happened)
    """The server answers no more, or generates nothing though it answers."""

    exit_code = EXIT_UNREACHABLE


class ServerRefuses(PlainError):  # noqa: N818  (reads as what happened)
    """The server takes no request of this kind: a matter of key, address or scenario, not of capacity."""


def silence_limit_s(limits: Timeouts, gaps_p99_s: Collection[float]) -> float:
    """How long nobody may get a token before the server hangs, seconds.

    As long as any one request may wait; GAPS_OF_SILENCE times the usual gap where that is longer: the median
    over `gaps_p99_s`, the p99 gap between chunks of each answer.
    """
    usual_s = median(gaps_p99_s) if gaps_p99_s else 0.0
    return max(limits.first_token_s, limits.between_tokens_s, GAPS_OF_SILENCE * usual_s)


class Watchdog:
    """Barks when requests wait and none has received a token for `silence_limit_s`, when nothing but failures
    has come for DEAD_S, and when the very first answers refuse what is asked.

    A single request that stalls is a row; all of them together are a server that hangs. A time without
    requests is no silence, unless it comes after failures.
    """

    def __init__(self, limits: Timeouts, now_ns: int) -> None:
        self._limits = limits
        self._gaps_p99_s: deque[float] = deque(maxlen=ANSWERS_KEPT)
        self._heard_ns = now_ns
        self._failures = 0
        self._failing_since_ns = now_ns
        self._refusals = 0
        self._was_taken = False

    def ended(self, record: RequestRecord) -> ServerRefuses | None:
        """To be told of every request; why the load should stop at once, None while it should not."""
        if record.last_token_ns is not None:
            self._heard(record.last_token_ns)
        if record.outcome in SIGNS_OF_DEATH:
            if not self._failures:
                self._failing_since_ns = record.done_ns
            self._failures += 1
            return None
        if record.outcome == "client_cancel":
            return None
        self._heard(record.done_ns)
        if record.succeeded and record.gap_p99_s is not None:
            self._gaps_p99_s.append(record.gap_p99_s)
        if record.outcome not in REFUSALS:
            self._was_taken = True
            return None
        self._refusals += 1
        if self._was_taken or self._refusals < FAILURES_MIN:
            return None
        return ServerRefuses(
            f"the server refused the first {self._refusals} requests ({record.http_status}: {record.error}), "
            "so the load was stopped: correct --host, the key, the model or the scenario"
        )

    def look(self, now_ns: int, in_flight: int, last_token_ns: Callable[[], int | None]) -> ServerDied | None:
        """Why the load should stop, one sentence; None while all is well.

        last_token_ns: when any user got a token last. To know it every stream is looked at, so it is asked
        only where requests that ended do not show that the server lives.
        """
        limit_s = silence_limit_s(self._limits, self._gaps_p99_s)
        if self._failures or self._silence_s(now_ns) > limit_s:
            token_ns = last_token_ns()
            if token_ns is not None:
                self._heard(token_ns)
        if in_flight == 0 and self._failures < FAILURES_MIN:
            self._heard(now_ns)
        silent_s = self._silence_s(now_ns)
        if silent_s > limit_s:
            return ServerDied(
                f"the server generated nothing for {silent_s:.0f} s while {in_flight} requests waited: "
                "it hangs, so the load was stopped"
            )
        # while more requests wait than have failed, they may yet get their token
        if (
            self._failures >= max(FAILURES_MIN, in_flight)
            and (now_ns - self._failing_since_ns) / 1e9 > DEAD_S
        ):
            return ServerDied(
                f"the last {self._failures} requests failed and no token came for {silent_s:.0f} s: "
                "the server died, so the load was stopped"
            )
        return None

    def _silence_s(self, now_ns: int) -> float:
        return (now_ns - self._heard_ns) / 1e9

    def _heard(self, at_ns: int) -> None:
        """A sign of life; what failed before it was no death."""
        self._heard_ns = max(self._heard_ns, at_ns)
        if at_ns > self._failing_since_ns:
            self._failures = 0
