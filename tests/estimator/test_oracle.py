"""From config.json and arguments alone to vLLM's own answers: blocks, bytes, log line, weights, blocks held.

The whole set of answers is used where it lies beside the checkout, a small fixture of one entry a kind
otherwise (tests/support/oracle.py).
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from oracle import Entry, entries

from estimator import vllm
from estimator.catalog import read_gpu
from estimator.engine_spec import EngineSpec, SpeculativeSpec
from estimator.estimate import kv_pool
from estimator.held import held_over_life
from estimator.hf_config import model_spec
from estimator.memory import KvBudget
from estimator.spec import Workload
from estimator.vllm_cache.defaults import limits
from estimator.vllm_cache.layout import headline, kv_layout, num_blocks
from estimator.weights.count import Weights, weights_on_rank

ENTRIES = entries()
NOTHING = Weights(size_bytes=0, source="left out, so that every model fits")
EXACT = (
    *("num_blocks", "bytes_per_block", "blocks_per_request", "min_bytes_one_request", "block_size"),
    *("kv_cache_size_tokens", "max_concurrency"),
)
BYTES_SLACK = 0.01
"""Weights by arithmetic are within 1% of vLLM's parameters."""


def engine_of(entry: Entry) -> EngineSpec:
    flags = {key: value for key, value in entry.arguments.items() if key not in ("gpu", "speculative")}
    asked = entry.arguments.get("speculative")
    return EngineSpec(**flags, speculative=None if asked is None else SpeculativeSpec(**asked))


def budget_of(entry: Entry) -> KvBudget:
    engine = engine_of(entry)
    model = model_spec(entry.config, entry.model)
    return vllm.kv_budget(model, read_gpu(entry.arguments["gpu"]), engine, [NOTHING] * engine.pp)


@pytest.fixture(params=ENTRIES.values(), ids=ENTRIES.keys())
def entry(request: pytest.FixtureRequest) -> Entry:
    found: Entry = request.param
    return found


def test_the_pool_and_the_log_line_are_vllms(entry: Entry) -> None:
    model, engine = model_spec(entry.config, entry.model), engine_of(entry)
    gpu = read_gpu(entry.arguments["gpu"])
    resolved = limits(model, gpu, engine)
    layout = kv_layout(model, gpu, engine, resolved)
    blocks = num_blocks(layout, [entry.arguments["kv_cache_memory_bytes"]] * engine.pp)
    line = headline(layout, blocks, resolved.max_model_len)
    assert {
        "num_blocks": blocks,
        "bytes_per_block": list(layout.bytes_per_block),
        "blocks_per_request": layout.blocks_per_request,
        "min_bytes_one_request": layout.min_bytes_one_request,
        "block_size": layout.block_size,
        "kv_cache_size_tokens": line.cache_tokens,
        "max_concurrency": line.max_concurrency,
    } == {key: entry.answers[key] for key in EXACT}


def test_the_whole_budget_gives_the_same_pool_and_warns_where_vllm_refuses(entry: Entry) -> None:
    budget = budget_of(entry)
    assert budget.headline is not None
    assert (budget.blocks.likely, budget.headline.max_concurrency) == (
        entry.answers["num_blocks"],
        entry.answers["max_concurrency"],
    )
    is_refused = entry.answers["num_blocks"] <= entry.answers["blocks_per_request"]
    assert is_refused == budget.cautions[0].startswith("vLLM would not start")


def test_the_weights_are_vllms_within_one_percent(entry: Entry) -> None:
    if not entry.weights_reliable:
        pytest.skip("vLLM's own figure comes from trimmed quantisation files")
    engine = replace(engine_of(entry), speculative=None)  # vLLM's figure leaves the draft out
    capability = read_gpu(entry.arguments["gpu"]).compute_capability
    found = weights_on_rank(model_spec(entry.config, entry.model), engine, compute_capability=capability)
    assert [stage.size_bytes for stage in found] == [
        pytest.approx(theirs, rel=BYTES_SLACK) for theirs in entry.answers["param_bytes"]
    ]


HELD = {name: entry for name, entry in ENTRIES.items() if entry.held}


@pytest.mark.parametrize("name", HELD)
def test_a_request_holds_over_its_life_what_vllms_own_manager_gave_it(name: str) -> None:
    budget = budget_of(HELD[name])
    pool = kv_pool(budget)
    for theirs in HELD[name].held:
        workload = Workload.constant(theirs["prompt"], theirs["output"])
        held = held_over_life(pool.tables, workload, pool.in_flight)
        assert round(held.mean_blocks, 2) == theirs["decode_mean"]
        assert round(pool.usable_blocks / held.mean_blocks, 2) == theirs["fit_by_decode_mean"]


def test_every_kind_of_cache_has_its_entry() -> None:
    assert {entry.kind for entry in ENTRIES.values()} == {
        *("MHA, GQA, MQA", "MLA", "MLA and indexer", "DeepSeek-V4", "sliding window", "chunked local"),
        *("hybrid", "recurrent", "cross attention"),
    }
