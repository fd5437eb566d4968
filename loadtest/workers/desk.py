"""What one load process holds for its users: where to send, what to send, where rows go.

Locust makes users without arguments, so the desk is found here; the conductor opens it after the fork.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gevent.event import Event as Gate

from estimator.errors import PlainError
from loadtest.live_counts import LiveCounts
from loadtest.made_often import made_often
from loadtest.origin import ApiKey, Origin
from loadtest.row_file import RowWriter
from loadtest.scenario import PATHS, Endpoint, Scenario
from loadtest.stream_counts import Tally
from loadtest.workers.docket import Docket
from loadtest.workers.schedule import Schedule
from loadtest.workers.stream import Connection
from loadtest.workers.watchdog import Watchdog
from loadtest.workload.ask import Ask, Asker

OPEN_S_MAX = 30.0
_AS_JSON: Final = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Script:
    """What the users of one class ask. `name` is what Locust's tables call it. Equal to itself alone."""

    scenario: Scenario
    asker: Asker
    name: str


class NoScript(PlainError):  # noqa: N818  (what is missing)
    """A user of a class that nobody prepared: master and worker load different locustfiles."""


@made_often
class Turn:
    """One request, ready to be written at once."""

    seq: int
    ask: Ask
    request: bytes


@made_often
class Due:
    """When a request should be sent; `free_ns`: since when its user could have, where it was an arrival."""

    at_ns: int
    free_ns: int | None = None


@dataclass(slots=True, kw_only=True)
class Desk:
    """One for each process. `give_up` stops the whole load, for a reason that fits one sentence."""

    worker: int
    origin: Origin
    key: ApiKey | None
    scripts: Mapping[str, Script]
    """By the name of the user class."""
    rows: RowWriter
    watchdog: Watchdog
    counts: LiveCounts
    """For those who watch the run; the rows are what is judged."""
    give_up: Callable[[PlainError], None]
    docket: Docket | None = None
    """Where a search hears of the requests."""
    clock: Callable[[], int] = time.perf_counter_ns
    schedule: Schedule = field(init=False)
    in_flight: int = 0
    seq: int = 0
    shown_errors: dict[str, str] = field(default_factory=dict)
    connections: set[Connection] = field(default_factory=set)
    tally: Tally = field(init=False)
    _heads: dict[tuple[Script, Endpoint], tuple[bytes, bytes]] = field(
        init=False, repr=False, default_factory=dict
    )

    def __post_init__(self) -> None:
        self.tally = Tally(self.worker)
        self.schedule = Schedule(self.clock)

    @property
    def last_token_ns(self) -> int | None:
        """When a token came last, to any user of this process; None while none has come."""
        return max(
            (at_ns for one in self.connections if (at_ns := one.last_token_ns) is not None), default=None
        )

    def script(self, user_class: str) -> Script:
        """Raises NoScript."""
        try:
            return self.scripts[user_class]
        except KeyError as error:
            raise NoScript(
                f"no workload was prepared for the user class {user_class}: give master and workers the same "
                "locustfile"
            ) from error

    def wall_s(self, at_ns: int) -> float:
        """A moment of the rows' clock as Unix time."""
        return time.time() - (self.clock() - at_ns) / 1e9

    def first(self, script: Script) -> Turn:
        """A request that stands alone or opens a conversation."""
        return self._turn(script, script.asker.first(self.seq))

    def following(self, script: Script, turn: Turn, answer: str) -> Turn | None:
        """What the same user asks next; None when the conversation is over."""
        ask = script.asker.following(turn.ask, self.seq, answer)
        return None if ask is None else self._turn(script, ask)

    def _turn(self, script: Script, ask: Ask) -> Turn:
        self.seq += 1
        return Turn(seq=self.seq - 1, ask=ask, request=self._request_bytes(script, ask))

    def shown_error(self, outcome: str, error: str | None) -> str:
        """What Locust's table shows: the first error of its kind, or each request id would be a line."""
        return self.shown_errors.setdefault(outcome, f"{outcome}: {error or 'no message'}")

    def _request_bytes(self, script: Script, ask: Ask) -> bytes:
        """The whole HTTP request."""
        payload = _AS_JSON(ask.body).encode()
        asked = script, ask.endpoint
        if (head := self._heads.get(asked)) is None:
            head = self._heads[asked] = self._head(script, ask.endpoint)
        return b"%s%d%s%s" % (head[0], len(payload), head[1], payload)

    def _head(self, script: Script, endpoint: Endpoint) -> tuple[bytes, bytes]:
        """What stands before the length of the body, and what after it."""
        before = [
            f"POST {self.origin.path}{PATHS[endpoint]} HTTP/1.1",
            f"Host: {self.origin.host_header}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "Accept-Encoding: identity",
            "Content-Length: ",
        ]
        after = [
            "",
            *(f"{name}: {value}" for name, value in script.scenario.extra_headers.items()),
        ]
        if self.key is not None:
            after.append("{}: {}".format(*self.key.header()))
        return "\r\n".join(before).encode("latin-1"), "\r\n".join((*after, "", "")).encode("latin-1")


class _Reception:
    """Holds the desk of this process; users that come early wait for it."""

    def __init__(self) -> None:
        self._gate = Gate()
        self._desk: Desk | None = None

    def open(self, desk: Desk) -> None:
        self._desk = desk
        self._gate.set()

    def close(self) -> None:
        self._gate.clear()
        self._desk = None

    def desk(self) -> Desk | None:
        """The open desk; None when none opened in time, which is the conductor's fault to report."""
        self._gate.wait(OPEN_S_MAX)
        return self._desk


reception = _Reception()
