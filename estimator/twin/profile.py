"""configs/engines/NAME.yaml -> TwinProfile: the flags and step cost of a simulated server. The boundary.

One made from a model and a GPU (estimator/twin/from_model.py) has cache groups too, which no file names.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from estimator.capacity import KvPool
from estimator.catalog import configs_folder
from estimator.held import InFlight
from estimator.kv_group import KvGroup
from estimator.spec import SpecError
from estimator.twin.cost import FrontEndCost, StepCost
from estimator.twin.limits import EngineLimits, Policy
from estimator.yaml_file import read_yaml

NULL_BLOCKS: Final = 1
MODELS_OWN: Final = ("groups", "steps_in_flight")
"""Fields that only a model can give; a file that names them is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinProfile:
    """A simulated server, in the words of vLLM's own flags."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (a mistyped YAML key is refused by name)

    served_model_name: str
    num_gpu_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    gpu_memory_utilization: float
    step_cost: StepCost
    front_end: FrontEndCost = field(default_factory=FrontEndCost)
    """The API server's own time; the live clock counts only what a request waits before the engine has it."""
    enable_prefix_caching: bool = False
    scheduling_policy: Policy = "fcfs"
    watermark: float = 0.0
    """Share of the blocks that stays free when a request is admitted beside others."""
    groups: tuple[KvGroup, ...] = ()
    """() means one group in which every layer keeps every token."""
    steps_in_flight: int = 1

    def __post_init__(self) -> None:
        if not self.served_model_name.strip():
            raise SpecError("served_model_name is empty")
        usable = self.num_gpu_blocks - NULL_BLOCKS
        needed = sum(group.held(self.max_model_len) for group in self.limits.cache_groups)
        if needed > usable:  # vLLM refuses to start then (kv_cache_utils.check_enough_kv_cache_memory)
            raise SpecError(
                f"one request of max_model_len {self.max_model_len} needs {needed} blocks and the cache "
                f"has {usable}; raise num_gpu_blocks or lower max_model_len"
            )

    @property
    def limits(self) -> EngineLimits:
        return EngineLimits(
            num_gpu_blocks=self.num_gpu_blocks,
            # with context parallelism a block of the group spans its ranks
            block_size=self.groups[0].block_size if self.groups else self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len,
            groups=self.groups,
            enable_prefix_caching=self.enable_prefix_caching,
            policy=self.scheduling_policy,
            watermark=self.watermark,
            steps_in_flight=self.steps_in_flight,
        )

    @property
    def pool(self) -> KvPool:
        return KvPool(
            blocks=self.num_gpu_blocks,
            reserved_blocks=NULL_BLOCKS,
            block_size_tokens=self.block_size,
            bytes_per_block=None,
            source="config",
            groups=self.groups,
            in_flight=InFlight(steps=self.steps_in_flight, chunk_tokens=self.max_num_batched_tokens),
        )


def read_profile(name: str, folder: Path | None = None) -> TwinProfile:
    """The profile `name` of configs/engines. Raises SpecError, one sentence, when it cannot be used."""
    folder = folder or configs_folder() / "engines"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
        raise SpecError(f"there is no engine profile {name!r} in {folder}; {hint}")
    path = folder / f"{name}.yaml"
    body = read_yaml(path)
    try:
        return parse_profile(body)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def parse_profile(body: Any) -> TwinProfile:
    """A TwinProfile from plain data. Raises SpecError naming the first wrong key."""
    if not isinstance(body, dict):
        raise SpecError("an engine profile is a mapping of keys, see configs/engines/tiny.yaml")
    for key in MODELS_OWN:
        if key in body:
            raise SpecError(f"{key!r} follows from a model; leave it out, or start with --model and --gpu")
    try:
        return TypeAdapter(TwinProfile).validate_python(body)
    except ValidationError as error:
        raise SpecError(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        owner = StepCost if len(first["loc"]) > 1 else TwinProfile
        known = (field.name for field in fields(owner) if field.name not in MODELS_OWN)
        return f"unknown key {where!r}; known are {', '.join(known)}"
    if first["type"] == "missing":
        return f"{where!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
