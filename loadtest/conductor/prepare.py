"""Preflight: asks the server what it is, predicts, plans the stages and opens the run folder.

Everything that can be wrong is found here, before the first request and before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from estimator.capacity import Prediction
from estimator.spec import EngineName
from loadtest.origin import Origin
from loadtest.run_folder import Manifest, RunFolder
from loadtest.scenario import Scenario


class PreflightError(Exception):
    """The run cannot start: one sentence that names the fix, and the exit code of the command (2 or 3)."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What a person asked for. `model` None means "the one model the server serves"."""

    origin: Origin
    scenario: Scenario
    engine: EngineName
    runs_root: Path
    model: str | None = None
    max_num_seqs: int | None = None
    users_max: int | None = None
    """Set when the person gave -u: the stages of the scenario are not used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRun:
    folder: RunFolder
    manifest: Manifest
    scenario: Scenario
    prediction: Prediction | None


def prepare_run(request: RunRequest) -> PreparedRun:
    """Raises PreflightError; leaves no folder behind then."""
    raise NotImplementedError


def open_prepared(root: Path) -> PreparedRun:
    """The run that `ullage signoff` prepared, read back by the Locust process it starts."""
    raise NotImplementedError
