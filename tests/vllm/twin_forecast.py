"""What the twin says of a case: the figures of twin_load.py from the virtual clock."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from twin_cases import SERVERS, Case, Server
from twin_figures import DEFAULT_BATCHED_TOKENS, Figures, quantile
from twin_load import MEASURE_S, RAMP_S, SETTLE_S, arrivals

from estimator.kv_group import KvGroup, full_group
from estimator.twin.cost import ServerCost
from estimator.twin.limits import EngineLimits
from estimator.twin.virtual import ClosedLoop, History, closed_loop, open_loop

SEEDS = range(1, 6)
"""Random lengths are played that many times: the twin's figures should carry little chance of their own."""


def limits_of(server: Server, model: Path) -> EngineLimits:
    return EngineLimits(
        num_gpu_blocks=server.blocks,
        block_size=server.number("--block-size", 32),
        max_num_seqs=server.number("--max-num-seqs", 128),
        max_num_batched_tokens=server.number("--max-num-batched-tokens", DEFAULT_BATCHED_TOKENS),
        max_model_len=server.number("--max-model-len", 2048),
        groups=groups_of(model, server.number("--block-size", 32)),
        enable_prefix_caching=server.prefix_caching,
    )


def groups_of(model: Path, block_size: int) -> tuple[KvGroup, ...]:
    """One group of full layers, and one of windowed ones when the model has such."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    kinds = set(config.get("layer_types", ["full_attention"]))
    if "sliding_attention" not in kinds:
        return ()
    full = full_group(block_size)
    window = KvGroup(
        kind="window",
        block_size=block_size,
        layers=full.layers,
        page_bytes=full.page_bytes,
        reach_tokens=config["sliding_window"],
    )
    return (full, window)


def forecast(case: Case, model: Path, cost: ServerCost) -> Figures:
    """The very window that the server was watched in: users that start together stay in step for long."""
    limits = limits_of(SERVERS[case.server], model)
    end_s = SETTLE_S + MEASURE_S
    if case.rate_per_s:
        return figures(open_loop(limits, cost, arrivals(case)).between(SETTLE_S, end_s))
    prefix = (("shared", case.shared_tokens),) if case.shared_tokens else ()
    played = [
        closed_loop(
            limits,
            cost,
            ClosedLoop(
                users=case.users,
                until_s=end_s,
                workload=case.workload,
                ramp_s=RAMP_S,
                prefix=prefix,
                seed=seed,
            ),
        )
        for seed in SEEDS
    ]
    each = [figures(history.between(SETTLE_S, end_s)) for history in played]
    return Figures(
        **{item.name: sum(getattr(one, item.name) for one in each) / len(each) for item in fields(Figures)}
    )


def figures(history: History) -> Figures:
    """Means over the whole window, its idle moments included, as gauges are read.

    vLLM sets them when a step has ended and its finished requests have gone (0.32, update_from_output of
    Scheduler: first remove_all, then make_stats), while a step of the twin counts those that run in it.
    """
    steps, requests, window_s = history.steps, history.requests, MEASURE_S
    finished_a_step = len(requests) / len(steps)
    decodes = [request for request in requests if request.output_tokens > 1]
    return Figures(
        running=sum(step.running * step.duration_s for step in steps) / window_s - finished_a_step,
        waiting=sum(step.waiting * step.duration_s for step in steps) / window_s,
        kv_usage=sum(step.kv_usage * step.duration_s for step in steps) / window_s,
        preemptions_per_request=history.preemptions / len(requests),
        output_tokens_per_s=sum(request.output_tokens for request in requests) / window_s,
        ttft_p50_s=quantile([request.ttft_s for request in requests], 0.5),
        ttft_p95_s=quantile([request.ttft_s for request in requests], 0.95),
        tpot_p50_s=quantile([request.tpot_s for request in decodes], 0.5),
        step_tokens=sum(step.tokens for step in steps) / len(steps),
        requests=len(requests),
    )
