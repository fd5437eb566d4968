"""The committed boards are those that Python makes: no tile that says NaN, no two lines of one colour."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "dashboards"
BOARDS = sorted(FOLDER.glob("*.json"))
OWN_METRIC = re.compile(r"\b(?:engine|engine_le|model|gpu):llm_\w+:\w+")


def generate(*words: str, script: Path = FOLDER / "generate.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-B", str(script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def board(path: Path) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return body


def panels(path: Path) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in board(path)["panels"] if panel["type"] != "row")


def expressions(path: Path) -> Iterator[str]:
    body = board(path)
    yield from (one["expr"] for one in body["annotations"]["list"])
    yield from (one["definition"] for one in body["templating"]["list"] if one["type"] == "query")
    yield from (target["expr"] for panel in panels(path) for target in panel["targets"])


def test_there_are_four_boards() -> None:
    assert [path.stem for path in BOARDS] == ["capacity", "fleet", "gpu", "soak"]
    assert len({board(path)["uid"] for path in BOARDS}) == 4


def test_the_committed_boards_are_what_the_generator_makes() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stderr


def test_a_stale_board_is_named(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        if path.suffix in (".py", ".json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "soak.json").write_text("{}\n", "utf-8")
    done = generate("--check", script=tmp_path / "generate.py")
    assert done.returncode == 1
    assert "soak.json is stale" in done.stderr
    assert "gpu.json" not in done.stderr
    assert generate(script=tmp_path / "generate.py").returncode == 0
    assert (tmp_path / "soak.json").read_bytes() == (FOLDER / "soak.json").read_bytes()


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_a_board_can_be_imported_beside_others(path: Path) -> None:
    body = board(path)
    assert 39 <= body["schemaVersion"] <= 41
    assert body["id"] is None
    names = [one["name"] for one in body["templating"]["list"]]
    assert names[:5] == ["datasource", "job", "model_name", "instance", "engine"]
    ids = [panel["id"] for panel in body["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels(path))


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_no_panel_lies_on_another(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board(path)["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_every_panel_has_a_unit_a_description_and_words_for_nothing(path: Path) -> None:
    for panel in panels(path):
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["noValue"], panel["title"]
        assert panel["description"].endswith("."), panel["title"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_what_is_nan_without_traffic_is_dropped(path: Path) -> None:
    for expr in expressions(path):
        if "histogram_quantile" in expr:
            assert expr.endswith(">= 0"), expr
        for divisor in re.findall(r" / (\(*[a-z_]+.*)", expr):
            assert "> 0)" in divisor or divisor.startswith(("gpu:llm_gpu_memory_total", "sum(gpu:")), expr


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_lines_of_one_panel_have_colours_of_their_own_that_follow_the_theme(path: Path) -> None:
    for panel in panels(path):
        colours = [
            one["value"]["fixedColor"]
            for override in panel["fieldConfig"]["overrides"]
            for one in override["properties"]
            if one["id"] == "color"
        ]
        assert len(set(colours)) == len(colours), panel["title"]
        assert not [colour for colour in colours if colour.startswith(("#", "rgb"))], panel["title"]


def test_every_recorded_name_a_board_reads_has_its_rule() -> None:
    recorded = {
        rule["record"]
        for file in (FOLDER / "rules").glob("*.yml")
        for group in yaml.safe_load(file.read_text("utf-8"))["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    read = {name for path in BOARDS for expr in expressions(path) for name in OWN_METRIC.findall(expr)}
    assert read <= recorded
    assert len(read) > 20
