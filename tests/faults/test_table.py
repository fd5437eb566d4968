"""The table of faults: each has a test, the page tells the same, and what is not met yet is counted."""

from __future__ import annotations

from pathlib import Path

from fault_cases import TABLE
from fault_stories import STORIES
from fault_table import FAULTS, page

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs/reference/faults.md"
TESTED_BY_NAME = {"F19", "F22", "F32", "F39", "F40", "F41", "F42", "F45", "F63"}
"""In test_requests, test_pages and test_page_eras, for which a line of table says too little."""
NOT_YET: set[str] = set()
OF_THE_CLIENT = {"F43", "F44", *(f"F{number}" for number in range(48, 59))}
"""In test_process_faults, test_process_limits and test_slow_disk."""


def test_every_fault_has_a_case_a_story_or_a_test_of_its_own() -> None:
    cases = {case.fault for case in TABLE}
    stories = {fault for story in STORIES for fault in story.faults}
    assert {fault.number for fault in FAULTS} == cases | stories | TESTED_BY_NAME | OF_THE_CLIENT


def test_every_fault_of_the_client_is_named_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8").upper() for path in HERE.glob("test_[ps]*.py"))
    assert {fault for fault in OF_THE_CLIENT if fault not in tests} == set()


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
