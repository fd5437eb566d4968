"""The share of time that the hypervisor took is known from look to look, where Linux counts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.conductor.stolen_time import StolenTime, steal_ratio

LOOKS = (
    "cpu  100 0 50 800 10 0 5 35 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n",
    "cpu  150 0 60 820 10 0 5 55 0 0\n",
    "cpu  160 0 60 910 10 0 5 55 0 0\n",
)


def test_steal_is_the_share_of_the_time_between_two_looks() -> None:
    assert steal_ratio(LOOKS[0], LOOKS[1]) == pytest.approx(20 / 100)
    assert steal_ratio(LOOKS[0], LOOKS[0]) is None


@pytest.mark.parametrize("text", ["", "rubbish", "a b", "cpu 1 2 3\n", "cpu0 1 2 3 4 5 6 7 8\n"])
def test_text_that_says_nothing_is_not_known(text: str) -> None:
    assert steal_ratio(text, text) is None
    assert steal_ratio(LOOKS[0], text) is None


def test_each_look_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(LOOKS[0])
    stolen = StolenTime(stat)
    seen = []
    for text in LOOKS[1:]:
        stat.write_text(text)
        seen.append(stolen.ratio())
    assert seen == [pytest.approx(0.2), 0.0]


def test_where_it_is_not_counted_nothing_is_said(tmp_path: Path) -> None:
    assert StolenTime(tmp_path / "stat").ratio() is None
