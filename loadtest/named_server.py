"""The server of a run as a person named it, kept with the run: what a later question begins from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from estimator.engine_spec import EngineSpec

SIMULATED: Final = "+twin"
"""In the version of a simulated server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedServer:
    """A model on a GPU under flags; or the engine profile of the twin that stood in."""

    model: str | None = None
    """As --model-config had it: a path, or a name from `ullage models`."""
    gpu: str | None = None
    flags: EngineSpec | None = None
    twin: str | None = None


def is_simulated(named: NamedServer | None, versions: Mapping[str, str]) -> bool:
    """Was the run of a twin: one that we started, or one that says so itself?"""
    return SIMULATED in versions.get("server", "") or (named is not None and named.twin is not None)
