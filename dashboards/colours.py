"""Can the lines of a panel be told apart, in the light theme and in the dark one? Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from math import dist
from typing import Final

from panels import Board, Panel

THEMES: Final[Mapping[str, Mapping[str, str]]] = {
    "light": {
        "text": "#24292e",
        "red": "#e02f44",
        "orange": "#ff780a",
        "yellow": "#f2cc0c",
        "semi-dark-yellow": "#e0b400",
        "green": "#56a64b",
        "blue": "#3274d9",
        "purple": "#a352cc",
    },
    "dark": {
        "text": "#ccccdc",
        "red": "#f2495c",
        "orange": "#ff9830",
        "yellow": "#fade2a",
        "semi-dark-yellow": "#f2cc0c",
        "green": "#73bf69",
        "blue": "#5794f2",
        "purple": "#b877d9",
    },
}
"""What Grafana 13 makes of the names that the boards use."""
BY_PLACE: Final = ("green", "semi-dark-yellow", "blue", "orange", "red", "purple")
"""The first colours of palette-classic: so many servers of one panel differ in hue, later ones in shade."""
APART_MIN: Final = 0.12
"""Distance in OKLab; 1 lies between black and white. Orange and red are 0.16 apart, two yellows 0.07."""

_LMS: Final = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_LAB: Final = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def troubles(board: Board) -> Iterator[str]:
    """One line for each two lines of a panel that look alike, or might."""
    for panel in (panel for row in board.rows for panel in row.panels if panel.kind == "timeseries"):
        yield from (f"{board.title}, {panel.title}: {trouble}" for trouble in _of_panel(panel))


def alike(names: tuple[str, ...]) -> Iterator[str]:
    """Named colours of which two cannot be told apart in one of the themes."""
    for theme, colours in THEMES.items():
        for one, other in combinations(names, 2):
            if dist(oklab(colours[one]), oklab(colours[other])) < APART_MIN:
                yield f"{one} and {other} look alike in the {theme} theme"


def oklab(colour: str) -> tuple[float, ...]:
    """Lightness and two hues of #rrggbb. Source: B. Ottosson, A perceptual color space, 2020."""
    rgb = [_linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5)]
    cones = [sum(k * x for k, x in zip(row, rgb, strict=True)) ** (1 / 3) for row in _LMS]
    return tuple(sum(k * x for k, x in zip(row, cones, strict=True)) for row in _LAB)


def _of_panel(panel: Panel) -> Iterator[str]:
    named = tuple(query.colour for query in panel.queries if query.colour)
    unknown = [name for name in named if name not in THEMES["light"]]
    if unknown:
        yield f"{unknown[0]} is no colour of the table, which follows the theme"
        return
    if named and len(named) < len(panel.queries):
        yield "a line without a colour may get that of another: name all or none"
    if any(query.colour and "{{" in query.legend for query in panel.queries):
        yield "several lines of one query would have one colour"
    yield from alike(named)


def _linear(share: float) -> float:
    """sRGB's own curve, undone."""
    return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
