"""One user: asks, reads the stream to its end, writes one row, asks again. Never raises into Locust."""

from __future__ import annotations

from gevent import sleep
from locust import User, constant, task
from locust.exception import StopUser

from loadtest.records import RequestIssued, RequestRecord
from loadtest.row_file import RowFileError
from loadtest.workers.desk import Desk, reception
from loadtest.workers.ear import ear
from loadtest.workers.prompts import Draw, draw
from loadtest.workers.reply import gap_quantile_s
from loadtest.workers.stream import Connection, Exchange


class ChatUser(User):
    """Base class of the locustfiles' users; a closed loop without thinking time unless they set one."""

    abstract = True
    wait_time = constant(0)
    connection: Connection | None = None

    def on_start(self) -> None:
        desk = reception.desk()
        if desk is None:
            raise StopUser
        self.desk: Desk = desk
        self.connection = Connection(desk.origin, desk.scenario.timeouts)
        desk.connections.add(self.connection)
        ear().hear()
        self.connection.open()  # the first answer is not charged with the handshake

    def on_stop(self) -> None:
        if self.connection is not None:
            self.desk.connections.discard(self.connection)
            self.connection.close()

    @task
    def ask(self) -> None:
        """One streaming request, one RequestRecord, whatever happens to it."""
        desk, connection = self.desk, self.connection
        assert connection is not None
        ear().hear()  # before the work on a request: tokens of others may have come
        seq = desk.next_seq()
        drawn = draw(desk.scenario, desk.worker, seq)
        request = desk.request_bytes(drawn, seq)  # before the clock starts
        intended_ns = desk.clock()
        desk.in_flight += 1
        try:
            desk.rows.append(_issued(desk, drawn, seq, intended_ns))
            exchange = connection.exchange(request, intended_ns, drawn.output_tokens)
            record = _record(desk, drawn, seq, intended_ns, exchange)
            desk.rows.append(record)
        except RowFileError as error:
            desk.give_up(str(error))  # a request that cannot be recorded must not be sent
            raise StopUser from error
        finally:
            desk.in_flight -= 1
        if exchange.stopped_by is not None:
            raise exchange.stopped_by
        self._tell_locust(record)
        if not record.succeeded:
            sleep(desk.scenario.failure_pause_s)

    def _tell_locust(self, record: RequestRecord) -> None:
        """Locust's page shows our times: its own would end at the headers."""
        desk, fire = self.desk, self.environment.events.request.fire
        if record.succeeded and record.ttft_s is not None:
            fire(
                request_type="TTFT",
                name=record.endpoint,
                response_time=record.ttft_s * 1000,
                response_length=0,
                exception=None,
                context={},
            )
        fire(
            request_type="POST",
            name=record.endpoint,
            response_time=record.e2e_s * 1000,
            response_length=record.output_tokens or 0,
            exception=None if record.succeeded else _Failed(desk.shown_error(record.outcome, record.error)),
            context={},
        )


class _Failed(Exception):  # noqa: N818  (how Locust's failure table names it)
    """A request that did not succeed, as Locust's page shows it."""


def _issued(desk: Desk, drawn: Draw, seq: int, intended_ns: int) -> RequestIssued:
    return RequestIssued(
        worker=desk.worker,
        seq=seq,
        endpoint=desk.scenario.endpoint,
        planned_input_tokens=drawn.input_tokens,
        planned_output_tokens=drawn.output_tokens,
        intended_ns=intended_ns,
    )


def _record(desk: Desk, drawn: Draw, seq: int, intended_ns: int, exchange: Exchange) -> RequestRecord:
    reply = exchange.reply
    gaps_ns = reply.sorted_gaps_ns()
    return RequestRecord(
        worker=desk.worker,
        seq=seq,
        outcome=exchange.outcome,
        endpoint=desk.scenario.endpoint,
        planned_input_tokens=drawn.input_tokens,
        planned_output_tokens=drawn.output_tokens,
        intended_ns=intended_ns,
        connected_ns=exchange.connected_ns,
        sent_ns=exchange.sent_ns,
        headers_ns=exchange.headers_ns,
        first_token_ns=reply.first_token_ns,
        last_token_ns=reply.last_token_ns,
        done_ns=exchange.done_ns,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        chunks=reply.chunks,
        coalesced_reads=reply.coalesced_reads,
        gap_p50_s=gap_quantile_s(gaps_ns, 0.50),
        gap_p99_s=gap_quantile_s(gaps_ns, 0.99),
        gap_max_s=gap_quantile_s(gaps_ns, 1.0),
        finish_reason=reply.finish_reason,
        http_status=exchange.http_status,
        reused_connection=exchange.reused_connection,
        retried=exchange.retried,
        error=desk.plain_error(exchange.error),
        error_type=exchange.error_type,
        error_number=exchange.error_number,
    )
