"""What a person reads: complete, the same for the same rows, and inert whatever a server said."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from fake_run import FakeRun, FakeStage, verdict_of

from loadtest.reporter.lines import five_lines
from loadtest.reporter.pages import html_page, json_page, markdown_page
from loadtest.reporter.plain import markdown_cell, one_line
from loadtest.scenario import Limits

RUN = FakeRun(
    stages=(
        FakeStage(users=24),
        FakeStage(users=31),
        FakeStage(users=61, running=40.6, waiting=20.4, kv_usage_ratio=0.99, preemptions=26, e2e_s=7.0),
    )
)
HOSTILE = "\x1b[31m</script><script>alert(1)</script><img src=x onerror=1>|`*_[a](http://evil)\r\n\u202e\x00"


class Tags(HTMLParser):
    """Collects what a browser would see as elements and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def tags_of(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def html_of(run: FakeRun) -> str:
    return html_page(verdict_of(run), run.manifest, "runs/x")


@pytest.fixture(scope="module")
def page() -> str:
    return html_of(RUN)


def test_the_five_lines_of_a_run() -> None:
    assert five_lines(verdict_of(RUN), "runs/x/report.html") == [
        "Predicted   31 guaranteed · 40.9 at saturation · 128 slots   "
        "(511 blocks of 32 tokens; a request holds 8 to 16)",
        "Observed    31 held · 61 preempts   (wall: kv; 26 preemptions at 61 users, KV cache 99% full)",
        "Gap         +0%",
        "Client      clean (send lateness p99 1 ms; in-flight agrees with the server)",
        "SIGN-OFF    24 parallel requests (20% buffer)    PASS    runs/x/report.html",
    ]


def test_a_run_without_a_number_shows_none() -> None:
    last = five_lines(verdict_of(FakeRun(stages=(RUN.stages[2],))), "r")[-1]
    assert last.startswith("SIGN-OFF    no number    FAIL    r")


def test_the_page_has_five_charts_and_needs_nothing_from_anywhere(page: str) -> None:
    tags = tags_of(page)
    assert tags.names.count("svg") == 5
    assert not {"script", "img", "iframe", "link", "object", "embed", "form"} & set(tags.names)
    assert all(address.startswith("#") for address in tags.addresses)
    assert "default-src 'none'" in page
    assert not re.findall(r"https?://(?!127\.0\.0\.1:8000)", page)


def test_the_ids_of_all_charts_are_different(page: str) -> None:
    ids = tags_of(page).ids
    assert len(ids) == len(set(ids))


def test_the_same_rows_give_the_same_bytes(page: str) -> None:
    assert html_of(RUN) == page


def test_the_number_and_its_arithmetic_stand_on_the_page(page: str) -> None:
    assert '<div class="number">24</div>' in page
    assert "N_safe = floor(0.8 x min(N_guaranteed 31, N_slots 128, N_slo 61, N_max 31)) = 24" in page


@pytest.mark.parametrize(
    "run",
    [
        FakeRun(stages=()),
        FakeRun(stages=RUN.stages, with_metrics=False, with_prediction=False),
        FakeRun(stages=(FakeStage(users=3, failing="http_5xx", failing_share=1.0),)),
        FakeRun(stages=RUN.stages, dies_at_s=100.0),
        FakeRun(stages=(FakeStage(users=3, ttft_s=5.0),), limits=Limits()),
        FakeRun(stages=(FakeStage(users=3, ttft_s=0.0),)),
    ],
    ids=["no stages", "no metrics", "only failures", "server died", "one read an answer", "at once"],
)
def test_every_run_has_a_page_whatever_is_missing(run: FakeRun) -> None:
    verdict = verdict_of(run)
    assert html_page(verdict, run.manifest, "r")
    assert markdown_page(verdict, run.manifest, "r")
    assert json.loads(json_page(verdict, run.manifest))["status"] == verdict.status
    assert len(five_lines(verdict, "r")) == 5


def test_what_is_not_known_is_said_and_nothing_unseen_is_drawn() -> None:
    blind = html_of(FakeRun(stages=RUN.stages, with_metrics=False))
    assert "whether requests were preempted" in blind
    assert "not seen" in blind
    assert "held, as far as seen" in blind
    assert "held, as far as the server shows, up to 61 users" in blind
    assert "signed 24" not in blind
    legend = {text for text in ("users set", "in flight", "running", "waiting") if f">{text}</text>" in blind}
    assert legend == {"users set", "in flight"}


def test_a_chart_has_a_name_and_a_description_for_those_who_do_not_see_it(page: str) -> None:
    for name in ("concurrency", "kv", "queues", "latency"):
        assert f'aria-labelledby="{name}-title" aria-describedby="{name}-caption"' in page
        assert f'id="{name}-title"' in page
        assert f'id="{name}-caption"' in page


def test_hostile_text_stays_inert_on_every_page() -> None:
    run = FakeRun(
        stages=(FakeStage(users=24), FakeStage(users=31, failing="http_4xx", failing_share=0.5)),
        model=HOSTILE,
        error=HOSTILE,
    )
    verdict = verdict_of(run)
    page = html_page(verdict, run.manifest, HOSTILE)
    tags = tags_of(page)
    assert not {"script", "img"} & set(tags.names)
    markdown = markdown_page(verdict, run.manifest, HOSTILE)
    assert "<script" not in markdown
    for text in (page, markdown, *five_lines(verdict, HOSTILE)):
        assert "\x1b" not in text
        assert "\x00" not in text
        assert "\u202e" not in text
    json.loads(json_page(verdict, run.manifest))


def test_a_line_is_one_line_and_a_cell_opens_nothing() -> None:
    assert one_line("a\nb\x1b[0m") == "a\ufffdb\ufffd[0m"
    assert markdown_cell("a|b<c>`d`[e](f)") == r"a\|b&lt;c&gt;\`d\`\[e\](f)"


def test_the_json_holds_what_is_needed_to_judge_again() -> None:
    body = json.loads(json_page(verdict_of(RUN), RUN.manifest))
    assert body["schema_version"] == 1
    assert (body["n_kv"], body["n_slots"], body["n_slo"], body["n_max"]) == (31, 128, 61, 31)
    assert body["buffer_ratio"] == 0.2
    evidence = body["evidence"]
    assert (evidence["k"], evidence["answer"], evidence["design_effect"]) == (0, "good", 4.0)
    assert [stage["users"] for stage in body["observation"]["stages"]] == [24, 31, 61]
