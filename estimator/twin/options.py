"""How a twin is started, besides the engine it simulates: the API server's own flags."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from estimator.engine_spec import LmdeployBackend
from estimator.spec import SpecError
from estimator.twin.faults import Fault

EngineName = Literal["vllm", "lmdeploy"]
PORTS: Final[Mapping[EngineName, int]] = {"vllm": 8000, "lmdeploy": 23333}
RANKS_MAX: Final = 64
"""More engines than one process can keep in step."""
NO_REPLICA: Final = "fault slow_replica needs --data-parallel-size of at least 2"
KEY_VARIABLE: Final = "ULLAGE_TWIN_API_KEY"
KEY_FILE_VARIABLE: Final = "ULLAGE_TWIN_API_KEY_FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Flags in vLLM's words where vLLM has them."""

    engine: EngineName = "vllm"
    backend: LmdeployBackend = "turbomind"
    """LMDeploy's own choice of engine; of no meaning to vLLM."""
    stream_interval: int = 1
    """Tokens of one chunk; the first comes alone."""
    time_scale: float = 1.0
    """Wall seconds per modelled second: 0.5 is a server twice as fast."""
    mean_output_tokens: float | None = None
    """Where a model stops by itself on average; None: it never does, as with ignore_eos."""
    seed: int = 0
    reasoning_parser: str | None = None
    tool_call_parser: str | None = None
    enable_auto_tool_choice: bool = False
    api_key: str | None = field(default=None, repr=False)
    enable_prompt_tokens_details: bool = False
    max_num_queued_reqs: int | None = None
    """Unfinished requests at most, over all ranks; more are answered 503."""
    max_num_queued_tokens: int | None = None
    """Prompt tokens without a first token, from which on requests are answered 503."""
    data_parallel_size: int = 1
    """Engines with pools of their own behind one API server."""
    test_mode: bool = False
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_num_queued_reqs", "max_num_queued_tokens"):
            if (getattr(self, name) or 0) < 0:
                raise SpecError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(self, name)}")
        if not 1 <= self.data_parallel_size <= RANKS_MAX:
            raise SpecError(
                f"--data-parallel-size must be from 1 to {RANKS_MAX}, got {self.data_parallel_size}"
            )
        self._refuse_what_lmdeploy_has_not()
        slow = [fault.name for fault in self.faults if fault.name == "slow_replica"]
        if slow and self.data_parallel_size == 1:
            raise SpecError(NO_REPLICA)
        if self.stream_interval < 1:
            raise SpecError(f"--stream-interval must be at least 1, got {self.stream_interval}")
        if not 0.0 < self.time_scale < float("inf"):
            raise SpecError(f"--time-scale must be more than 0, got {self.time_scale}")
        if self.mean_output_tokens is not None and not 1.0 <= self.mean_output_tokens < float("inf"):
            raise SpecError(f"--mean-output-tokens must be at least 1, got {self.mean_output_tokens}")

    def _refuse_what_lmdeploy_has_not(self) -> None:
        """Its ranks are servers of their own behind a proxy, and its queue has no limit."""
        if self.engine == "lmdeploy":
            for name in ("max_num_queued_reqs", "max_num_queued_tokens", "data_parallel_size"):
                if getattr(self, name) not in (None, 1):
                    raise SpecError(f"--{name.replace('_', '-')} is vLLM's; leave it out with lmdeploy")


def read_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The API key from ULLAGE_TWIN_API_KEY or the 0600 file named by ULLAGE_TWIN_API_KEY_FILE.

    None without either. Never an option: the arguments of a process can be read by everyone.
    """
    if value := environ.get(KEY_VARIABLE):
        return _checked(value)
    named = environ.get(KEY_FILE_VARIABLE)
    if not named:
        return None
    path = Path(named)
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SpecError(f"{path} can be read by others; run chmod 600 {path}")
        return _checked(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the API key file {path}: {error}") from error


def _checked(value: str) -> str:
    if not value or any(ch.isspace() or not ch.isprintable() for ch in value):
        raise SpecError("the API key is empty or holds white space; check where it comes from")
    return value
