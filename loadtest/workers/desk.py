"""What one load process holds for its users: where to send, what to send, where rows go.

Locust makes users without arguments, so the desk is found here; the conductor opens it after the fork.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gevent.event import Event as Gate

from loadtest.origin import ApiKey, Origin
from loadtest.row_file import RowWriter
from loadtest.scenario import PATHS, Scenario
from loadtest.workers.prompts import ChatWords, Draw, chat_prompt, request_body, token_prompt
from loadtest.workers.reply import plain_text
from loadtest.workers.stream import Connection

OPEN_S_MAX = 30.0


@dataclass(slots=True, kw_only=True)
class Desk:
    """One for each process. `give_up` stops the whole load, for a reason that fits one sentence."""

    run_id: str
    worker: int
    origin: Origin
    key: ApiKey | None
    model: str
    scenario: Scenario
    rows: RowWriter
    chat: ChatWords | None
    give_up: Callable[[str], None]
    clock: Callable[[], int] = time.perf_counter_ns
    in_flight: int = 0
    seq: int = 0
    shown_errors: dict[str, str] = field(default_factory=dict)
    connections: set[Connection] = field(default_factory=set)

    @property
    def last_token_ns(self) -> int | None:
        """When a token came last, to any user of this process; None while none has come."""
        return max(
            (at_ns for one in self.connections if (at_ns := one.last_token_ns) is not None), default=None
        )

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq - 1

    def plain_error(self, error: str | None) -> str | None:
        """A server's words as a row may keep them: without our key, without control characters, short."""
        if error is None:
            return None
        return plain_text(error if self.key is None else self.key.blotted_out(error))

    def shown_error(self, outcome: str, error: str | None) -> str:
        """What Locust's table shows: the first error of its kind, or each request id would be a line."""
        return self.shown_errors.setdefault(outcome, f"{outcome}: {error or 'no message'}")

    def request_bytes(self, draw: Draw, seq: int) -> bytes:
        """The whole HTTP request, ready to be written at once."""
        if self.chat is not None:
            body = request_body(
                self.model,
                chat_prompt(draw, self.chat, self.run_id, self.worker, seq),
                draw.output_tokens,
            )
        else:
            body = request_body(
                self.model, token_prompt(draw, self.run_id, self.worker, seq), draw.output_tokens
            )
        payload = json.dumps(body, separators=(",", ":")).encode()
        head = [
            f"POST {self.origin.path}{PATHS[self.scenario.endpoint]} HTTP/1.1",
            f"Host: {self.origin.host_header}",
            "Content-Type: application/json",
            "Accept: text/event-stream",
            "Accept-Encoding: identity",
            f"Content-Length: {len(payload)}",
        ]
        if self.key is not None:
            head.append("{}: {}".format(*self.key.header()))
        return "\r\n".join((*head, "", "")).encode("latin-1") + payload


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
