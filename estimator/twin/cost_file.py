"""The file that `ullage calibrate` writes and `ullage predict` reads: a ServerCost and whose it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import yaml
from pydantic import TypeAdapter, ValidationError

from estimator.calibration import calibration_path
from estimator.spec import EngineName, SpecError
from estimator.twin.cost import ServerCost
from estimator.whole_file import replace_file
from estimator.yaml_file import read_yaml

FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCost:
    """What was measured, on which server and when (ISO 8601, UTC)."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (a mistyped YAML key is refused by name)

    model: str
    engine: EngineName
    version: str | None
    measured_at: str
    cost: ServerCost
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise SpecError(f"format is {self.format} and this version reads {FORMAT}: calibrate again")


def cost_path(model: str, engine: EngineName, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the cost of a served model is kept unless told otherwise: beside the calibration store."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"
    return calibration_path(environ).parent / "step-costs" / f"{name}.{engine}.yaml"


def write_cost(path: Path, measured: MeasuredCost) -> None:
    """Replaces the file whole. Raises SpecError when it cannot be written."""
    head = "# What a step of this server costs, seconds; measured by `ullage calibrate`.\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, head + yaml.safe_dump(asdict(measured), sort_keys=False))
    except OSError as error:
        raise SpecError(f"cannot write {path} ({error.strerror}); name another file with --output") from None


def read_cost(path: Path) -> MeasuredCost:
    """Raises SpecError, one sentence, when the file is missing, too large or something else."""
    if not path.exists():
        raise SpecError(f"there is no {path}; make it with `ullage calibrate`")
    body = read_yaml(path)
    try:
        return TypeAdapter(MeasuredCost).validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SpecError(f"{path}: {where}: {first['msg']}") from error
