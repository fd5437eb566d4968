"""YAML -> Scenario: what to send, how much of it, and what counts as good. The boundary for that file.

Prompts, lengths and their order come from the scenario's seed, so a run can be repeated.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from estimator.spec import Lengths, Workload
from loadtest.scenario.dataset import Dataset
from loadtest.scenario.limits import Limits, LimitsAsked
from loadtest.scenario.parts import (
    STRICT,
    Arrivals,
    Images,
    ModelShare,
    SearchAsked,
    Session,
    SharedPrefix,
    Stage,
    check_extra_body,
    check_extra_headers,
    lengths_of,
    require,
    require_positive,
)
from loadtest.scenario.trace import Trace, looked_at

Endpoint = Literal["completions", "chat"]
PATHS: Final[Mapping[Endpoint, str]] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
SESSIONS_SAMPLED: Final = 400
"""Conversations that a prediction is made of; their turns are what the server sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """When a silent server is given up on, seconds."""

    __pydantic_config__ = STRICT

    connect_s: float = 10.0
    first_token_s: float = 60.0
    between_tokens_s: float = 30.0
    total_s: float = 300.0

    def __post_init__(self) -> None:
        require_positive("timeouts.", self, "connect_s", "first_token_s", "between_tokens_s", "total_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A whole test: the workload, the stages or the search, and the limits."""

    __pydantic_config__ = STRICT

    name: str
    input_tokens: Lengths | None = None
    """Of a whole prompt, template, system prompt and images included; of a later turn, what it adds."""
    output_tokens: Lengths | None = None
    stages: tuple[Stage, ...] = ()
    search: SearchAsked | None = None
    """Given instead of stages."""
    seed: int = 1
    endpoint: Endpoint = "completions"
    ignore_eos: bool = True
    """Answers reach their length whatever the model says; without it they may end before."""
    arrivals: Arrivals = field(default_factory=Arrivals)
    shared_prefix: SharedPrefix | None = None
    prefix_hit_ratio: float | None = None
    """Share of the prompt tokens that the prefix cache is to hold, where only the person knows it."""
    session: Session | None = None
    dataset: Dataset | None = None
    trace: Trace | None = None
    models: tuple[ModelShare, ...] = ()
    """Which models or adapters are asked for; () is the one model the server serves."""
    images: Images | None = None
    system: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    response_format: Mapping[str, Any] | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    extra_headers: Mapping[str, str] = field(default_factory=dict)
    settle_s: float = 5.0
    """Seconds at the start of each stage that are not judged."""
    spawn_rate_per_s: float = 20.0
    failure_pause_s: float = 1.0
    """How long a user waits after a failed request, so that a broken server does not meet a storm."""
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    tokenizer: str | None = None
    """A model's folder, or the tokenizer.json in it, that counts in place of the server's tokenizer."""
    twin: str | None = None
    """Engine profile of configs/engines that stands in for the server when no host is given."""

    def __post_init__(self) -> None:
        require_positive("", self, "spawn_rate_per_s")
        ratio = self.prefix_hit_ratio
        require(ratio is None or 0 <= ratio < 1, f"prefix_hit_ratio must be from 0 to below 1, got {ratio}")
        _check_lengths(self)
        _check_endpoint(self)
        _check_stages(self)
        _check_search(self)
        check_extra_body(self.extra_body)
        check_extra_headers(self.extra_headers)

    @property
    def workload(self) -> Workload:
        """What the server will see, a turn of a conversation as a request with all that was said before.

        Prompt and answer lengths are given apart, as if drawn independently; the longest request is true.
        """
        if self.trace is not None:
            seen = self.trace.seen or looked_at(self.trace).seen
            assert seen is not None
            return Workload(
                input_tokens=seen.input_tokens,
                output_tokens=seen.output_tokens,
                request_tokens_max=seen.request_tokens_max,
            )
        if self.dataset is not None:
            rows = self.dataset.counted
            return _workload_of([turn for row in rows for turn in row.turns])
        assert self.input_tokens is not None
        assert self.output_tokens is not None
        if self.session is None:
            return Workload(input_tokens=self.input_tokens, output_tokens=self.output_tokens)
        return _of_sessions(self.session, self.input_tokens, self.output_tokens, self.seed)

    @property
    def ignores_eos(self) -> bool:
        """What each request asks for; where it does not, the planned output lengths are upper bounds."""
        ends_by_itself = bool(self.tools) or self.response_format is not None  # a call, a JSON value
        return bool(self.extra_body.get("ignore_eos", self.ignore_eos and not ends_by_itself))

    @property
    def request_tokens_max(self) -> int:
        """The longest request that can be sent, prompt and answer together."""
        return self.workload.longest_tokens


def _workload_of(requests: list[tuple[int, int]]) -> Workload:
    require(bool(requests), "dataset: its prompts were not counted")
    return Workload(
        input_tokens=lengths_of(prompt for prompt, _ in requests),
        output_tokens=lengths_of(answer for _, answer in requests),
        request_tokens_max=max(map(sum, requests)),
    )


def _of_sessions(session: Session, inputs: Lengths, outputs: Lengths, seed: int) -> Workload:
    assert session.turns is not None
    rng, turns = random.Random(f"sessions {seed}"), []  # noqa: S311
    for _ in range(SESSIONS_SAMPLED):
        context = 0
        for _ in range(session.turns.at(rng.random())):
            prompt, answer = context + inputs.at(rng.random()), outputs.at(rng.random())
            if not session.has_room(prompt + answer):
                break
            turns.append((prompt, answer))
            context = prompt + answer
    return replace(_workload_of(turns), request_tokens_max=session.request_tokens_max(inputs, outputs))


def _check_lengths(scenario: Scenario) -> None:
    """Lengths come from the scenario, from a dataset or from a trace; only what goes together is given."""
    source = "trace" if scenario.trace is not None else "dataset" if scenario.dataset is not None else None
    require(scenario.trace is None or scenario.dataset is None, "give either a dataset or a trace, not both")
    needed = () if source else ("input_tokens", "output_tokens")
    for name in needed:
        require(getattr(scenario, name) is not None, f"{name!r} is missing")
    not_with = {
        "trace": ("input_tokens", "output_tokens", "session", "shared_prefix", "images"),
        "dataset": ("input_tokens", "shared_prefix", "images"),
    }
    for name in not_with.get(source or "", ()):
        require(getattr(scenario, name) is None, f"{name} comes from the {source}: leave one of them out")
    _check_turns(scenario)
    session, inputs, outputs = scenario.session, scenario.input_tokens, scenario.output_tokens
    if session is not None and inputs is not None and outputs is not None:
        require(
            session.has_room(inputs.longest + outputs.longest),
            f"session.context_tokens_max {session.context_tokens_max} has no room for a first turn of "
            f"{inputs.longest} input + {outputs.longest} output tokens",
        )


def _check_turns(scenario: Scenario) -> None:
    """A session says how many turns there are, or a dataset of conversations does."""
    session, dataset = scenario.session, scenario.dataset
    if session is None:
        return
    if dataset is None:
        require(session.turns is not None, "'session.turns' is missing")
        require(session.answers == "served", "session.answers: recorded needs a dataset that holds them")
        return
    require(session.turns is None, "session.turns comes from the dataset: leave one of them out")
    require(
        dataset.format == "sharegpt",
        f"a session replays a dataset's conversations, which format: {dataset.format} has not: "
        "use format: sharegpt, or leave session out",
    )


def _check_endpoint(scenario: Scenario) -> None:
    for name in ("session", "images", "system", "tools"):
        require(
            scenario.endpoint == "chat" or not getattr(scenario, name),
            f"{name} needs endpoint: chat, since /v1/completions knows no messages",
        )
    require(scenario.system is None or bool(scenario.system.strip()), "system is empty: leave it out")


def searching(scenario: Scenario, asked: SearchAsked | None = None) -> Scenario:
    """The same load, with a search in place of its stages. Raises ScenarioError where it cannot be one."""
    return replace(scenario, stages=(), search=asked or scenario.search or SearchAsked())


def limited(scenario: Scenario, asked: LimitsAsked) -> Scenario:
    """The same load under the limits that were asked for. Raises ScenarioError."""
    return replace(scenario, limits=asked.over(scenario.limits))


def _check_stages(scenario: Scenario) -> None:
    searches = scenario.search is not None
    require(
        bool(scenario.stages) or searches, "stages is missing or empty: give at least one stage, or a search"
    )
    require(not (scenario.stages and searches), "give either stages or a search, not both")
    kind = scenario.arrivals.kind
    held = [stage for stage in scenario.stages if not stage.is_dip]
    require(bool(held) or searches, "every stage has 0 users: give one that asks for something")
    for stage in held:
        require(
            stage.hold_s > scenario.settle_s,
            f"a stage holds for {stage.hold_s:g} s, which settle_s {scenario.settle_s:g} uses up: "
            "hold it longer or settle faster",
        )
        require(
            stage.rate_per_s is None or kind not in ("closed", "trace"),
            f"a stage has a rate_per_s, which arrivals of kind {kind} do not follow: "
            "set arrivals: {kind: poisson}, or leave it out",
        )
        require(
            stage.rate_per_s is not None or kind in ("closed", "trace"),
            f"arrivals of kind {kind} need a rate_per_s in each stage",
        )
    if kind == "trace":
        require(scenario.trace is not None, "arrivals of kind trace need a trace: {file, format}")
        require(len(scenario.stages) == 1, "arrivals of kind trace play it once through: give one stage")


def _check_search(scenario: Scenario) -> None:
    if scenario.search is None:
        return
    limits, session = scenario.limits, scenario.session
    require(
        any(limit is not None for limit in (limits.ttft_s, limits.tpot_s, limits.e2e_s)),
        "a search needs to know what is good: set ttft_s, tpot_s or e2e_s in limits, or --goodput",
    )
    require(
        scenario.arrivals.kind == "closed",
        f"a search sets the number of users, which arrivals of kind {scenario.arrivals.kind} do not follow: "
        "leave arrivals out, or give stages",
    )
    require(
        session is None or session.think_s.mean_s == 0,
        "a search needs users who ask again at once: leave session.think_s out, or give stages",
    )
