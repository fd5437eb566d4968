"""One user: asks, reads the stream to its end, writes one row, asks again. Never raises into Locust."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from gevent import GreenletExit
from locust import User, constant, task
from locust.exception import StopUser

from loadtest.records import RequestRecord
from loadtest.row_file import RowFileError
from loadtest.scenario import PATHS
from loadtest.workers.desk import Desk, Due, NoScript, Script, Turn, reception
from loadtest.workers.dial import dial
from loadtest.workers.ear import ear
from loadtest.workers.rows import ended_row, issued_row
from loadtest.workers.stream import Connection


class ChatUser(User):
    """Base class of the locustfiles' users: in a closed loop each asks again as soon as it is answered.

    `wait_time` is a pause between conversations, beside the think time that a scenario gives its turns.
    """

    abstract = True
    wait_time = constant(0)
    model: ClassVar[str | None] = None
    """Asked for by this class; None: the model of the run."""
    scenario: ClassVar[str | None] = None
    """What this class sends, a name or a file; None: the scenario of the run, whose stages and limits hold
    for all classes."""
    connection: Connection | None = None

    def on_start(self) -> None:
        desk = reception.desk()
        if desk is None:
            raise GreenletExit  # the load has ended; at this point Locust logs a StopUser as an error
        self.desk: Desk = desk
        try:
            self.script: Script = desk.script(type(self).__name__)
        except NoScript as error:
            desk.give_up(error)
            raise StopUser from error
        self.connection = Connection(
            desk.origin, self.script.scenario.timeouts, desk.clock, partial(dial, clock=desk.clock)
        )
        desk.connections.add(self.connection)
        ear().hear()
        self.connection.open()  # the first answer is not charged with the handshake

    def on_stop(self) -> None:
        if self.connection is not None:
            self.desk.connections.discard(self.connection)
            self.connection.close()

    @task
    def ask(self) -> None:
        """A request, or a conversation of them on one connection: one RequestRecord each, whatever happens.

        Latency is counted from when it was due, where there is such a time: an arrival of an open loop, the
        end of a think time. Whoever came late to it, the client or the server, is not forgiven.
        """
        turn: Turn | None = self.desk.first(self.script)
        due = self._arrival()
        while turn is not None:
            record, text = self._send(turn, due)
            if not record.succeeded:
                if not self.desk.schedule.is_open_loop:  # an open loop's failures come no faster
                    self._pause(self.script.scenario.failure_pause_s)
                return
            turn = self.desk.following(self.script, turn, text)
            if turn is not None:
                think_s = turn.ask.think_s
                due = Due(at_ns=record.done_ns + int(think_s * 1e9)) if think_s else None
                self._pause(think_s)

    def _arrival(self) -> Due | None:
        """The arrival that this user takes; None in a closed loop."""
        schedule = self.desk.schedule
        if not schedule.is_open_loop:
            return None
        free_ns, taken = self.desk.clock(), list[int | None]()
        self._wait(lambda: taken.append(schedule.take()))
        return None if taken[0] is None else Due(at_ns=taken[0], free_ns=free_ns)

    def _pause(self, seconds: float) -> None:
        self._wait(lambda: seconds)

    def _wait(self, wait_s: Callable[[], float | None]) -> None:
        """As Locust's own pause between tasks: here it may end a user at once, in a task it must not.

        Raises StopUser when Locust has asked for that meanwhile.
        """
        own = self.wait_time
        self.wait_time = lambda: wait_s() or 0.0  # type: ignore[method-assign]
        try:
            self.wait()  # type: ignore[no-untyped-call]
        finally:
            self.wait_time = own  # type: ignore[method-assign]

    def _send(self, turn: Turn, due: Due | None) -> tuple[RequestRecord, str]:
        """The row of the request, and the text of its answer where the next one repeats it."""
        desk, connection = self.desk, self.connection
        assert connection is not None
        ear().hear()  # before the work on a request: tokens of others may have come
        now_ns = desk.clock()
        due = due or Due(at_ns=now_ns)
        keeps_text = self.script.asker.keeps_text
        desk.in_flight += 1
        try:
            desk.rows.append(issued_row(desk, turn, due))
            if desk.docket is not None:
                desk.docket.sent(turn.seq, due.at_ns, turn.ask.output_tokens, connection)
            # limits begin now: an arrival that waited for a user has not waited for the server yet
            exchange = connection.exchange(
                turn.request, now_ns, turn.ask.output_tokens, keeps_text=keeps_text
            )
            record = ended_row(desk, turn, due, exchange)
            desk.rows.append(record)
            if desk.docket is not None:
                desk.docket.ended(record)
        except RowFileError as error:
            desk.give_up(error)  # a request that cannot be recorded must not be sent
            raise StopUser from error
        finally:
            desk.in_flight -= 1
        refusal = desk.watchdog.ended(record)
        if exchange.stopped_by is not None:
            raise exchange.stopped_by
        self._tell_locust(record)
        if refusal is not None:
            desk.give_up(refusal)
            raise StopUser from refusal
        return record, exchange.reply.text() if keeps_text else ""

    def _tell_locust(self, record: RequestRecord) -> None:
        """Locust's page shows our times: its own would end at the headers.

        Other listeners find the row in the event's `context`.
        """
        desk, fire = self.desk, self.environment.events.request.fire
        told: dict[str, Any] = {
            "name": self.script.name,
            "context": {**self.context(), "row": record},
            "start_time": desk.wall_s(record.intended_ns),
            "url": f"{desk.origin}{PATHS[self.script.scenario.endpoint]}",
        }
        if record.succeeded and record.ttft_s is not None:
            fire(
                request_type="TTFT",
                response_time=record.ttft_s * 1000,
                response_length=0,
                exception=None,
                **told,
            )
        fire(
            request_type="POST",
            response_time=record.e2e_s * 1000,
            response_length=record.output_tokens or 0,
            exception=None if record.succeeded else _Failed(desk.shown_error(record.outcome, record.error)),
            **told,
        )


class _Failed(Exception):  # noqa: N818  (how Locust's failure table names it)
    """A request that did not succeed, as Locust's page shows it."""
