"""When rows may not be judged: dead servers and counts that cannot both be true."""

from __future__ import annotations

from loadtest.columns import columns_of
from loadtest.records import Outcome, RequestRecord, Sample
from loadtest.reporter.latency import breaks_a_limit
from loadtest.reporter.validity import counts_disagree, server_death
from loadtest.request_table import RequestTable
from loadtest.scenario import Limits

SECOND_NS = 1_000_000_000


def request(done_s: float, outcome: Outcome = "ok", *, first_s: float | None = None) -> RequestRecord:
    return RequestRecord(
        worker=0,
        seq=int(done_s * 1000),
        outcome=outcome,
        endpoint="chat",
        planned_input_tokens=1,
        planned_output_tokens=1,
        intended_ns=0,
        first_token_ns=None if first_s is None else int(first_s * SECOND_NS),
        done_ns=int(done_s * SECOND_NS),
    )


def look(at_s: float, finished: float) -> Sample:
    signals = {"requests_finished_total": finished}
    return Sample(at_ns=int(at_s * SECOND_NS), source="engine", target="t", signals=signals)


def in_vain(at_s: float) -> Sample:
    return Sample(at_ns=int(at_s * SECOND_NS), source="engine", target="t", gap="timeout")


def breaks(asked: RequestRecord, limits: Limits) -> bool:
    return bool(breaks_a_limit(columns_of([asked]), limits)[0])


ANSWERED = RequestTable.of([request(second / 10) for second in range(1, 1001)])


def test_counts_that_differ_by_what_is_on_its_way_agree() -> None:
    assert counts_disagree(ANSWERED, [look(0, 7), look(100, 1012)]) is None


def test_a_server_that_finished_more_than_we_sent_serves_others_too() -> None:
    found = counts_disagree(ANSWERED, [look(0, 0), look(100, 1100)])
    assert found == "the server finished 1100 requests, 1000 of them ours: it serves others too"


def test_a_server_that_finished_less_than_was_answered_is_not_the_one_that_answered() -> None:
    assert "one of several" in str(counts_disagree(ANSWERED, [look(0, 0), look(100, 500)]))


def test_only_what_lies_between_two_looks_is_compared() -> None:
    assert counts_disagree(ANSWERED, [look(20, 0), look(40, 200)]) is None
    assert counts_disagree(ANSWERED, [look(20, 0)]) is None


def test_requests_of_ours_that_failed_may_have_been_finished_by_the_server() -> None:
    cut = RequestTable.of([request(second / 10, "stall_gap") for second in range(1, 501)])
    assert counts_disagree(cut, [look(0, 0), look(100, 500)]) is None
    assert counts_disagree(cut, [look(0, 0), look(100, 0)]) is None


def test_a_busy_server_that_skips_some_looks_is_alive() -> None:
    looks = [look(1, 0), in_vain(2), in_vain(3), in_vain(4), in_vain(5)]
    assert server_death(RequestTable.of([request(4.5)]), looks) is None
    assert "(timeout)" in str(server_death(RequestTable.of([request(1.5)]), looks))


def test_a_server_that_never_answered_did_not_die_in_the_run() -> None:
    assert server_death(RequestTable.of([request(1, "connect_refused") for _ in range(9)]), []) is None


def test_refusals_by_the_server_itself_are_no_death() -> None:
    assert server_death(RequestTable.of([request(1), *[request(2, "http_5xx")] * 5]), []) is None
    assert server_death(RequestTable.of([request(1), *[request(2, "connect_refused")] * 5]), []) is not None


def test_a_request_cut_short_has_broken_the_limits_it_outlasted() -> None:
    limits = Limits(ttft_s=2.0, e2e_s=9.0)
    assert breaks(request(3, "client_cancel"), limits)
    assert not breaks(request(1, "client_cancel"), limits)
    assert not breaks(request(3, "client_cancel", first_s=1), limits)
    assert breaks(request(10, "client_cancel", first_s=1), limits)
