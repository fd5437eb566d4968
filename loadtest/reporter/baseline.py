"""A run's figures as a small JSON file that is kept in a repository, and back. The boundary for that file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from estimator.errors import PlainError
from loadtest.reporter.snapshot import FORMAT, Snapshot
from loadtest.run_folder import replace_file

BASELINE_BYTES_MAX: Final = 4_000_000
DIGITS: Final = 6


class BaselineError(PlainError):
    """The baseline cannot be used: one sentence that names the file and the fix."""


def write_baseline(path: Path, run: Snapshot) -> None:
    """Keys in a fixed order and figures of six digits, so that a diff shows what changed.

    Raises BaselineError for a VOID run, RunFolderError when the file cannot be written.
    """
    if run.status == "VOID":
        raise BaselineError(f"{run.run_id} is VOID and cannot be a baseline: {run.reason}")
    replace_file(path, json.dumps(_rounded(dataclasses.asdict(run)), indent=2, ensure_ascii=True) + "\n")


def read_baseline(path: Path) -> Snapshot:
    """Raises BaselineError."""
    again = f"write it anew with: ullage gate RUN --baseline {path} --write-baseline"
    try:
        if path.stat().st_size > BASELINE_BYTES_MAX:
            raise BaselineError(f"{path} is too large for a baseline: {again}")
        run = TypeAdapter(Snapshot).validate_json(path.read_bytes())
    except OSError as error:
        raise BaselineError(f"cannot read the baseline {path}: {error.strerror}; {again}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise BaselineError(f"{path} is no baseline ({key}: {first['msg']}): {again}") from error
    if run.format != FORMAT:
        raise BaselineError(f"{path} has format {run.format}, this version reads {FORMAT}: {again}")
    return run


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.{DIGITS}g}")
        case dict():
            return {key: _rounded(part) for key, part in value.items()}
        case list() | tuple():
            return [_rounded(part) for part in value]
    return value
