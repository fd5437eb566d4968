"""What a search hears of one load process: which requests were sent, and which of them break a limit.

A request is judged once: at its end, or as soon as it is past a limit whatever comes. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from loadtest.records import RequestRecord
from loadtest.scenario import Limits
from loadtest.violations import violates
from loadtest.workers.reply import Reply

Ended = tuple[int, float | None, float]
"""Of a request that succeeded: when it was intended, nanoseconds; TTFT and whole time, seconds."""


NEWS: Final = ("sent", "judged", "dropped", "failed", "ended")


class Line(Protocol):
    """Where an answer comes in."""

    @property
    def reply(self) -> Reply | None:
        """The answer that is read now; None before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgements:
    """What happened since the last of it, by request id. Ids are `worker/seq`."""

    sent: Sequence[tuple[str, int]] = ()
    """With the moment it was intended, nanoseconds of the rows' clock."""
    judged: Sequence[tuple[str, bool]] = ()
    """With whether it violates."""
    dropped: Sequence[tuple[str]] = ()
    """We cut them short ourselves before they broke a limit."""
    failed: Sequence[tuple[str]] = ()
    """They did not succeed; each is `judged` as well."""
    ended: Sequence[Ended] = ()

    def message(self) -> dict[str, Any]:
        """Plain data for a Locust message."""
        return {name: list(getattr(self, name)) for name in NEWS}


def judgements_of(message: Mapping[str, Any]) -> Judgements:
    return Judgements(**{name: [tuple(one) for one in message[name]] for name in NEWS})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A request that is not judged yet."""

    intended_ns: int
    planned_output_tokens: int
    line: Line


class Docket:
    """One for each load process of a search."""

    def __init__(self, worker: int, limits: Limits) -> None:
        self._worker = worker
        self._limits = limits
        self._open: dict[int, _Open] = {}
        self._sent: list[tuple[str, int]] = []
        self._judged: list[tuple[str, bool]] = []
        self._dropped: list[tuple[str]] = []
        self._failed: list[tuple[str]] = []
        self._ended: list[Ended] = []

    def sent(self, seq: int, intended_ns: int, planned_output_tokens: int, line: Line) -> None:
        """Just before `line` takes the request."""
        self._open[seq] = _Open(
            intended_ns=intended_ns, planned_output_tokens=planned_output_tokens, line=line
        )
        self._sent.append((self._id(seq), intended_ns))

    def ended(self, record: RequestRecord) -> None:
        """One that we cut short ourselves says nothing, unless it had broken a limit by then."""
        is_judged = self._open.pop(record.seq, None) is None
        if record.succeeded:
            self._ended.append((record.intended_ns, record.ttft_s, record.e2e_s))
        elif record.outcome != "client_cancel":
            self._failed.append((self._id(record.seq),))
        verdict = violates(record, self._limits)
        if is_judged:
            return
        if verdict is None:
            self._dropped.append((self._id(record.seq),))
        else:
            self._judged.append((self._id(record.seq), verdict))

    def taken(self, now_ns: int) -> Judgements:
        """All since the last call; those under way are looked at now."""
        late = [seq for seq, one in self._open.items() if _is_too_late(one, self._limits, now_ns)]
        for seq in late:
            del self._open[seq]
            self._judged.append((self._id(seq), True))
        news = Judgements(
            sent=self._sent,
            judged=self._judged,
            dropped=self._dropped,
            failed=self._failed,
            ended=self._ended,
        )
        self._sent, self._judged, self._dropped, self._failed, self._ended = [], [], [], [], []
        return news

    def _id(self, seq: int) -> str:
        return f"{self._worker}/{seq}"


def _is_too_late(one: _Open, limits: Limits, now_ns: int) -> bool:
    """It will violate, whatever still comes."""
    waited_s = (now_ns - one.intended_ns) / 1e9
    if limits.e2e_s is not None and waited_s > limits.e2e_s:
        return True
    reply = one.line.reply
    first_ns = None if reply is None else reply.first_token_ns
    if reply is None or first_ns is None:
        return limits.ttft_s is not None and waited_s > limits.ttft_s
    if limits.ttft_s is not None and (first_ns - one.intended_ns) / 1e9 > limits.ttft_s:
        return True
    assert reply.last_token_ns is not None
    # it may end sooner than planned, which makes the mean over its tokens no better
    later_tokens = one.planned_output_tokens - reply.first_chunk_tokens
    spent_s = (reply.last_token_ns - first_ns) / 1e9
    return limits.tpot_s is not None and later_tokens > 0 and spent_s > limits.tpot_s * later_tokens
