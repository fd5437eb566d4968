"""Saturation emerges: the closed forms of the estimator come out of a scheduler that does not know them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from estimator.capacity import predict
from estimator.spec import Lengths, Workload
from estimator.twin.arrivals import gamma, poisson
from estimator.twin.cost import step_seconds
from estimator.twin.profile import read_profile
from estimator.twin.virtual import Arrival, ClosedLoop, History, VirtualServer, closed_loop, open_loop

TINY = read_profile("tiny")
CHAT = Workload.constant(256, 256)
PREDICTION = predict(TINY.pool, CHAT, max_model_len=TINY.max_model_len, slots=TINY.max_num_seqs)


def users(count: int, *, ramp_s: float = 3.0, until_s: float = 60.0) -> History:
    return closed_loop(
        TINY.limits, TINY.step_cost, ClosedLoop(users=count, until_s=until_s, workload=CHAT, ramp_s=ramp_s)
    )


def steady(history: History) -> History:
    return history.between(20.0, 60.0)


@pytest.fixture(scope="module")
def overloaded() -> History:
    return users(64)


def median_ttft_s(history: History) -> float:
    return sorted(request.ttft_s for request in history.requests)[len(history.requests) // 2]


@pytest.mark.parametrize("ramp_s", [0.0, 1.7, 3.0])
def test_the_guaranteed_number_of_users_never_preempts(ramp_s: float) -> None:
    assert PREDICTION.n_guaranteed == 31
    history = users(31, ramp_s=ramp_s)
    assert history.preemptions == 0
    assert steady(history).mean(lambda sample: sample.running) == pytest.approx(31)


def test_one_user_more_preempts_when_all_are_in_step() -> None:
    assert users(32, ramp_s=0.0, until_s=10.0).preemptions > 0


def test_past_saturation_running_levels_off_at_the_closed_form(overloaded: History) -> None:
    assert PREDICTION.n_saturation == pytest.approx(511 / 12.486, abs=0.01)
    running = steady(overloaded).mean(lambda sample: sample.running)
    assert running == pytest.approx(PREDICTION.n_saturation, rel=0.03)
    assert steady(overloaded).preemptions > 0


def test_past_saturation_the_rest_of_the_users_wait(overloaded: History) -> None:
    both = steady(overloaded).mean(lambda sample: sample.running + sample.waiting)
    assert both == pytest.approx(64)
    assert steady(overloaded).mean(lambda sample: sample.waiting) > 20


def test_time_to_first_token_grows_with_the_queue_and_nothing_else(overloaded: History) -> None:
    calm = median_ttft_s(steady(users(31)))
    assert calm < 0.05
    assert median_ttft_s(steady(overloaded)) > 10 * calm


def test_more_users_than_saturation_bring_no_more_tokens(overloaded: History) -> None:
    at_saturation = len(steady(users(41)).requests)
    assert len(steady(overloaded).requests) < 1.03 * at_saturation


def test_littles_law_holds(overloaded: History) -> None:
    part = steady(overloaded)
    rate_per_s = len(part.requests) / 40.0
    stay_s = sum(request.finish_s - request.arrival_s for request in part.requests) / len(part.requests)
    assert rate_per_s * stay_s == pytest.approx(64, rel=0.05)


def test_a_lone_request_takes_its_prefill_and_one_step_a_token() -> None:
    history = open_loop(
        TINY.limits, TINY.step_cost, [Arrival(at_s=5.0, prompt_tokens=256, output_tokens=256)]
    )
    (request,) = history.requests
    assert request.ttft_s == pytest.approx(step_seconds(TINY.step_cost, 256, 0, 256))
    decodes_s = sum(step_seconds(TINY.step_cost, 0, 1, 256 + j) for j in range(1, 256))
    assert request.finish_s == pytest.approx(5.0 + request.ttft_s + decodes_s)
    assert 1.5 < request.finish_s - request.arrival_s < 2.0


def test_forty_at_once_finish_in_three_to_four_seconds() -> None:
    history = open_loop(
        TINY.limits,
        TINY.step_cost,
        [Arrival(at_s=index * 0.08, prompt_tokens=256, output_tokens=256) for index in range(400)],
    )
    stays = [request.finish_s - request.arrival_s for request in history.requests if request.arrival_s > 8]
    assert 3.0 < sum(stays) / len(stays) < 4.0


def test_no_request_starts_after_the_end_and_all_that_started_finish() -> None:
    history = users(8, until_s=5.0)
    assert all(request.arrival_s < 5.0 for request in history.requests)
    assert all(request.output_tokens == 256 for request in history.requests)
    assert history.requests[-1].finish_s > 5.0


def test_thinking_users_are_not_in_the_server() -> None:
    loop = ClosedLoop(users=8, until_s=40.0, workload=CHAT, think_s=2.0, ramp_s=4.0)
    history = closed_loop(TINY.limits, TINY.step_cost, loop).between(5.0, 40.0)
    stay_s = sum(request.finish_s - request.arrival_s for request in history.requests) / len(history.requests)
    rate_per_s = 8 / (stay_s + loop.think_s)
    assert len(history.requests) / 35.0 == pytest.approx(rate_per_s, rel=0.05)


def test_lengths_are_drawn_from_the_workload() -> None:
    workload = Workload(
        input_tokens=Lengths(kind="uniform", min=10, max=20), output_tokens=Lengths.constant(5)
    )
    loop = ClosedLoop(users=4, until_s=2.0, workload=workload)
    prompts = {request.prompt_tokens for request in closed_loop(TINY.limits, TINY.step_cost, loop).requests}
    assert prompts == set(range(10, 21))


def test_an_open_loop_below_capacity_serves_at_the_rate_it_comes() -> None:
    arrivals = list(poisson(5.0, CHAT, until_s=60.0))
    history = open_loop(TINY.limits, TINY.step_cost, arrivals)
    in_server = history.between(10.0, 60.0).mean(lambda sample: sample.running + sample.waiting)
    stay_s = sum(request.finish_s - request.arrival_s for request in history.requests) / len(arrivals)
    assert in_server == pytest.approx(5.0 * stay_s, rel=0.15)
    assert open_loop(TINY.limits, TINY.step_cost, arrivals) == history


def test_bursts_wait_longer_than_even_traffic_of_the_same_rate() -> None:
    bursty, even = (
        open_loop(TINY.limits, TINY.step_cost, gamma(10.0, CHAT, burstiness=shape, until_s=60.0))
        for shape in (0.1, 10.0)
    )
    assert median_ttft_s(bursty) > median_ttft_s(even)


def test_a_shared_prompt_is_read_once_when_the_prefix_cache_is_on() -> None:
    loop = ClosedLoop(users=8, until_s=10.0, workload=CHAT, prefix=(("rules", 224),))
    off, on = (
        closed_loop(replace(TINY.limits, enable_prefix_caching=caching), TINY.step_cost, loop)
        for caching in (False, True)
    )
    assert median_ttft_s(on) < 0.5 * median_ttft_s(off)
    held = 8 * 16 - 7 * 7  # blocks of 32 tokens: 7 of 16 are held once for all
    assert max(s.kv_usage for s in on.steps) == pytest.approx(held / 511)
    assert max(s.kv_usage for s in off.steps) == pytest.approx(8 * 16 / 511)


def test_under_priority_the_urgent_overtake_the_queue() -> None:
    limits = replace(TINY.limits, policy="priority")
    arrivals = [
        Arrival(at_s=index * 0.01, prompt_tokens=256, output_tokens=64, priority=index % 2)
        for index in range(200)
    ]
    history = open_loop(limits, TINY.step_cost, arrivals)
    waits = [[r.ttft_s for r in history.requests if round(r.arrival_s * 100) % 2 == rank] for rank in (0, 1)]
    assert sum(waits[0]) < 0.7 * sum(waits[1])


TWO = replace(TINY.limits, steps_in_flight=2)


def test_two_steps_in_flight_compute_as_fast_as_one() -> None:
    arrivals = [Arrival(at_s=0.0, prompt_tokens=256, output_tokens=64)]
    one, two = (open_loop(limits, TINY.step_cost, arrivals).requests[0] for limits in (TINY.limits, TWO))
    assert two.finish_s == pytest.approx(one.finish_s)


@pytest.mark.parametrize("pp", [3, 4, 8])
def test_a_pipeline_of_many_stages_runs_with_one_step_decided_ahead(pp: int) -> None:
    arrivals = [Arrival(at_s=0.1 * number, prompt_tokens=256, output_tokens=64) for number in range(9)]
    deep = open_loop(replace(TINY.limits, steps_in_flight=pp), TINY.step_cost, arrivals)
    assert deep == open_loop(TWO, TINY.step_cost, arrivals)


def test_with_two_steps_in_flight_a_newcomer_waits_for_one_more() -> None:
    """The step after the one that computes is made up already."""
    arrivals = [
        Arrival(at_s=0.0, prompt_tokens=64, output_tokens=200),
        Arrival(at_s=0.5, prompt_tokens=64, output_tokens=8),
    ]
    one, two = (
        min(open_loop(limits, TINY.step_cost, arrivals).requests, key=lambda r: r.output_tokens).ttft_s
        for limits in (TINY.limits, TWO)
    )
    step_s = step_seconds(TINY.step_cost, 0, 1, 150)
    assert two - one == pytest.approx(step_s, rel=0.1)


def test_a_step_that_nobody_is_in_takes_no_time() -> None:
    """All wait for their last token while the step before computes it."""
    history = open_loop(TWO, TINY.step_cost, [Arrival(at_s=0.0, prompt_tokens=64, output_tokens=2)] * 3)
    idle = [step for step in history.steps if not step.tokens]
    assert idle
    assert {step.duration_s for step in idle} == {0.0}


def test_a_server_driven_turn_by_turn_lives_the_same_history() -> None:
    arrivals = list(poisson(4.0, CHAT, until_s=10.0))
    server = VirtualServer(TINY.limits, TINY.step_cost)
    sent = {server.send(arrival) for arrival in arrivals}
    first_s: dict[str, float] = {}
    while server.has_work:
        server.turn()
        seen = {one: server.first_token_s(one) for one in sent - set(first_s)}
        first_s |= {one: at_s for one, at_s in seen.items() if at_s is not None}
    assert tuple(server.requests) == open_loop(TINY.limits, TINY.step_cost, arrivals).requests
    assert first_s == {request.request_id: request.first_token_s for request in server.requests}
