"""A file of the product is short enough to be read at one sitting."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LINES_MAX = 300
ROOMS = ("estimator", "loadtest", "dashboards", "benchmarks")


@pytest.mark.parametrize("room", ROOMS)
def test_a_file_that_outgrows_the_limit_is_due_for_a_wall(room: str) -> None:
    lines = {
        path.relative_to(REPOSITORY).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in (REPOSITORY / room).rglob("*.py")
    }
    assert lines
    assert {path: count for path, count in lines.items() if count > LINES_MAX} == {}
