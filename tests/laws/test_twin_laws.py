"""Laws of the twin that hold whatever is asked of it, in whatever order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from plain_scheduler import PlainScheduler
from twin_strategies import ANY_LIMITS, CROWDED, GROUPS, LIMITS

from estimator.held import InFlight, held_by_step
from estimator.kv_group import KvGroup
from estimator.spec import Lengths, SpecError, Workload
from estimator.twin.blocks import BlockPool
from estimator.twin.cost import StepCost
from estimator.twin.engine import Engine, EngineLimits, Request, Step
from estimator.twin.request import Prefix
from estimator.twin.virtual import Arrival, ClosedLoop, closed_loop, open_loop
from estimator.units import ceil_div

COST = StepCost(
    fixed_s=0.002, compute_s_per_token=3e-5, weights_s=0.004, context_s_per_token=2e-8, sequence_s=1e-4
)
LENGTHS = st.tuples(st.integers(min_value=1, max_value=60), st.integers(min_value=1, max_value=40))
SOME_PREFIXES: list[Prefix] = [(), (("rules", 9),), (("rules", 9), ("talk", 40)), (("other", 30),)]
PREFIXES = st.sampled_from(SOME_PREFIXES)


def is_sound(engine: Engine) -> bool:
    """used + free = usable, and each used block belongs to running requests: to one, if none are shared."""
    held = [block for request in engine.running for block in request.blocks]
    limits = engine.limits
    return (
        engine.pool.used_blocks + engine.pool.free_blocks == engine.pool.usable_blocks
        and len(set(held)) == engine.pool.used_blocks
        and (limits.enable_prefix_caching or len(held) == len(set(held)))
        and all(not request.blocks for request in engine.waiting)
        and all(
            limits.groups or len(request.blocks) == ceil_div(request.computed_tokens, limits.block_size)
            for request in engine.running
        )
    )


@given(st.integers(min_value=2, max_value=50), st.lists(st.integers(min_value=-8, max_value=8)))
def test_used_and_free_blocks_add_up_after_any_sequence(num_blocks: int, moves: list[int]) -> None:
    pool = BlockPool(num_blocks)
    held: list[int] = []
    for move in moves:
        if 0 <= move <= pool.free_blocks:
            held += pool.allocate(move)
        elif move < 0:
            pool.free(held[move:])
            del held[move:]
        assert pool.used_blocks == len(held) == len(set(held))
        assert pool.used_blocks + pool.free_blocks == num_blocks - 1
        assert 0 not in held


@settings(max_examples=60, deadline=None)
@given(ANY_LIMITS, st.data())
def test_no_sequence_of_adds_aborts_and_steps_loses_a_block_or_a_request(
    limits: EngineLimits, data: st.DataObject
) -> None:
    engine = Engine(limits)
    names: list[str] = []
    for action in data.draw(st.lists(st.sampled_from("aassssx"), max_size=60)):
        if action == "a":
            prompt, output = data.draw(LENGTHS)
            request_id, prompt = f"r{len(names)}", min(prompt, limits.max_model_len - 1)
            priority, prefix = data.draw(st.integers(0, 2)), data.draw(PREFIXES)
            try:
                engine.add(request_id, prompt, output, priority=priority, prefix=prefix)
            except SpecError:
                continue  # it would wait for ever
            names.append(request_id)
        elif action == "x" and names:
            engine.abort(data.draw(st.sampled_from(names)))
        elif engine.has_work:
            step = engine.step()
            assert is_sound(engine)
            assert step.batch or step.preempted
            assert step.prefill_tokens + step.decoding <= limits.max_num_batched_tokens
            assert step.context_tokens == sum(request.computed_tokens for request in step.batch)
            if names and data.draw(st.booleans()):
                engine.abort(data.draw(st.sampled_from(names)))
            engine.settle(step)
        assert is_sound(engine)
        assert len(engine.running) <= limits.max_num_seqs
    while engine.has_work:
        engine.settle(engine.step())
    assert sum(engine.stats.finished.values()) == len(names)
    assert engine.pool.used_blocks == 0


@settings(max_examples=300, deadline=None)
@given(st.one_of(ANY_LIMITS, CROWDED), st.sampled_from([1, 2]), st.integers(min_value=0, max_value=2**32))
def test_the_short_cuts_change_nothing(limits: EngineLimits, steps: int, seed: int) -> None:
    limits = replace(limits, steps_in_flight=steps)
    engine, plain, rng = Engine(limits), PlainScheduler(limits), Random(seed)
    under_way: deque[Step] = deque()
    for number in range(60):
        for index in range(rng.choice([0, 0, 1, 3])):
            prompt, output = rng.randint(1, min(40, limits.max_model_len - 1)), rng.randint(1, 30)
            more = {"priority": rng.randint(0, 2), "prefix": rng.choice(SOME_PREFIXES)}
            with suppress(SpecError):  # it would wait for ever
                plain.add(engine.add(f"r{number}-{index}", prompt, output, **more))
        abort_one(engine, plain, rng)
        if engine.has_work:
            under_way.append(step_of_both(engine, plain))
        abort_one(engine, plain, rng)
        if len(under_way) == steps:
            assert ids(engine.settle(under_way.popleft()).emitted) == plain.settle()
            assert [state(request) for request in engine.running] == [state(r) for r in plain.running]


def abort_one(engine: Engine, plain: PlainScheduler, rng: Random) -> None:
    here = [*engine.running, *engine.waiting]
    if here and rng.random() < 0.05:
        name = rng.choice(here).request_id
        engine.abort(name)
        plain.abort(name)


def step_of_both(engine: Engine, plain: PlainScheduler) -> Step:
    step = engine.step()
    plain.step()
    assert ids(step.preempted) == ids(plain.preempted)
    assert ids(step.batch) == ids(plain.scheduled)
    assert step.prefill_tokens + step.decoding == sum(plain.scheduled.values())
    assert step.context_tokens == sum(request.computed for request in plain.scheduled)
    assert [state(request) for request in engine.running] == [state(r) for r in plain.running]
    assert ids(engine.waiting) == ids(plain.waiting)
    return step


def ids(requests: Iterable[Request]) -> list[str]:
    return [request.request_id for request in requests]


def state(request: Request) -> tuple[str, int, int, list[int]]:
    return request.request_id, request.tokens, request.computed_tokens, request.blocks


def arrivals_for(limits: EngineLimits, drawn: list[tuple[float, tuple[int, int]]]) -> list[Arrival]:
    return [
        Arrival(at_s=at_s, prompt_tokens=min(prompt, limits.max_model_len - 1), output_tokens=output)
        for at_s, (prompt, output) in drawn
    ]


DRAWN = st.lists(st.tuples(st.floats(min_value=0, max_value=2), LENGTHS), max_size=30)


@settings(max_examples=60, deadline=None)
@given(LIMITS, DRAWN)
def test_every_arrival_ends_exactly_once_with_its_tokens(limits: EngineLimits, drawn: list[Any]) -> None:
    arrivals = arrivals_for(limits, drawn)
    history = open_loop(limits, COST, arrivals)
    asked = sorted((a.at_s, a.prompt_tokens, a.output_tokens) for a in arrivals)
    room = limits.max_model_len
    want = [(at_s, prompt, min(output, room - prompt)) for at_s, prompt, output in asked]
    got = sorted((r.arrival_s, r.prompt_tokens, r.output_tokens) for r in history.requests)
    assert got == sorted(want)
    assert len({request.request_id for request in history.requests}) == len(arrivals)
    assert all(r.arrival_s < r.first_token_s <= r.finish_s for r in history.requests)
    assert sum(r.preemptions for r in history.requests) == history.preemptions


@settings(max_examples=25, deadline=None)
@given(LIMITS, st.integers(), st.integers(min_value=1, max_value=12))
def test_the_same_seed_gives_the_same_history(limits: EngineLimits, seed: int, users: int) -> None:
    longest = max(1, limits.max_model_len // 2 - 1)
    lengths = Lengths(kind="uniform", min=1, max=min(longest, 30))
    workload = Workload(input_tokens=lengths, output_tokens=lengths)
    loop = ClosedLoop(users=users, until_s=0.5, workload=workload, seed=seed, ramp_s=0.1)
    assert closed_loop(limits, COST, loop) == closed_loop(limits, COST, loop)


@settings(max_examples=40, deadline=None)
@given(LIMITS, LENGTHS, st.integers(min_value=1, max_value=12))
def test_as_many_requests_as_fit_at_their_longest_never_preempt(
    limits: EngineLimits, lengths: tuple[int, int], users: int
) -> None:
    prompt, output = min(lengths[0], limits.max_model_len - 1), lengths[1]
    longest = min(prompt + output, limits.max_model_len)
    fit = (limits.num_gpu_blocks - 1) // ceil_div(longest, limits.block_size)
    loop = ClosedLoop(users=min(users, fit), until_s=0.5, workload=Workload.constant(prompt, output))
    assert closed_loop(limits, COST, loop).preemptions == 0


@settings(max_examples=40, deadline=None)
@given(LIMITS, DRAWN)
def test_the_oldest_arrival_in_the_server_always_makes_progress(
    limits: EngineLimits, drawn: list[Any]
) -> None:
    engine = Engine(limits)
    for number, arrival in enumerate(arrivals_for(limits, drawn)):
        engine.add(f"r{number}", arrival.prompt_tokens, arrival.output_tokens)
    while engine.has_work:
        step = engine.step()
        assert step.batch[0] is engine.running[0]
        assert all(victim is not engine.running[0] for victim in step.preempted)
        engine.settle(step)


@settings(max_examples=150, deadline=None)
@given(GROUPS, LENGTHS, st.integers(min_value=1, max_value=64), st.sampled_from([1, 2]))
def test_a_lone_request_holds_what_the_estimator_says_step_by_step(
    groups: list[KvGroup], lengths: tuple[int, int], tokens: int, steps: int
) -> None:
    limits = EngineLimits(
        num_gpu_blocks=2000,
        block_size=1,
        max_num_seqs=1,
        max_num_batched_tokens=tokens,
        max_model_len=1000,
        groups=tuple(groups),
        steps_in_flight=steps,
    )
    engine = Engine(limits)
    engine.add("lone", *lengths)
    held = []
    under_way: deque[Step] = deque()
    while engine.has_work:
        under_way.append(engine.step())
        if under_way[-1].batch:
            held.append(engine.pool.used_blocks)
        if len(under_way) == steps:
            engine.settle(under_way.popleft())
    assert held == list(held_by_step(groups, *lengths, InFlight(steps=steps, chunk_tokens=tokens)))
