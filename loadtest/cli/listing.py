"""What `ullage models` and `ullage gpus` share: which entries the words ask for, and one aligned table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from estimator.spec import SpecError


def matching(names: Iterable[str], words: Sequence[str], kind: str) -> list[str]:
    """Names that have every word somewhere in them, whatever the case. Raises SpecError when none has."""
    found = [name for name in names if all(word.lower() in name.lower() for word in words)]
    if not found:
        asked = " and ".join(map(repr, words))
        raise SpecError(f"no name in configs/{kind} has {asked} in it; `ullage {kind}` lists them all")
    return found


def as_json(entries: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(entries, indent=2)


def as_table(columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> str:
    """One line a row, two spaces between columns. columns: heading -> "<" for words, ">" for numbers."""
    lines = [list(columns), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(line, columns.values(), widths, strict=True)
        ).rstrip()
        for line in lines
    )
