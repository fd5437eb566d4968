"""Faults a server can have, as data: named, switched on from a file or, in test mode, by a request header.

A file holds a list under `faults`; see configs/faults/example.yaml. What a fault does to the engine stays
done after its `until_s`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError

from estimator.spec import SpecError
from estimator.yaml_file import read_yaml

HEADER: Final = "x-ullage-fault"
Where = Literal["answer", "speech", "stream", "metrics", "engine", "leak"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One fault: what it touches, and what its argument means and is when not given."""

    where: Where
    default: str
    numeric: bool
    says: str


def _kind(where: Where, default: str, says: str, *, numeric: bool = True) -> Kind:
    return Kind(where=where, default=default, numeric=numeric, says=says)


KINDS: Final[Mapping[str, Kind]] = {
    "rate_limited": _kind("answer", "1", "429 with this Retry-After, as it stands", numeric=False),
    "unavailable": _kind("answer", "1", "503 with this Retry-After, as it stands", numeric=False),
    "redirect": _kind("answer", "http://127.0.0.1:9", "307 to this origin", numeric=False),
    "half_open": _kind("answer", "", "the request is read and never answered", numeric=False),
    "early_eos": _kind("speech", "3", "the model stops by itself after so many tokens, whatever was asked"),
    "lying_usage": _kind("stream", "2", "completion_tokens of the usage times this"),
    "die_mid_stream": _kind("stream", "3", "the connection is reset after so many tokens"),
    "stop_talking": _kind("stream", "3", "silence after so many tokens; the connection stays"),
    "error_frame": _kind("stream", "3", "an error event after so many tokens, then the end mark"),
    "truncate": _kind("stream", "200", "the connection is closed after so many bytes of the body"),
    "cut_utf8": _kind("stream", "", "characters of several bytes, each cut by a chunk's end", numeric=False),
    "coalesced": _kind("stream", "8", "so many events in one chunk"),
    "slow_metrics": _kind("metrics", "5", "/metrics answers after so many seconds"),
    "renamed_metrics": _kind("metrics", "renamed", "this prefix for the engine's own", numeric=False),
    "counters_reset": _kind("engine", "", "every counter from 0 again, once", numeric=False),
    "engine_hung": _kind("engine", "", "no step any more; the API and /health go on", numeric=False),
    "engine_dead": _kind("engine", "", "500 for every request and 503 for /health", numeric=False),
    "slow_down": _kind("engine", "3", "every step takes so many times as long from now on"),
    "leak": _kind("leak", "1", "so many KV blocks are never given back"),
    "leak_memory": _kind("leak", "1", "so many MiB of this process neither"),
    "slow_replica": _kind("engine", "3", "so does every step of the last data-parallel rank alone"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One switch: which requests it meets, by their number and the seconds since the start."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  (a mistyped YAML key is refused by name)

    name: str
    argument: str = ""
    every: int = 1
    from_s: float = 0.0
    until_s: float = math.inf

    def __post_init__(self) -> None:
        kind = KINDS.get(self.name)
        if kind is None:
            raise SpecError(f"there is no fault {self.name!r}; known are {', '.join(KINDS)}")
        if self.every < 1:
            raise SpecError(f"fault {self.name}: every must be at least 1, got {self.every}")
        if any(ch in self.argument for ch in "\r\n"):
            raise SpecError(f"fault {self.name}: its argument is one line")
        if kind.numeric and not self._is_number(self.argument or kind.default):
            raise SpecError(f"fault {self.name} takes a number of at least 0, got {self.argument!r}")

    @staticmethod
    def _is_number(text: str) -> bool:
        try:
            return 0.0 <= float(text) < math.inf
        except ValueError:
            return False

    @property
    def where(self) -> Where:
        return KINDS[self.name].where

    @property
    def text(self) -> str:
        return self.argument or KINDS[self.name].default

    @property
    def number(self) -> float:
        return float(self.text)


def parse_header(value: str) -> Fault:
    """`NAME` or `NAME=ARGUMENT`. Raises SpecError."""
    name, _, argument = value.strip().partition("=")
    return Fault(name=name, argument=argument)


def read_faults(path: Path) -> tuple[Fault, ...]:
    """The faults of a YAML file. Raises SpecError, one sentence, when it cannot be used."""
    body = read_yaml(path)
    try:
        return parse_faults(body)
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from error


def parse_faults(body: Any) -> tuple[Fault, ...]:
    """Faults from plain data. Raises SpecError naming the first wrong key."""
    if not isinstance(body, dict) or set(body) != {"faults"}:
        raise SpecError("a file of faults is a list under the key 'faults'")
    try:
        return TypeAdapter(tuple[Fault, ...]).validate_python(body["faults"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in ("faults", *first["loc"]))
        raise SpecError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error


@dataclass(slots=True, kw_only=True)
class FaultPlan:
    """Which faults meet the next request; counts the requests."""

    faults: tuple[Fault, ...] = ()
    test_mode: bool = False
    _seen: dict[str, int] = field(default_factory=dict)

    def due(self, endpoint: str, header: str | None, since_start_s: float) -> Iterator[Fault]:
        """Those for a request of "generate" or "metrics" now; the header's own first. Raises SpecError."""
        if header is not None and self.test_mode:
            yield parse_header(header)
        number = self._seen[endpoint] = self._seen.get(endpoint, 0) + 1
        for fault in self.faults:
            here = endpoint == "metrics" if fault.where == "metrics" else endpoint == "generate"
            if here and number % fault.every == 0 and fault.from_s <= since_start_s < fault.until_s:
                yield fault
