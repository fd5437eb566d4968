"""One request against every fault of the table, over real sockets: its outcome, words, tokens and times."""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from fault_cases import GOOD, LIMITS, PLANNED, TABLE, Case, delta, stream, token, usage
from fault_server import (
    ANY,
    FaultServer,
    deaf,
    listening,
    racing,
    refusing,
    serving,
)

from loadtest.origin import Origin
from loadtest.records import ERROR_BYTES_MAX, SUCCESSES
from loadtest.scenario import Timeouts
from loadtest.workers.attempt import Attempt, Fault
from loadtest.workers.reply import plain_text
from loadtest.workers.stream import Connection, Exchange

REQUEST: Final = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
STREAMS: Final = Path(__file__).parents[1] / "fixtures/streams"
SLACK_S: Final = 2.0
"""How long past its last limit a request may live on a busy machine."""
RACES: Final = 10_000


def asked(origin: Origin, times: int = 1, limits: Timeouts = LIMITS) -> list[Exchange]:
    connection = Connection(origin, limits)
    try:
        return [connection.exchange(REQUEST, time.perf_counter_ns(), PLANNED) for _ in range(times)]
    finally:
        connection.close()


@cache
def played(case: Case) -> tuple[int, Exchange]:
    """When it began, and how it ended. Each case is played once, and looked at from several sides."""
    begun_ns = time.perf_counter_ns()
    with serving(case.says, tls=case.tls) as (server, origin):
        (exchange,) = asked(origin, limits=case.limits)
    assert len(server.requests) <= 1, "nothing is sent twice"
    return begun_ns, exchange


def named(case: Case) -> str:
    return f"{case.fault} {case.does}"


every_case = pytest.mark.parametrize("case", TABLE, ids=named)


@every_case
def test_a_fault_ends_as_the_table_says(case: Case) -> None:
    _, exchange = played(case)
    reply = exchange.reply
    assert (exchange.outcome, exchange.http_status) == (case.outcome, case.status)
    assert (reply.output_tokens, exchange.retried) == (case.tokens, False)
    assert reply.chunks == case.chunks or (case.at_least and reply.chunks > case.chunks)


@every_case
def test_a_fault_is_told_in_words_that_fit_a_row(case: Case) -> None:
    _, exchange = played(case)
    assert (exchange.error is None) == (case.outcome in SUCCESSES), "a fault without a word hides its cause"
    kept = plain_text(exchange.error or "")
    assert case.words in kept
    assert len(kept.encode()) <= ERROR_BYTES_MAX
    assert kept.isprintable()


@every_case
def test_a_fault_keeps_the_times_that_were_seen_and_ends_in_time(case: Case) -> None:
    begun_ns, exchange = played(case)
    reply = exchange.reply
    times = (
        *(begun_ns, exchange.connected_ns, exchange.sent_ns, exchange.headers_ns),
        *(reply.first_token_ns, reply.last_token_ns, exchange.done_ns),
    )
    seen = [at_ns for at_ns in times if at_ns is not None]
    assert seen == sorted(seen)
    assert (case.status is not None) >= (exchange.headers_ns is not None) >= (case.outcome in SUCCESSES)
    assert (reply.first_token_ns is None) == (case.chunks == 0)
    assert (exchange.done_ns - begun_ns) / 1e9 < case.limits.total_s + SLACK_S


def test_one_user_that_meets_fault_after_fault_ends_each_request_exactly_once() -> None:
    """Issued = sum of outcomes, whatever state one fault leaves the connection in for the next."""
    cases = [case for case in TABLE if case.limits is LIMITS and not case.tls]
    server = FaultServer({ANY: [case.says for case in cases]})
    with listening(server) as origin:
        exchanges = asked(origin, len(cases))
    assert [exchange.outcome for exchange in exchanges] == [case.outcome for case in cases]
    assert len(server.requests) == len(cases)


# ------------------------------------------------------------------ F19: closed while it was idle


def test_a_connection_closed_at_any_idle_moment_never_makes_a_request_fail() -> None:
    with racing(GOOD, seed=19) as (answered, origin):
        exchanges = asked(origin, RACES)
    failures = [exchange.outcome for exchange in exchanges if exchange.outcome != "ok"]
    retried = sum(exchange.retried for exchange in exchanges)
    assert (failures, answered[0]) == ([], RACES), "each was answered once, and none was sent for nothing"
    assert retried > RACES / 20, "the race was not run"


# ------------------------------------------------------------------ F21, F22: cut anywhere


def record_of(attempt: Attempt) -> tuple[object, ...]:
    reply = attempt.reply
    outcome = reply.outcome(
        status=attempt.reader.status or 0, clean_end=attempt.clean_end, planned_output_tokens=1
    )
    times = (attempt.headers_ns is not None, reply.chunks, reply.input_tokens, reply.output_tokens)
    return outcome, *times, reply.finish_reason, reply.error, reply.first_chunk_tokens


@pytest.mark.parametrize("name", ["chat", "chat-usage-every-chunk", "completions", "unknown-model"])
def test_a_recorded_answer_cut_at_any_byte_gives_the_same_record(name: str) -> None:
    content = (STREAMS / f"vllm-0.32-{name}.http").read_bytes()
    whole = Attempt(reused=False)
    ends = whole.take(content, 1) or whole.take(b"", 1)
    assert ends
    for at in range(1, len(content)):
        cut = Attempt(reused=False)
        if not cut.take(content[:at], 1):
            assert cut.take(content[at:], 1) or cut.take(b"", 1)
        assert record_of(cut) == record_of(whole), at


@pytest.mark.parametrize("name", ["chat", "completions"])
def test_a_recorded_answer_that_ends_at_any_byte_before_its_last_is_never_good(name: str) -> None:
    content = (STREAMS / f"vllm-0.32-{name}.http").read_bytes()
    for at in range(1, len(content)):
        cut = Attempt(reused=False)
        cut.take(content[:at], 1)
        if cut.reader.has_headers:
            assert cut.take(b"", 2)
            assert record_of(cut)[0] == "truncated", at
        else:
            with pytest.raises(Fault, match="inside its headers"):
                cut.take(b"", 2)


# ------------------------------------------------------------------ F23, F24: several in one


def test_events_that_come_together_are_called_coalesced() -> None:
    (case,) = [case for case in TABLE if case.fault == "F23"]
    assert played(case)[1].reply.coalesced_reads == 1


FIRST_TWO = delta('"content":"a b"', "null", f",{usage(2)}")
LAST_TWO = delta('"content":" c d"', '"length"', f",{usage(4)}")


@pytest.mark.parametrize(
    ("answer", "first"),
    [
        (stream(FIRST_TWO, LAST_TWO, "[DONE]"), 2),
        (
            stream(
                delta('"role":"assistant","content":""', "null", f",{usage(0)}"),
                FIRST_TWO,
                LAST_TWO,
                "[DONE]",
            ),
            2,
        ),
        (stream(token("a"), LAST_TWO, "[DONE]"), 1),
        (stream(token("a"), token("b", '"length"'), f'{{"choices":[],{usage(4)}}}', "[DONE]"), 1),
    ],
    ids=["usage on every chunk", "with a role chunk", "usage at the end", "usage by itself"],
)
def test_the_tokens_of_the_first_chunk_are_those_the_server_told(answer: bytes, first: int) -> None:
    with serving((answer,)) as (_, origin):
        (exchange,) = asked(origin)
    assert (exchange.reply.first_chunk_tokens, exchange.reply.output_tokens) == (first, 4)


# ------------------------------------------------------------------ F45: no connection


def test_a_port_nobody_listens_on_is_refused() -> None:
    (exchange,) = asked(refusing())
    assert (exchange.outcome, exchange.error_type) == ("connect_refused", "ConnectionRefusedError")


def test_a_listener_that_drops_what_it_cannot_queue_is_a_connect_timeout() -> None:
    with deaf() as origin:
        (exchange,) = asked(origin, limits=Timeouts(connect_s=0.3))
    assert exchange.outcome == "connect_timeout"
    assert "no connection within 0.3 s" in str(exchange.error)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example"])
def test_a_name_that_leads_nowhere_is_a_dns_fault(host: str) -> None:
    (exchange,) = asked(Origin(scheme="http", host=host, port=80))
    assert exchange.outcome == "dns"
    assert exchange.error
