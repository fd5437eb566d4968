"""The file that `ullage calibrate` writes and `ullage predict` reads: a ServerCost and whose it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import TypeAdapter, ValidationError

from estimator.calibration import calibration_path
from estimator.spec import EngineName, SpecError
from estimator.twin.cost import ServerCost
from estimator.whole_file import replace_file
from estimator.yaml_file import read_yaml

FORMAT: Final = 1


_STRICT: Final = {"extra": "forbid"}  # a mistyped YAML key is refused by name


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFor:
    """The server a step cost holds for: where one of these differs, a step takes another time."""

    __pydantic_config__ = _STRICT

    model: str
    gpu: str
    engine: EngineName
    version: str
    """Major and minor."""
    tp: int
    pp: int
    dcp: int
    enable_expert_parallel: bool
    max_num_batched_tokens: int
    kv_cache_dtype: str
    quant_policy: int
    enforce_eager: bool
    async_scheduling: bool
    speculative: str
    """"" for none, else the method and its tokens."""
    backend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelKept:
    """One concurrency of the run: the twin with this cost beside what was seen, seconds and tokens/s."""

    __pydantic_config__ = _STRICT

    users: int
    foretold: Mapping[str, float]
    seen: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunKept:
    """The signed run a cost is from: what had been predicted, and what was observed."""

    __pydantic_config__ = _STRICT

    run_id: str
    requests: int
    """Of the stages it was fitted to."""
    num_gpu_blocks: int | None
    """As the server showed them."""
    n_kv: int | None
    n_max: int
    levels: tuple[LevelKept, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCost:
    """What was measured, on which server and when (ISO 8601, UTC)."""

    __pydantic_config__ = _STRICT

    model: str
    engine: EngineName
    version: str | None
    measured_at: str
    cost: ServerCost
    format: int = FORMAT
    kept_for: KeptFor | None = None
    """None: nobody said which GPU and flags, so a person has to say that it fits."""
    run: RunKept | None = None

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise SpecError(f"format is {self.format} and this version reads {FORMAT}: calibrate again")


def cost_path(model: str, engine: EngineName, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the cost of a served model is kept unless told otherwise: beside the calibration store."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"
    return calibration_path(environ).parent / "step-costs" / f"{name}.{engine}.yaml"


def write_cost(path: Path, measured: MeasuredCost) -> None:
    """Replaces the file whole. Raises SpecError when it cannot be written."""
    head = "# What a step of this server costs, seconds; measured by `ullage calibrate` or a signed run.\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, head + yaml.safe_dump(_plain(asdict(measured)), sort_keys=False))
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


def _plain(value: Any) -> Any:
    """YAML's safe dumper knows no tuples."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value
