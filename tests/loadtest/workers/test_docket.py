"""What a search hears of a load process: each request once, and bad news at once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.columns import columns_of
from loadtest.records import SUCCESSES, Outcome, RequestRecord
from loadtest.reporter.latency import breaks_a_limit, succeeded
from loadtest.scenario import Limits
from loadtest.violations import violates
from loadtest.workers.docket import Docket, Judgements, judgements_of
from loadtest.workers.reply import Reply

SECOND_NS = 10**9
LIMITS = Limits(ttft_s=1.0, tpot_s=0.1, e2e_s=20.0)


class FakeLine:
    """An answer that comes in as the test says."""

    def __init__(self) -> None:
        self.reply: Reply | None = None

    def tokens(self, *at_s: float) -> None:
        self.reply = self.reply or Reply(is_stream=True)
        for one in at_s:
            self.reply.date_tokens(1, int(one * SECOND_NS))


def a_record(
    seq: int = 0, *, outcome: Outcome = "ok", ttft_s: float | None = 0.5, e2e_s: float = 5.0
) -> RequestRecord:
    """101 tokens from the moment 0 on."""
    return RequestRecord(
        worker=3,
        seq=seq,
        outcome=outcome,
        endpoint="completions",
        planned_input_tokens=8,
        planned_output_tokens=101,
        intended_ns=0,
        first_token_ns=None if ttft_s is None else int(ttft_s * SECOND_NS),
        last_token_ns=None if ttft_s is None else int(e2e_s * SECOND_NS),
        done_ns=int(e2e_s * SECOND_NS),
        output_tokens=101,
    )


def opened(limits: Limits = LIMITS) -> tuple[Docket, FakeLine]:
    docket, line = Docket(3, limits), FakeLine()
    docket.sent(0, 0, 101, line)
    return docket, line


def test_a_request_is_told_when_it_is_sent_and_judged_when_it_ends() -> None:
    docket, _ = opened()
    assert docket.taken(0) == Judgements(sent=[("3/0", 0)], judged=[], dropped=[], failed=[], ended=[])
    docket.ended(a_record())
    assert docket.taken(5 * SECOND_NS) == Judgements(
        sent=[], judged=[("3/0", False)], dropped=[], failed=[], ended=[(0, 0.5, 5.0)]
    )
    assert docket.taken(6 * SECOND_NS) == Judgements(sent=[], judged=[], dropped=[], failed=[], ended=[])


@pytest.mark.parametrize(
    ("tokens_s", "now_s", "is_late"),
    [
        ((), 0.9, False),
        ((), 1.1, True),  # no first token yet, and the limit has passed
        ((0.9,), 5.0, False),
        ((1.2,), 1.3, True),
        ((0.5, 10.4), 10.5, False),  # 9.9 s for 100 tokens
        ((0.5, 10.6), 10.7, True),  # 10.1 s, though more tokens are to come
        ((0.5, 2.0), 20.1, True),  # the whole time
    ],
)
def test_a_request_under_way_is_judged_as_soon_as_nothing_can_save_it(
    tokens_s: tuple[float, ...], now_s: float, is_late: bool
) -> None:
    docket, line = opened()
    line.tokens(*tokens_s)
    assert docket.taken(int(now_s * SECOND_NS)).judged == ([("3/0", True)] if is_late else [])


def test_what_was_judged_under_way_is_not_judged_again_at_its_end() -> None:
    docket, _ = opened()
    docket.taken(2 * SECOND_NS)
    docket.ended(a_record(ttft_s=3.0))
    assert docket.taken(6 * SECOND_NS).judged == []


def test_a_limit_that_is_not_set_judges_nobody() -> None:
    docket, line = opened(Limits(e2e_s=1000.0))
    line.tokens(50.0, 500.0)
    assert docket.taken(600 * SECOND_NS).judged == []


def test_a_request_we_cut_short_ourselves_says_nothing() -> None:
    docket, _ = opened()
    docket.ended(a_record(outcome="client_cancel", ttft_s=None, e2e_s=0.5))
    news = docket.taken(SECOND_NS)
    assert (news.judged, news.failed, news.dropped) == ([], [], [("3/0",)])


def test_a_request_that_failed_is_charged_to_the_error_budget_whenever_it_was_judged() -> None:
    docket, _ = opened()
    assert docket.taken(2 * SECOND_NS).judged == [("3/0", True)]
    docket.ended(a_record(outcome="stall_ttft", ttft_s=None))
    assert docket.taken(6 * SECOND_NS).failed == [("3/0",)]


def test_news_survive_the_message_between_processes() -> None:
    news = Judgements(
        sent=[("0/1", 5)],
        judged=[("0/1", True)],
        dropped=[("0/2",)],
        failed=[("0/1",)],
        ended=[(5, None, 2.0)],
    )
    assert judgements_of(json.loads(json.dumps(news.message()))) == news


@given(
    outcome=st.sampled_from(("ok", "short_eos", "client_cancel", "http_5xx", "stall_ttft")),
    ttft_s=st.none() | st.floats(0.0, 2.0),
    more_s=st.floats(0.0, 25.0),
)
def test_the_search_judges_a_request_as_the_report_does(
    outcome: Outcome, ttft_s: float | None, more_s: float
) -> None:
    record = a_record(outcome=outcome, ttft_s=ttft_s, e2e_s=(ttft_s or 0.0) + more_s)
    rows = columns_of([record])
    broke = breaks_a_limit(rows, LIMITS)
    said = violates(record, LIMITS)
    if outcome == "client_cancel" and not broke[0]:
        assert said is None
    elif outcome in SUCCESSES or outcome == "client_cancel":
        assert said == bool(np.any(broke | ~succeeded(rows)))
    else:
        assert said is True
