"""Grafana's own types know every key of the boards: a misspelt one does not survive a round trip."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BOARDS = sorted((Path(__file__).parents[2] / "dashboards").glob("*.json"))
pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is a development dependency")

from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402
from grafana_foundation_sdk.cog.plugins import register_default_plugins  # noqa: E402
from grafana_foundation_sdk.models.dashboard import Dashboard  # noqa: E402

register_default_plugins()  # without it no panel has a type

NOT_IN_THEIR_SCHEMA = re.compile(
    r"\.annotations\.list\[\d+\]\.(step|titleFormat|useValueForTime)"  # the Prometheus data source's own
    r"|\.templating\.list\[\d+\]\.definition"  # what Grafana's editor shows of a query
)


def lost(board: dict[str, Any]) -> list[str]:
    """Where in the board something is that Grafana's types drop or change."""
    read = Dashboard.from_json(board)
    found = _differences(board, json.loads(json.dumps(read, cls=JSONEncoder)), "")
    return [at for at in found if not NOT_IN_THEIR_SCHEMA.fullmatch(at)]


def _differences(ours: Any, theirs: Any, at: str) -> Iterator[str]:
    if isinstance(ours, dict):
        for key, value in ours.items():
            if isinstance(theirs, dict) and key in theirs:
                yield from _differences(value, theirs[key], f"{at}.{key}")
            elif value is not None:  # their encoder leaves nulls out
                yield f"{at}.{key}"
    elif isinstance(ours, list):
        if not isinstance(theirs, list) or len(theirs) != len(ours):
            yield at
            return
        for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(mine, other, f"{at}[{index}]")
    elif ours != theirs:
        yield f"{at}: {ours!r} became {theirs!r}"


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_board_survives_grafanas_own_types(path: Path) -> None:
    assert lost(json.loads(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("word", ["fieldConfg", "gridPoss"])
def test_a_misspelt_key_does_not(word: str) -> None:
    board = json.loads(BOARDS[0].read_text("utf-8"))
    board["panels"][1][word] = {}
    assert lost(board) == [f".panels[1].{word}"]
