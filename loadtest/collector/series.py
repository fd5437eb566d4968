"""Prometheus' text format 0.0.4 -> series of wanted names; pure, never raises.

Only lines of known names are read, each by itself: a broken line loses its own family and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

LINE_CHARACTERS_MAX: Final = 65_536
UNREADABLE: Final = "\0"
"""No line that holds this can be read."""

_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_REST: Final = re.compile(r"\s*(?:\{(?P<labels>.*)\}\s*)?(?P<value>[-+.0-9a-zA-Z]+)(?:\s+-?[0-9]+)?\s*")
_LABEL: Final = re.compile(r'\s*([a-zA-Z_][a-zA-Z0-9_]*)\s*=\s*"([^"\\]*(?:\\.[^"\\]*)*)"\s*(?:,|$)')
_ESCAPE: Final = re.compile(r"\\(.)")

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of a page."""

    labels: Labels
    value: float


Page = Mapping[str, Sequence[Series] | None]
"""Series by the name of their family; None where a line of it was broken, so that no sum of it is whole."""


def parse_series(lines: Iterable[str], wanted: frozenset[str]) -> tuple[Page, int]:
    """Series of the wanted names, and how many of their lines could not be read."""
    found: dict[str, dict[tuple[tuple[str, str], ...], Series]] = {}
    broken: dict[str, None] = {}
    skipped_lines = 0
    for line in lines:
        name = _NAME.match(line)
        if name is None or name[0] not in wanted:
            continue
        series = _series(line, name.end())
        if series is None:
            skipped_lines += 1
            broken[name[0]] = None
        else:  # a series shown twice counts once
            found.setdefault(name[0], {})[tuple(sorted(series.labels.items()))] = series
    return {name: list(by_labels.values()) for name, by_labels in found.items()} | broken, skipped_lines


def _series(line: str, labels_at: int) -> Series | None:
    match = _REST.fullmatch(line, labels_at) if len(line) <= LINE_CHARACTERS_MAX else None
    if match is None or UNREADABLE in line:
        return None
    labels = _labels((match["labels"] or "").strip())
    value = number_of(match["value"])
    return None if labels is None or value is None else Series(labels=labels, value=value)


def _labels(text: str) -> Labels | None:
    labels: dict[str, str] = {}
    position = 0
    while position < len(text):
        label = _LABEL.match(text, position)
        if label is None:
            return None
        labels[label[1]] = _ESCAPE.sub(_unescaped, label[2])
        position = label.end()
    return labels


def _unescaped(match: re.Match[str]) -> str:
    r"""Prometheus escapes \\, \" and \n; any other backslash stands for itself."""
    return {"\\": "\\", '"': '"', "n": "\n"}.get(match[1], match[0])


def number_of(text: str) -> float | None:
    """None for NaN, infinities and negatives: no signal can be one, so it was not seen."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
