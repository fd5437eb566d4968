"""What boards and rules read of an engine's page, and what of it a page does not show."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from prometheus_client.parser import text_string_to_metric_families

FOLDER: Final = Path(__file__).parents[2] / "dashboards"
SCRAPE_LABELS: Final = frozenset({"job", "instance"})
"""Prometheus adds them to every series."""
BY: Final = re.compile(r"\bby \(([^)]*)\)")
MATCHER: Final = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")


def expressions(engine: str) -> Iterator[str]:
    """Every expression that reads names of `engine` (vllm or lmdeploy) itself."""
    for path in sorted((FOLDER / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            yield from (rule["expr"] for rule in group["rules"] if f"{engine}:" in rule["expr"])
    for path in sorted(FOLDER.glob("*.json")):
        yield from (
            text for text in _expressions(json.loads(path.read_text("utf-8"))) if f"{engine}:" in text
        )


def _expressions(board: dict[str, Any]) -> Iterator[str]:
    yield from (one["expr"] for one in board["annotations"]["list"])
    yield from (one["definition"] for one in board["templating"]["list"] if one["type"] == "query")
    yield from (target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))


def missing(page: str, expressions: Sequence[str], engine: str) -> list[str]:
    """What the page lacks: a name with no alternative (`or`, or a `|` of names), or a label of one."""
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    lacks: list[str] = []
    for expr in expressions:
        names = re.findall(rf"{engine}:\w+", expr)
        alternatives = " or " in expr or "__name__" in expr
        shown = [name for name in names if name in labels]
        lacks += [f"{name}: {expr}" for name in names if name not in labels and not (alternatives and shown)]
        asked = {label.strip() for by in BY.findall(expr) for label in by.split(",")}
        asked |= set(MATCHER.findall(expr)) - {"__name__"}
        for name in shown:
            lacks += [f"{name} has no {label}" for label in sorted(asked - labels[name] - SCRAPE_LABELS)]
    return lacks
