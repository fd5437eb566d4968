"""What a Grafana board is made of, as frozen values; grafana.py writes them as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

NO_DATA: Final = "no traffic"
Threshold = tuple[str, float | None]
"""Colour, and the value from which it holds; None: from the lowest on."""
NEUTRAL: Final[tuple[Threshold, ...]] = (("blue", None),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression. `colour` is a named one, which follows the theme; None: by the line's place."""

    expr: str
    legend: str = ""
    colour: str | None = None
    is_limit: bool = False
    """Dashed and without an area: a limit, not something seen."""
    on_right: bool = False
    """Its own axis, with a plain number as unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """`unit` is Grafana's id of one; `about` is shown behind the (i) of the title."""

    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    width: int = 12
    height: int = 8
    decimals: int | None = None
    thresholds: tuple[Threshold, ...] = NEUTRAL
    no_data: str = NO_DATA
    is_stacked: bool = False
    min_value: float | None = 0.0
    columns: Mapping[str, str] | None = None
    """Of a table: the labels shown, each with its heading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A choice at the head of the board: the values of `label` on the series of `selector`."""

    name: str
    title: str
    selector: str
    label: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    name: str
    expr: str
    colour: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    uid: str
    title: str
    about: str
    variables: tuple[Variable, ...]
    annotations: tuple[Annotation, ...]
    rows: tuple[Row, ...]


def figure(
    title: str,
    about: str,
    expr: str,
    *,
    unit: str = "none",
    thresholds: tuple[Threshold, ...] = NEUTRAL,
    no_data: str = NO_DATA,
) -> Panel:
    """One number, a sixth of the board wide."""
    return Panel(
        title=title,
        about=about,
        unit=unit,
        queries=(Query(expr=expr),),
        kind="stat",
        width=4,
        height=4,
        thresholds=thresholds,
        no_data=no_data,
        min_value=None,
    )
