"""What a scenario will send, in tokens, worked out before anything is sent. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any, Final

from estimator.spec import Lengths
from loadtest.scenario import Scenario, Stage
from loadtest.scenario.trace import MOONCAKE_BLOCK_TOKENS, trace_rows
from loadtest.workload.ask import Ask
from loadtest.workload.asker import floor_tokens, open_workload
from loadtest.workload.plan import Planner
from loadtest.workload.prompts import WORDS, ChatWords

SHARES: Final = 2000
CONVERSATIONS: Final = 400
ASSUMED_WORDS: Final = ChatWords(words=WORDS, overhead_tokens=10, turn_tokens=8)
"""Stands in for what a server's tokenizer says until one is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Tokens of one request: the mean, the middle, one in twenty above, the longest."""

    mean: float
    p50: int
    p95: int
    longest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutlook:
    """One stage. Figures are None where they depend on the server: on its limits, on how fast it answers."""

    users: str
    rate_per_s: float | None
    hold_s: float
    requests: float | None
    input_tokens: float | None
    output_tokens: float | None
    in_flight_tokens_max: int | None
    """All users at the longest request at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A whole scenario. `repeated_ratio`: share of the prompt tokens that an earlier prompt began with."""

    name: str
    seed: int
    input_tokens: Spread
    output_tokens: Spread
    request_tokens_max: int
    repeated_ratio: float
    turns_mean: float
    stages: tuple[StageOutlook, ...]
    example: Ask


def outlook(scenario: Scenario, chat: ChatWords | None = None, model: str = "MODEL") -> Outlook:
    """chat: what the server said of its tokenizer; assumed where no server was asked."""
    words = chat
    if chat is None and (_marks_rows(scenario) if scenario.dataset else scenario.endpoint == "chat"):
        words = ASSUMED_WORDS
    asker = open_workload(scenario, model=model, run_id="check", worker=0, workers=1, chat=words)
    planner = Planner(scenario, 0, 1, floor_tokens(scenario, words))
    talks = [list(planner.conversation(seq)) for seq in range(CONVERSATIONS)] if scenario.session else []
    turns_mean = fmean(map(len, talks)) if talks else 1.0
    workload = scenario.workload
    inputs, outputs = spread(workload.input_tokens), spread(workload.output_tokens)
    longest = workload.longest_tokens
    return Outlook(
        name=scenario.name,
        seed=scenario.seed,
        input_tokens=inputs,
        output_tokens=outputs,
        request_tokens_max=longest,
        repeated_ratio=_repeated_ratio(scenario, inputs.mean, planner),
        turns_mean=turns_mean,
        stages=tuple(
            _stage(stage, scenario, (inputs.mean, outputs.mean), turns_mean, longest)
            for stage in scenario.stages
        ),
        example=asker.first(0),
    )


def spread(lengths: Lengths) -> Spread:
    return Spread(
        mean=fmean(lengths.at((i + 0.5) / SHARES) for i in range(SHARES)),
        p50=lengths.at(0.5),
        p95=lengths.at(0.95),
        longest=lengths.longest,
    )


def shortened(value: Any, most: int = 6) -> Any:
    """A body as a person can read it: long texts and lists keep their beginning, the rest is counted."""
    if isinstance(value, str):
        return value if len(value) <= 60 else f"{value[:48]}… {len(value) - 48:,} more characters"
    if isinstance(value, Mapping):
        return {key: shortened(one, most) for key, one in value.items()}
    if isinstance(value, Sequence):
        shown = [shortened(one, most) for one in islice(value, most)]
        return [*shown, f"… {len(value) - most:,} more"] if len(value) > most else shown
    return value


def _marks_rows(scenario: Scenario) -> bool:
    return scenario.dataset is not None and scenario.dataset.unique


def _stage(
    stage: Stage, scenario: Scenario, means: tuple[float, float], turns_mean: float, longest: int
) -> StageOutlook:
    users = f"{stage.users:,}" if stage.of is None else f"{stage.ratio:.0%} of {stage.of}"
    requests = None if stage.rate_per_s is None else stage.rate_per_s * stage.hold_s * turns_mean
    if scenario.arrivals.kind == "trace" and scenario.trace is not None:
        ends_s = stage.hold_s * scenario.trace.speed
        requests = sum(row.at_s < ends_s for row in trace_rows(scenario.trace))
    return StageOutlook(
        users=users,
        rate_per_s=stage.rate_per_s,
        hold_s=stage.hold_s,
        requests=requests,
        input_tokens=None if requests is None else requests * means[0],
        output_tokens=None if requests is None else requests * means[1],
        in_flight_tokens_max=None if stage.users is None else stage.users * longest,
    )


def _repeated_ratio(scenario: Scenario, input_mean: float, planner: Planner) -> float:
    if scenario.shared_prefix is not None and scenario.input_tokens is not None:
        shared = scenario.shared_prefix
        lengths = (scenario.input_tokens.at((i + 0.5) / SHARES) for i in range(SHARES))
        return fmean(min(shared.shared_tokens(tokens), tokens) for tokens in lengths) / input_mean
    if scenario.session is not None:
        plans = [plan for seq in range(CONVERSATIONS) for plan in planner.conversation(seq)]
        said = sum(plan.input_tokens - plan.added_tokens for plan in plans)
        return said / sum(plan.input_tokens for plan in plans)
    if scenario.trace is not None:
        return _repeated_blocks((row.blocks, row.input_tokens) for row in trace_rows(scenario.trace))
    return 0.0


def _repeated_blocks(rows: Iterable[tuple[tuple[int, ...], int]]) -> float:
    """Over a trace played once, into a cache that forgets nothing."""
    seen: set[int] = set()
    repeated, total = 0, 0
    for blocks, tokens in rows:
        total += tokens
        known = next((at for at, block in enumerate(blocks) if block not in seen), len(blocks))
        repeated += min(tokens, known * MOONCAKE_BLOCK_TOKENS)
        seen.update(blocks)
    return repeated / total
