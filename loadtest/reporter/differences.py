"""What two runs had set or installed differently, and whether they still answer the same question. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, Final

from pydantic import TypeAdapter

from loadtest.reporter.snapshot import Snapshot
from loadtest.scenario import Scenario

NOT_THE_WORKLOAD: Final = frozenset({"name", "twin", "stages", "search"})
"""Keys of a scenario that do not change what a request is: other stages may share a concurrency."""
SHOWN_CHARACTERS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What was not the same, apart from the figures; `is_workload`: the runs answer different questions."""

    what: str
    old: str
    new: str
    is_workload: bool


def differences(old: Snapshot, new: Snapshot) -> Iterator[Difference]:
    """Everything that was set or installed differently, in words of the scenario and the manifest."""
    facts: tuple[tuple[str, Any, Any, bool], ...] = (
        ("model", old.model, new.model, True),
        ("engine", old.engine, new.engine, True),
        ("seed", old.seed, new.seed, True),
        ("scenario", _workload(old), _workload(new), True),
        ("stages", old.scenario.get("stages"), new.scenario.get("stages"), False),
        ("search", old.scenario.get("search"), new.scenario.get("search"), False),
        ("versions", old.versions, new.versions, False),
        ("server", old.server, new.server, False),
    )
    for what, before, after, is_workload in facts:
        for path, was, became in _apart(what, before, after):
            yield Difference(what=path, old=_short(was), new=_short(became), is_workload=is_workload)


def _workload(run: Snapshot) -> dict[str, Any]:
    """A key that the run's version did not know yet had its default."""
    whole = _over(_scenario_defaults(), run.scenario)
    return {key: value for key, value in whole.items() if key not in NOT_THE_WORKLOAD}


@cache
def _scenario_defaults() -> dict[str, Any]:
    defaults = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(Scenario)
        if field.name != "seed" and (field.default is not MISSING or field.default_factory is not MISSING)
    }
    plain: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(defaults, mode="json", exclude_none=True)
    return plain


def _over(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, and of `defaults` what it leaves out, key by key."""
    whole = {**defaults, **given}
    for key, value in given.items():
        if isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping):
            whole[key] = _over(defaults[key], value)
    return whole


def _apart(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from _apart(f"{path}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield path, old, new


def _short(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
