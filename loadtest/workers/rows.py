"""The two rows of one request, made of what was asked and what came of it."""

from __future__ import annotations

from loadtest.records import SUCCESSES, RequestIssued, RequestRecord
from loadtest.workers.desk import Desk, Due, Turn
from loadtest.workers.reply import FINISH_REASON_CHARS, gap_quantile_s, told
from loadtest.workers.stream import Exchange


def issued_row(desk: Desk, turn: Turn, due: Due) -> RequestIssued:
    """Written before it is sent."""
    return RequestIssued(
        worker=desk.worker,
        seq=turn.seq,
        endpoint=turn.ask.endpoint,
        planned_input_tokens=turn.ask.input_tokens,
        planned_output_tokens=turn.ask.output_tokens,
        intended_ns=due.at_ns,
        model=turn.ask.model,
        session=turn.ask.session,
        turn=turn.ask.turn,
    )


def ended_row(desk: Desk, turn: Turn, due: Due, exchange: Exchange) -> RequestRecord:
    """Written when it has ended, however it ended; it is counted on the way."""
    reply = exchange.reply
    gaps_ns = reply.sorted_gaps_ns()
    if exchange.outcome in SUCCESSES:
        desk.tally.add(due.at_ns, gaps_ns, reply.token_ns)
    record = RequestRecord(
        worker=desk.worker,
        seq=turn.seq,
        outcome=exchange.outcome,
        endpoint=turn.ask.endpoint,
        planned_input_tokens=turn.ask.input_tokens,
        planned_output_tokens=turn.ask.output_tokens,
        intended_ns=due.at_ns,
        connected_ns=exchange.connected_ns,
        sent_ns=exchange.sent_ns,
        headers_ns=exchange.headers_ns,
        first_token_ns=reply.first_token_ns,
        last_token_ns=reply.last_token_ns,
        done_ns=exchange.done_ns,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        first_chunk_tokens=reply.first_chunk_tokens,
        chunks=reply.chunks,
        coalesced_reads=reply.coalesced_reads,
        gap_p50_s=gap_quantile_s(gaps_ns, 0.50),
        gap_p99_s=gap_quantile_s(gaps_ns, 0.99),
        gap_max_s=gap_quantile_s(gaps_ns, 1.0),
        finish_reason=told(reply.finish_reason, desk.key, FINISH_REASON_CHARS),
        http_status=exchange.http_status,
        reused_connection=exchange.reused_connection,
        retried=exchange.retried,
        error=told(exchange.error, desk.key),
        error_type=exchange.error_type,
        error_number=exchange.error_number,
        model=turn.ask.model,
        session=turn.ask.session,
        turn=turn.ask.turn,
        free_ns=due.free_ns,
        first_output_ns=reply.first_output_ns,
    )
    desk.counts.add(record, gaps_ns)
    return record
