"""The levels of the waterfall: how many requests fit, with one more thing known at each. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, Literal

from estimator.capacity import Prediction
from estimator.held import held_over_life
from estimator.spec import Workload
from estimator.units import GB, GIB
from loadtest.reporter.attribution import HeldCheck, held_check
from loadtest.reporter.observation import Observation, StageObservation
from loadtest.textbook_facts import TextbookFacts

SHARES: Final = 24
"""Evenly spaced shares of the prompt lengths that their mean is taken over."""

TermName = Literal[
    "unit",
    "memory",
    "pool",
    "stored",
    "blocks",
    "longest",
    "life",
    "prefix",
    "held",
    "slots",
    "preemption",
    "scheduler",
    "latency",
    "front_end",
    "admission",
    "client",
    "not_tried",
    "unexplained",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`level`: requests, were all so up to here."""

    name: TermName
    level: Fraction
    figure: str
    sentence: str


def at_max_model_len(prediction: Prediction) -> Fraction:
    pool, longest = prediction.pool, max(prediction.max_model_len, 2)
    held = held_over_life(pool.tables, Workload.constant(longest - 1, 1), pool.in_flight)
    return Fraction(pool.engines * held.guaranteed(pool.usable_blocks))


def pool_figure(prediction: Prediction) -> str:
    pool = prediction.pool
    each = f"{pool.engines} engines, each of " if pool.engines > 1 else ""
    return (
        f"{each}{pool.usable_blocks:,} blocks of {pool.block_size_tokens} tokens, every request at "
        f"max_model_len {prediction.max_model_len:,}"
    )


def textbook_steps(facts: TextbookFacts, prediction: Prediction, at_max: Fraction) -> Iterator[Step]:
    """The textbook as it is worked out by hand, then in bytes, then with what one engine really has."""
    weights = facts.weights_bytes + facts.overhead_bytes
    free_mixed = max(Fraction(0), Fraction(facts.gpu_memory_bytes, GIB) - Fraction(weights, GB))
    each_mixed = Fraction(facts.growing_bytes, 10**6)
    yield Step(
        name="unit",
        level=Fraction(int(free_mixed * 1024 / each_mixed)),
        figure=f"floor({float(free_mixed):,.1f} x 1024 / {float(each_mixed):,.0f}), every request at "
        f"max_model_len {prediction.max_model_len:,}",
        sentence="",
    )
    yield Step(
        name="unit",
        level=Fraction(facts.free_bytes, facts.growing_bytes),
        figure=f"{facts.free_bytes / GIB:,.2f} GiB / {facts.growing_bytes / GIB:,.3f} GiB",
        sentence="weights come in GB and GPUs in GiB: here bytes are divided by bytes, not rounded",
    )
    pool = prediction.pool
    kv_bytes = facts.usable_blocks * facts.block_bytes
    taken = ", ".join(f"{name} {size / GIB:,.1f}" for name, size in facts.taken_bytes.items() if size)
    yield Step(
        name="memory",
        level=Fraction(kv_bytes, facts.growing_bytes),
        figure=f"{kv_bytes / GIB:,.2f} GiB for the KV cache",
        sentence=f"the engine's own ledger instead of weights and {_percent(facts)} (GiB: {taken})",
    )
    if pool.usable_blocks != facts.usable_blocks:
        kv_bytes = pool.usable_blocks * facts.block_bytes
        yield Step(
            name="pool",
            level=Fraction(kv_bytes, facts.growing_bytes),
            figure=f"{pool.usable_blocks:,} blocks, {facts.usable_blocks:,} computed",
            sentence="what the server itself has, where the ledger was off",
        )
    tables = pool.tables
    if len(tables) == 1 and tables[0].kind == "full":
        token_bytes = Fraction(facts.block_bytes, tables[0].block_size)
        textbook_bytes = Fraction(facts.growing_bytes, prediction.max_model_len)
        yield Step(
            name="stored",
            level=kv_bytes / token_bytes / prediction.max_model_len,
            figure=f"{float(token_bytes) / 1024:,.1f} KiB a token, {float(textbook_bytes) / 1024:,.1f} in "
            "textbooks",
            sentence="the cache keeps KV heads, not attention heads, and activations do not grow",
        )
    yield Step(
        name="blocks",
        level=at_max,
        figure=f"blocks of {pool.block_size_tokens} tokens, {len(tables)} cache "
        f"group{'s' if len(tables) > 1 else ''}",
        sentence="memory is held in whole blocks, and requests are whole",
    )


def _percent(facts: TextbookFacts) -> str:
    return f"{round(100 * facts.overhead_bytes / max(facts.weights_bytes, 1))}%"


def length_steps(prediction: Prediction) -> Iterator[Step]:
    held, workload = prediction.held, prediction.workload
    yield Step(
        name="longest",
        level=Fraction(prediction.n_guaranteed),
        figure=f"{workload.longest_tokens:,} of {prediction.max_model_len:,} tokens",
        sentence=f"the scenario's longest request holds {held.longest_blocks} blocks: N_guaranteed",
    )
    yield Step(
        name="life",
        level=Fraction(prediction.n_saturation),
        figure=f"{held.mean_blocks:.1f} of {held.longest_blocks} blocks on average",
        sentence="requests grow while they run and seldom stand at their longest together: N_saturation",
    )


def observed_steps(prediction: Prediction, observation: Observation, level: Fraction) -> Iterator[Step]:
    for steps in (_held_steps, _slots_step, _scheduler_step, _wall_step, _outside_step, _not_tried_step):
        for step in steps(prediction, observation, level):
            level = step.level
            yield step


def _held_steps(prediction: Prediction, observation: Observation, level: Fraction) -> Iterator[Step]:
    """What a request was seen to hold, and how much of the difference the prefix cache can have saved."""
    check = held_check(prediction, observation)
    if check is None or check.observed_blocks <= 0:
        return
    usable, predicted = Fraction(prediction.pool.usable_blocks_of_all), Fraction(prediction.held.mean_blocks)
    hit_ratio = check.prefix_hit_ratio
    if hit_ratio is not None:
        saved = _saved_blocks(prediction, check, hit_ratio)
        yield Step(
            name="prefix",
            level=usable / (predicted - saved),
            figure=f"{hit_ratio:.1%} of prompt tokens were found in the cache",
            sentence=f"a block that several requests share is held once: {float(saved):.1f} blocks a request",
        )
    yield Step(
        name="held",
        level=usable / Fraction(check.observed_blocks),
        figure=f"{check.observed_blocks:.1f} blocks seen, {check.predicted_blocks:.1f} predicted",
        sentence=f"what a running request really held at {check.users} users",
    )


def _saved_blocks(prediction: Prediction, check: HeldCheck, hit_ratio: float) -> Fraction:
    """At most what was found, and at most what is missing from the prediction."""
    lengths = prediction.workload.input_tokens
    mean_tokens = sum(lengths.at((i + 0.5) / SHARES) for i in range(SHARES)) / SHARES
    found = prediction.pool.held_blocks(int(hit_ratio * mean_tokens)) if hit_ratio else 0
    missing = Fraction(check.predicted_blocks) - Fraction(check.observed_blocks)
    return max(Fraction(0), min(Fraction(found), missing))


def _slots_step(prediction: Prediction, observation: Observation, level: Fraction) -> Iterator[Step]:
    slots, broken = prediction.n_slots, observation.first_broken
    seen = broken.running_max if broken is not None and observation.wall.name == "slots" else None
    if slots is None and seen is None:
        return
    most = Fraction(slots) if slots is not None else Fraction(seen or 0)
    yield Step(
        name="slots",
        level=min(level, most),
        figure=f"{int(most)} slots" + ("" if slots is not None else " seen"),
        sentence="max_num_seqs admits no more" if most < level else "max_num_seqs is no limit here",
    )


def _scheduler_step(prediction: Prediction, observation: Observation, level: Fraction) -> Iterator[Step]:
    """A full pool preempts somewhere between N_guaranteed and N_saturation: where, depends on how requests
    stand to one another, and only the run shows it.
    """
    broken, wall = observation.first_broken, observation.wall
    if broken is None or wall.name not in ("kv", "prefill"):
        return
    if wall.name == "prefill":
        sentence = "prompts wait for compute while blocks and slots are free"
        level = min(level, _edge(broken))
        yield Step(name="scheduler", level=level, figure=wall.evidence, sentence=sentence)
        return
    least = level * prediction.n_guaranteed / Fraction(prediction.n_saturation)
    yield Step(
        name="preemption",
        level=min(level, max(_edge(broken), least)),
        figure=wall.evidence,
        sentence="requests that are long at the same moment fill the pool before its mean does",
    )


def _edge(broken: StageObservation) -> Fraction:
    """Requests inside the engine at the stage that did not hold."""
    return Fraction(broken.users) * (1 - _outside_ratio(broken))


def _outside_ratio(stage: StageObservation) -> Fraction:
    """Share of the requests in flight that the engine does not count."""
    parked = stage.client.parked_ratio
    return Fraction(0) if parked is None else min(max(Fraction(parked), Fraction(0)), Fraction(9, 10))


_WALL_TERMS: Final[dict[str, tuple[TermName, str]]] = {
    "slo": ("latency", "a latency limit was reached before the memory was full"),
    "admission": ("admission", "the server turned requests away before its memory was full"),
    "network": ("front_end", "requests waited in front of the engine"),
}


def _wall_step(_: Prediction, observation: Observation, level: Fraction) -> Iterator[Step]:
    broken, wall = observation.first_broken, observation.wall
    if broken is None or wall.name not in _WALL_TERMS:
        return
    name, sentence = _WALL_TERMS[wall.name]
    # what waits in front of the engine is its limit, so there users are what is counted
    edge = Fraction(broken.users) if wall.name == "network" else _edge(broken)
    yield Step(name=name, level=min(level, edge), figure=wall.evidence, sentence=sentence)


def _outside_step(_: Prediction, observation: Observation, level: Fraction) -> Iterator[Step]:
    """The client's own share: what of its requests is on the way, or that it could not ask for more."""
    wall, broken = observation.wall, observation.first_broken
    if wall.name == "client":
        most = Fraction(observation.n_max if broken is None else broken.users)
        sentence = "the load generator was the bottleneck: this says nothing of the server"
        yield Step(name="client", level=min(level, most), figure=wall.evidence, sentence=sentence)
        return
    stage = broken or max(observation.stages, key=lambda stage: stage.users)
    if stage.client.parked_ratio is None or wall.name == "network":
        return
    outside = _outside_ratio(stage)
    yield Step(
        name="client",
        level=level / (1 - outside),
        figure=f"{float(outside):.1%} of the requests in flight were not in the engine",
        sentence="a request between client and engine is in flight and holds nothing",
    )


def _not_tried_step(_: Prediction, observation: Observation, level: Fraction) -> Iterator[Step]:
    n_max, broken = Fraction(observation.n_max), observation.first_broken
    if level <= n_max:
        return
    if broken is None:
        figure = f"no load above {observation.n_max} was tried"
        yield Step(
            name="not_tried", level=n_max, figure=figure, sentence="every stage held: the limit lies higher"
        )
        return
    yield Step(
        name="not_tried",
        level=level - min(level - n_max, broken.users - n_max),
        figure=f"{observation.n_max} held, {broken.users} did not",
        sentence="the limit lies between these two, and the lower one is reported",
    )
