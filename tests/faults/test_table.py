"""The table of faults: each has a test, the page tells the same, and what is not met yet is counted."""

from __future__ import annotations

from pathlib import Path

from fault_cases import TABLE
from fault_stories import STORIES
from fault_table import FAULTS, page

PAGE = Path(__file__).parents[2] / "docs/reference/faults.md"
TESTED_BY_NAME = {"F19", "F22", "F32", "F39", "F40", "F41", "F42", "F45", "F63"}
"""In test_requests, test_pages and test_page_eras, for which a line of table says too little."""
NOT_YET: set[str] = set()


def test_every_fault_has_a_case_a_story_or_a_test_of_its_own() -> None:
    cases = {case.fault for case in TABLE}
    stories = {fault for story in STORIES for fault in story.faults}
    assert {fault.number for fault in FAULTS} == cases | stories | TESTED_BY_NAME


def test_the_page_is_the_table() -> None:
    told = PAGE.read_text(encoding="utf-8")
    assert told == page(), "python tests/support/fault_table.py > docs/reference/faults.md"


def test_every_answer_is_whole() -> None:
    assert {fault.number for fault in FAULTS if fault.not_yet} == NOT_YET


def test_exit_codes_of_the_table_are_those_of_the_runs() -> None:
    codes = {fault.number: fault.exit_code for fault in FAULTS}
    for story in STORIES:
        if len(story.faults) == 1:
            assert story.exit_code == codes[story.faults[0]], story.tells
