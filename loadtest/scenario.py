"""YAML -> Scenario: what to send, how much of it, and what counts as good. The boundary for that file.

Prompts, lengths and their order come from the scenario's seed, so a run can be repeated.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from estimator.errors import PlainError
from estimator.spec import Lengths, SpecError, Workload

SCENARIO_BYTES_MAX: Final = 1_000_000
_STRICT: Final = {"extra": "forbid"}
Endpoint = Literal["completions", "chat"]
PATHS: Final[Mapping[Endpoint, str]] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


class ScenarioError(PlainError, ValueError):
    """The scenario cannot be used: one sentence that names the key and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step: hold a number of users for `hold_s` seconds.

    Give either `users`, or `of` and `ratio`: a share of the predicted limit, so that one scenario fits
    a laptop's twin and an eight-GPU server. of: guaranteed | saturation | slots.
    """

    __pydantic_config__ = _STRICT

    hold_s: float
    users: int | None = None
    of: Literal["guaranteed", "saturation", "slots"] | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.hold_s <= 0:
            raise ScenarioError(f"hold_s must be above 0, got {self.hold_s}")
        if (self.users is None) == (self.of is None) or (self.of is None) != (self.ratio is None):
            raise ScenarioError("a stage takes either `users`, or `of` and `ratio`")
        if self.users is not None and self.users < 1:
            raise ScenarioError(f"users must be at least 1, got {self.users}")
        if self.ratio is not None and self.ratio <= 0:
            raise ScenarioError(f"ratio must be above 0, got {self.ratio}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a good request is: `percentile` of requests must keep every limit that is set."""

    __pydantic_config__ = _STRICT

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    percentile: float = 95.0
    failures_max_ratio: float = 0.01

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ScenarioError(f"limits.{name} must be above 0, got {value}")
        if not 50.0 <= self.percentile < 100.0:
            raise ScenarioError(f"limits.percentile must be from 50 to below 100, got {self.percentile}")
        if not 0.0 <= self.failures_max_ratio < 1.0:
            raise ScenarioError(
                f"limits.failures_max_ratio must be from 0 to below 1, got {self.failures_max_ratio}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """When a silent server is given up on, seconds."""

    __pydantic_config__ = _STRICT

    connect_s: float = 10.0
    first_token_s: float = 60.0
    between_tokens_s: float = 30.0
    total_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("connect_s", "first_token_s", "between_tokens_s", "total_s"):
            if getattr(self, name) <= 0:
                raise ScenarioError(f"timeouts.{name} must be above 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole test: the workload, the stages and the limits."""

    __pydantic_config__ = _STRICT

    name: str
    input_tokens: Lengths
    output_tokens: Lengths
    stages: tuple[Stage, ...]
    seed: int = 1
    endpoint: Endpoint = "completions"
    settle_s: float = 5.0
    """Seconds at the start of each stage that are not judged."""
    spawn_rate_per_s: float = 20.0
    failure_pause_s: float = 1.0
    """How long a user waits after a failed request, so that a broken server does not meet a storm."""
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    twin: str | None = None
    """Engine profile of configs/engines that stands in for the server when no host is given."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ScenarioError("stages is empty: give at least one stage")
        if self.spawn_rate_per_s <= 0:
            raise ScenarioError(f"spawn_rate_per_s must be above 0, got {self.spawn_rate_per_s}")
        for stage in self.stages:
            if stage.hold_s <= self.settle_s:
                raise ScenarioError(
                    f"a stage holds for {stage.hold_s:g} s, which settle_s {self.settle_s:g} uses up: "
                    "hold it longer or settle faster"
                )

    @property
    def workload(self) -> Workload:
        return Workload(input_tokens=self.input_tokens, output_tokens=self.output_tokens)


def read_scenario(path: Path) -> Scenario:
    """Raises ScenarioError, one sentence, when the file is missing, too large or no scenario."""
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= SCENARIO_BYTES_MAX else None
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"cannot read scenario {path}: {error}") from error
    if text is None:
        raise ScenarioError(f"scenario {path} has {size} bytes; at most {SCENARIO_BYTES_MAX} are read")
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return parse_scenario(body)
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error


def parse_scenario(body: Any) -> Scenario:
    """A Scenario from plain data; raises ScenarioError naming the first wrong key."""
    if not isinstance(body, dict):
        raise ScenarioError("a scenario is a mapping of keys, see configs/scenarios/qwen-chat.yaml")
    try:
        return TypeAdapter(Scenario).validate_python(body)
    except ValidationError as error:
        raise ScenarioError(_sentence(error)) from error
    except SpecError as error:
        raise ScenarioError(str(error)) from error


def scenario_body(scenario: Scenario) -> dict[str, Any]:
    """Plain data that parse_scenario turns into an equal Scenario again, also after a trip through JSON."""
    body: dict[str, Any] = TypeAdapter(Scenario).dump_python(scenario, mode="json", exclude_none=True)
    return body


def _sentence(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    # a mistyped key is also a missing one: the first says more
    first = next((one for one in found if one["type"] == "unexpected_keyword_argument"), found[0])
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        known = _keys_beside(first["loc"])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"unknown key {where!r}; {hint}"
    if first["type"] == "missing":
        return f"{where!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    owners: dict[str, type] = {
        "stages": Stage,
        "limits": Limits,
        "timeouts": Timeouts,
        "input_tokens": Lengths,
        "output_tokens": Lengths,
    }
    owner = owners.get(str(location[0]), Scenario) if len(location) > 1 else Scenario
    return sorted(owner.__dataclass_fields__)  # type: ignore[attr-defined]
