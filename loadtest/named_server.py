"""The server of a run as a person named it, kept with the run: what a later question begins from."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.engine_spec import EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedServer:
    """A model on a GPU under flags; or the engine profile of the twin that stood in."""

    model: str | None = None
    """As --model-config had it: a path, or a name from `ullage models`."""
    gpu: str | None = None
    flags: EngineSpec | None = None
    twin: str | None = None
