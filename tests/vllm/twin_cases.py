"""What the twin is held to: real servers small enough to saturate, and loads that meet a wall or none."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from vllm_server import FLAGS

from estimator.spec import Lengths, Workload

ServerName = Literal["plain", "slots", "chunks", "prefixes", "windows"]
Wall = Literal["kv", "slots", "prefill", "none"]
BLOCK: Final = int(FLAGS["--block-size"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A vLLM to start. `model` is a config of tiny_model.py."""

    blocks: int
    model: Literal["tiny", "windows"] = "tiny"
    flags: Mapping[str, str] = field(default_factory=dict)
    prefix_caching: bool = False

    @property
    def arguments(self) -> list[str]:
        flags = {**FLAGS, "--num-gpu-blocks-override": str(self.blocks), **self.flags}
        switch = "--enable-prefix-caching" if self.prefix_caching else "--no-enable-prefix-caching"
        return [word for flag in flags.items() for word in flag] + [switch]

    def number(self, flag: str, default: int) -> int:
        return int({**FLAGS, **self.flags}.get(flag, default))


SERVERS: Final[Mapping[ServerName, Server]] = {
    "plain": Server(blocks=512),
    "slots": Server(blocks=512, flags={"--max-num-seqs": "16"}),
    "chunks": Server(blocks=512, flags={"--max-num-batched-tokens": "256", "--max-num-seqs": "64"}),
    "prefixes": Server(blocks=192, prefix_caching=True),
    "windows": Server(blocks=256, model="windows"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A load on one of the servers: `users` in a closed loop, or `rate_per_s` of Poisson arrivals."""

    name: str
    server: ServerName
    workload: Workload
    wall: Wall
    """The one that the twin must name, and the real server must show."""
    users: int = 0
    rate_per_s: float = 0.0
    shared_tokens: int = 0
    """Tokens at the front of every prompt that all share."""
    every_time: bool = True
    """False: run by `make validate` alone; test_scheduler compares what is scheduled there every time."""


def constant(tokens: int) -> Lengths:
    return Lengths(kind="constant", tokens=tokens)


def uniform(low: int, high: int) -> Lengths:
    return Lengths(kind="uniform", min=low, max=high)


EVEN: Final = Workload(input_tokens=constant(256), output_tokens=constant(256))
UNEVEN: Final = Workload(input_tokens=constant(256), output_tokens=uniform(128, 384))
"""Of one length they are preempted in waves, and how many a window sees is a matter of the machine's pace."""
SHORT: Final = Workload(input_tokens=constant(128), output_tokens=constant(128))
MIXED: Final = Workload(input_tokens=uniform(64, 512), output_tokens=uniform(32, 384))
READING: Final = Workload(input_tokens=constant(1024), output_tokens=constant(16))
TALK: Final = Workload(input_tokens=constant(576), output_tokens=uniform(64, 192))

ALL_CASES: Final = (
    Case(name="below every limit", server="plain", users=16, workload=EVEN, wall="none"),
    Case(name="the KV cache just full", server="plain", users=40, workload=EVEN, wall="kv", every_time=False),
    Case(name="overload with preemption", server="plain", users=64, workload=UNEVEN, wall="kv"),
    Case(name="mixed lengths", server="plain", users=64, workload=MIXED, wall="kv", every_time=False),
    Case(
        name="Poisson arrivals",
        server="plain",
        rate_per_s=4.0,
        workload=SHORT,
        wall="none",
        every_time=False,
    ),
    Case(name="max_num_seqs", server="slots", users=32, workload=SHORT, wall="slots", every_time=False),
    Case(
        name="long prompts in small chunks",
        server="chunks",
        users=24,
        workload=READING,
        wall="prefill",
        every_time=False,
    ),
    Case(
        name="a shared prefix, cached",
        server="prefixes",
        users=48,
        workload=TALK,
        shared_tokens=512,
        wall="kv",
    ),
    Case(
        name="sliding windows beside full layers",
        server="windows",
        users=24,
        workload=EVEN,
        wall="kv",
        every_time=False,
    ),
)
CASES: Final = tuple(case for case in ALL_CASES if case.every_time or os.environ.get("ULLAGE_VALIDATE"))
