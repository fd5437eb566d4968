"""Two lines of one panel can be told apart, in the light theme and in the dark one."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "dashboards"
sys.path.append(str(FOLDER))

from colours import APART_MIN, BY_PLACE, THEMES, alike, oklab, troubles  # noqa: E402  (scripts, no package)
from generate import BOARDS  # noqa: E402
from grafana import PALETTE  # noqa: E402
from panels import Board, Panel, Query, Row  # noqa: E402


def found(*queries: Query) -> str:
    panel = Panel(title="P", about="", unit="s", queries=queries)
    board = Board(
        uid="u", title="B", about="", variables=(), annotations=(), rows=(Row(title="R", panels=(panel,)),)
    )
    return "; ".join(troubles(board))


def line(colour: str | None, legend: str = "a") -> Query:
    return Query(expr="up", legend=legend, colour=colour)


@pytest.mark.parametrize("name", BOARDS)
def test_no_two_lines_of_a_board_look_alike(name: str) -> None:
    assert not list(troubles(BOARDS[name]))


def test_lines_without_a_name_of_their_own_are_told_apart_by_their_place() -> None:
    """By name, a hash would choose: two servers might get one colour."""
    assert PALETTE == "palette-classic"
    assert not list(alike(BY_PLACE))
    modes = {
        panel["fieldConfig"]["defaults"]["color"]["mode"]
        for path in FOLDER.glob("*.json")
        for panel in json.loads(path.read_text("utf-8"))["panels"]
        if panel["type"] == "timeseries"
    }
    assert modes == {PALETTE}


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ((line("green"), line("green")), "green and green look alike"),
        ((line("yellow"), line("semi-dark-yellow")), "look alike in the dark theme"),
        ((line("green"), line(None)), "name all or none"),
        ((line("green", "{{instance}}"),), "would have one colour"),
        ((line("#56a64b"),), "no colour of the table"),
    ],
)
def test_lines_that_look_alike_are_named(queries: tuple[Query, ...], said: str) -> None:
    assert said in found(*queries)
    assert not found(line("green"), line("blue"), line("text"))


def test_distances_are_those_that_an_eye_sees() -> None:
    assert oklab("#ffffff") == pytest.approx((1.0, 0.0, 0.0), abs=1e-4)
    assert oklab("#000000") == pytest.approx((0.0, 0.0, 0.0))
    assert oklab("#ff0000") == pytest.approx((0.62796, 0.22486, 0.12585), abs=1e-4)
    assert 0 < APART_MIN < 0.2


def test_the_table_has_every_colour_in_both_themes() -> None:
    assert THEMES["light"].keys() == THEMES["dark"].keys()
    assert all(len(THEMES[theme][name]) == 7 for theme, name in product(THEMES, BY_PLACE))
