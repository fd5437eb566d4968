"""What becomes of a whole run when its server fails: verdict, exit code, rows, and what nobody may read."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fault_runs import CANARY, LOAD, Outcome, environment
from fault_stories import STORIES, Story

pytestmark = pytest.mark.timeout(300)
AT_ONCE = 2
"""Runs side by side: most of the time of each is waiting."""
STOPS_WITHIN_S = 10.0
TELLINGS = 3
Runs = Mapping[Story, Future[Outcome]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    homes = [[tmp_path_factory.mktemp("run") for _ in range(TELLINGS)] for _ in STORIES]  # not for threads
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {story: pool.submit(told, story, tries) for story, tries in zip(STORIES, homes, strict=True)}


def told(story: Story, homes: Sequence[Path]) -> Outcome:
    """A story is told again when this machine was too busy to tell it."""
    for home in homes:
        run = story.play(home)
        if not run.client_was_late:
            break
    return run


def of(runs: Runs, fault: str) -> Outcome:
    """The first run with this fault in it."""
    return next(run for story, run in runs.items() if fault in story.faults).result()


@pytest.mark.parametrize("story", STORIES, ids=lambda story: " ".join((*story.faults, story.tells)))
def test_a_run_with_a_fault_ends_as_the_table_says(runs: Runs, story: Story) -> None:
    run = runs[story].result()
    words_told = run.out + run.err
    assert (run.exit_code, None if run.folder is None else run.status) == (story.exit_code, story.status), (
        words_told
    )
    for words in story.words:
        assert words in words_told
    assert "Traceback" not in words_told


@pytest.mark.parametrize("story", STORIES, ids=lambda story: " ".join((*story.faults, story.tells)))
def test_every_request_that_was_issued_ended_exactly_once(runs: Runs, story: Story) -> None:
    run = runs[story].result()
    if run.folder is None:
        assert run.server is None or run.server.asked(LOAD) == 0, "a run that must not begin sends nothing"
        return
    assert sorted(request.seq for request in run.rows.requests) == list(range(len(run.rows.requests)))
    assert "client_lost" not in run.outcomes
    assert run.report["observation"]["outcomes"] == dict(run.outcomes)


def end_ns(run: Outcome) -> int:
    return next(event.at_ns for event in run.rows.events if event.event == "run_end")


def test_a_server_that_died_ends_the_load_within_ten_seconds(runs: Runs) -> None:
    run = of(runs, "F01")
    assert run.fault_ns is not None
    assert (end_ns(run) - run.fault_ns) / 1e9 < STOPS_WITHIN_S
    assert run.outcomes["connect_refused"] > 0


def test_a_server_that_hangs_ends_the_load_once_every_limit_has_passed(runs: Runs) -> None:
    run = of(runs, "F02")
    token_ns = max(request.last_token_ns or 0 for request in run.rows.requests)
    assert (end_ns(run) - token_ns) / 1e9 < STOPS_WITHIN_S
    assert run.outcomes["stall_gap"] > 0


def test_a_full_server_is_the_wall_and_its_retry_after_makes_nobody_sleep(runs: Runs) -> None:
    run = of(runs, "F06")
    assert run.report["observation"]["wall"]["name"] == "admission"
    assert {"http_429", "http_503_admission"} < set(run.outcomes)
    assert run.outcomes.total() > 60, "one Retry-After is of 31 years"
    assert (max(request.done_ns for request in run.rows.requests) - end_ns(run)) / 1e9 < 5


def test_a_refused_key_is_tried_by_no_user_twice(runs: Runs) -> None:
    run = of(runs, "F07")
    assert run.server is not None
    assert 3 <= run.server.asked(LOAD) <= 8, "four users, and the third refusal ends the load"


def test_another_origin_sees_neither_key_nor_request(runs: Runs) -> None:
    redirected = [run.result() for story, run in runs.items() if "F37" in story.faults]
    assert [run.server.requests for run in redirected if run.server is not None] == [[], []]


def test_a_broken_metrics_page_is_a_gap_with_a_reason_and_delays_no_request(runs: Runs) -> None:
    run = of(runs, "F38")
    reasons = (
        "HTTP 404",
        "HTTP 401",
        "no metric of vllm",
        "within 2 s",
        "more than",
        "compressed",
        "cut off",
    )
    assert [reason for reason in reasons if not any(reason in gap for gap in run.gaps)] == []
    assert set(run.outcomes) == {"ok"}
    assert run.outcomes.total() > 100


class Elements(HTMLParser):
    """Counts what a page would run."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = [name for name, _ in attrs if name.startswith("on")]
        self.running += named + ([tag] if tag in ("script", "iframe", "object") else [])


def test_what_a_hostile_model_says_is_inert_in_terminal_and_page(runs: Runs) -> None:
    run = of(runs, "F64")
    assert run.folder is not None
    page = Elements()
    page.feed(run.folder.report_path("html").read_text(encoding="utf-8"))
    assert page.running == []
    assert any("</script>" in (request.error or "") for request in run.rows.requests), "it was said"
    for told in (run.out, run.err, run.folder.log_path("locust").read_text(encoding="utf-8")):
        assert not [char for char in told if not char.isprintable() and char not in "\n\r\t"]


@pytest.fixture(scope="module")
def exported(runs: Runs) -> Outcome:
    """The run with the hostile words, written once more in every other format."""
    run = of(runs, "F64")
    assert run.folder is not None
    files = ("--csv", str(run.home / "x.csv"), "--sqlite", str(run.home / "x.sqlite"))
    files += ("--vllm-bench", str(run.home / "x.json"))
    for command in (("export", str(run.folder.root), *files), ("report", str(run.folder.root))):
        done = subprocess.run(
            [sys.executable, "-m", "loadtest.cli", *command],
            capture_output=True,
            text=True,
            env=environment(),
        )
        (run.home / f"{command[0]}.txt").write_text(done.stdout + done.stderr)
    assert (run.home / "x.sqlite").is_file()
    return run


@pytest.mark.parametrize("story", STORIES, ids=lambda story: " ".join((*story.faults, story.tells)))
def test_the_key_is_nowhere_to_be_read_after_a_run(runs: Runs, story: Story, exported: Outcome) -> None:
    """Outputs, rows, logs, samples, events, manifest, reports, exports; and the process list meanwhile."""
    run = runs[story].result()
    assert CANARY.encode() not in run.everything_told()
    assert run.keys_in_process_list == 0


def test_the_key_was_there_to_be_found(runs: Runs) -> None:
    run = of(runs, "F07")
    assert run.server is not None
    assert any(CANARY.encode() in content for _, content in run.server.requests)
