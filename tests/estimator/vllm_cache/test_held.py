"""What a request holds, step by step against vLLM's own cache manager, and what may be promised of it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from cache_models import Run, runs

from estimator.held import TWO_STEPS, Held, InFlight, held_by_step, held_over_life, prompt_ends
from estimator.kv_group import KvGroup, full_group
from estimator.spec import Lengths, Workload

HELD = {name: run for name, run in runs().items() if run.held}
WINDOW = KvGroup(kind="window", block_size=16, layers=1, page_bytes=1, reach_tokens=128)
CHUNK = KvGroup(kind="chunk", block_size=16, layers=1, page_bytes=1, reach_tokens=1000)
STATE = KvGroup(
    kind="state", block_size=256, layers=1, page_bytes=1, state_blocks=1, rolls=True, checkpoint=True
)
CROSS = KvGroup(kind="cross", block_size=16, layers=1, page_bytes=1, reach_tokens=1500)
MIXES = {
    "full": (full_group(16),),
    "window": (WINDOW, WINDOW, full_group(32)),
    "chunk": (CHUNK, replace(CHUNK, reach_tokens=512), full_group(16)),
    "state": (STATE, STATE, full_group(256)),
    "state without checkpoint": (replace(STATE, checkpoint=False), full_group(256)),
    "fixed state": (KvGroup(kind="state", block_size=4096, layers=1, page_bytes=1, state_blocks=4),),
    "cross": (CROSS, full_group(16)),
    "speculative": (replace(WINDOW, ahead_tokens=6), replace(full_group(16), ahead_tokens=6)),
}


@pytest.mark.parametrize("name", HELD)
def test_a_request_holds_step_by_step_what_vllms_own_manager_gave_it(name: str) -> None:
    run = HELD[name]
    for theirs in run.held:
        assert life_of(run, theirs["prompt"], theirs["output"]) == {
            key: theirs[key] for key in life_of(run, theirs["prompt"], theirs["output"])
        }


def life_of(run: Run, prompt: int, answer: int) -> dict[str, Any]:
    groups = run.layout.groups
    held = list(held_by_step(groups, prompt, answer, run.in_flight))
    chunks = len(prompt_ends(groups, prompt, run.in_flight))
    decoding = held[chunks:]
    mean = held_over_life(groups, Workload.constant(prompt, answer), run.in_flight).mean_blocks
    assert mean == pytest.approx(sum(decoding) / len(decoding))
    usable_blocks = run.answers["num_blocks"] - 1
    return {
        "peak_prefill": max(held[:chunks]),
        "after_prefill": held[chunks - 1],
        "decode_mean": round(mean, 2),
        "decode_max": max(decoding),
        "at_end": decoding[-1],
        "fit_by_decode_mean": round(usable_blocks / mean, 2),
    }


@pytest.mark.parametrize("groups", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_closed_form_is_the_mean_over_the_steps(groups: tuple[KvGroup, ...], steps: int) -> None:
    in_flight = InFlight(steps=steps, chunk_tokens=700)
    for prompt, answer in ((1, 2), (15, 40), (700, 3), (1024, 300), (2999, 1100)):
        chunks = len(prompt_ends(groups, prompt, in_flight))
        decoding = list(held_by_step(groups, prompt, answer, in_flight))[chunks:]
        held = held_over_life(groups, Workload.constant(prompt, answer), in_flight)
        assert held.mean_blocks == pytest.approx(sum(decoding) / len(decoding))


@pytest.mark.parametrize("groups", MIXES.values(), ids=MIXES.keys())
def test_no_step_holds_more_than_was_promised(groups: tuple[KvGroup, ...]) -> None:
    in_flight = InFlight(steps=2, chunk_tokens=700)
    for prompt, answer in ((10, 20), (300, 300), (1300, 90), (2999, 1100)):
        held = held_over_life(groups, Workload.constant(prompt, answer), in_flight)
        life = list(held_by_step(groups, prompt, answer, in_flight))
        settled = len(prompt_ends(groups, prompt, in_flight)) + in_flight.steps - 1
        assert max(life) <= max(held.prefill_blocks, held.longest_blocks)
        assert max(life[settled:], default=0) <= held.longest_blocks


def test_chunks_of_a_prompt_end_at_whole_states() -> None:
    in_flight = InFlight(steps=2, chunk_tokens=700)
    assert prompt_ends((full_group(16),), 1500, in_flight) == [700, 1400, 1500]
    assert prompt_ends((STATE,), 1500, in_flight) == [
        512,
        1024,
        1500,
    ]  # the last stores its checkpoint itself
    assert prompt_ends((replace(STATE, checkpoint=False),), 1500, in_flight) == [512, 1024, 1280, 1500]


def test_a_state_wider_than_a_chunk_is_reached_in_several() -> None:
    wide = replace(STATE, block_size=1000, checkpoint=False)
    ends = prompt_ends((wide,), 2500, InFlight(steps=2, chunk_tokens=700))
    assert ends == [700, 1000, 1700, 2000, 2500]


def test_a_long_answer_weighs_more_than_a_short_one() -> None:
    lengths = Lengths(kind="uniform", min=1, max=2000)
    varied = held_over_life(
        (full_group(16),),
        Workload(input_tokens=Lengths.constant(1000), output_tokens=lengths),
        TWO_STEPS,
    )
    even = held_over_life((full_group(16),), Workload.constant(1000, 1000), TWO_STEPS)
    assert varied.mean_blocks > even.mean_blocks


def test_prompts_in_flight_share_one_budget_however_many_requests_there_are() -> None:
    held = held_over_life((WINDOW, full_group(16)), Workload.constant(32_000, 1000), TWO_STEPS)
    assert held.in_flight_blocks == 16_384 // 16 + 2
    assert held.prefill_blocks > held.longest_blocks
    hundred = 100 * held.longest_blocks
    assert held.guaranteed(hundred + held.in_flight_blocks) == 100
    assert held.guaranteed(hundred + held.in_flight_blocks - 1) == 99


def test_short_prompts_keep_nothing_beyond_what_decoding_takes() -> None:
    held = held_over_life((WINDOW, full_group(16)), Workload.constant(100, 1000), TWO_STEPS)
    assert held.in_flight_blocks == 0


def test_the_last_request_is_let_in_beside_all_others_at_their_longest() -> None:
    held = Held(start_blocks=1, longest_blocks=10, mean_blocks=5.0, prefill_blocks=10, admission_blocks=45)
    assert held.guaranteed(100) == 6  # five at their longest leave 50 of 100 blocks free
    assert held.guaranteed(44) == 0


@pytest.mark.parametrize("groups", MIXES.values(), ids=MIXES.keys())
def test_as_many_as_are_guaranteed_never_run_out(groups: tuple[KvGroup, ...]) -> None:
    """A server in miniature: prompts and answers of random length, the token budget shared, no preemption."""
    in_flight = InFlight(steps=2, chunk_tokens=700)
    workload = Workload(
        input_tokens=Lengths(kind="uniform", min=1, max=2500),
        output_tokens=Lengths(kind="uniform", min=2, max=400),
    )
    held = held_over_life(groups, workload, in_flight)
    usable_blocks = 40 * held.longest_blocks
    requests = held.guaranteed(usable_blocks)
    assert requests >= 20
    assert most_in_use(groups, workload, in_flight, requests) <= usable_blocks


def most_in_use(groups: tuple[KvGroup, ...], workload: Workload, in_flight: InFlight, requests: int) -> int:
    """The most blocks that `requests` hold together in 800 steps; each that ends is followed by another."""
    draw = random.Random(7)
    running: list[tuple[int, int, list[int]]] = []
    most = 0
    for _ in range(800):
        while len(running) < requests:
            prompt, answer = (
                lengths.at(draw.random()) for lengths in (workload.input_tokens, workload.output_tokens)
            )
            running.append((prompt, answer, [0]))
        budget = in_flight.chunk_tokens
        in_use = 0
        for prompt, _, ends in running:
            wanted = max(1, prompt - ends[-1])
            ends.append(ends[-1] + min(wanted, budget))
            budget -= ends[-1] - ends[-2]
            in_use += sum(held_now(group, prompt, ends[-1 - in_flight.steps :]) for group in groups)
        most = max(most, in_use)
        running = [
            (prompt, answer, ends) for prompt, answer, ends in running if ends[-1] < prompt + answer - 1
        ]
    return most


def held_now(group: KvGroup, prompt: int, ends: list[int]) -> int:
    if ends[-1] == 0:
        return 0
    if group.kind != "state":
        return group.held(ends[-1], ends[-1] - ends[0])
    saves = group.checkpoint and ends[0] < prompt <= ends[-1] and prompt > group.block_size + ends[0]
    return group.held_states(tuple(ends)) + saves
