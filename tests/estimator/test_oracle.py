"""Every answer here is vLLM 0.32's own, and ours must be equal to it: no tolerance, no rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from estimator import vllm
from estimator.capacity import KvPool, vllm_headline
from estimator.catalog import read_gpu
from estimator.estimate import estimate
from estimator.hf_config import model_spec
from estimator.kv_cache import held_blocks, held_over_life
from estimator.spec import EngineSpec, Interval, ModelSpec, SpecError, UnsupportedModel, Workload
from estimator.weights import Weights, buffer_bytes, parameter_bytes

FACTS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures/oracle/dense_gqa.json").read_text(encoding="utf-8")
)
ENTRIES: dict[str, Any] = FACTS["entries"]
GPUS = {"h100": "h100-80gb", "a100": "a100-80gb", "b200": "b200-180gb"}


def model_of(entry: dict[str, Any]) -> ModelSpec:
    return model_spec(FACTS["models"][entry["model"]], entry["model"])


def engine_of(entry: dict[str, Any], **more: Any) -> EngineSpec:
    flags = ("tp", "max_model_len", "kv_cache_dtype", "block_size", "max_num_seqs", "max_num_batched_tokens")
    return EngineSpec(**{flag: entry["arguments"][flag] for flag in flags}, **more)


@pytest.fixture(params=ENTRIES.values(), ids=ENTRIES.keys())
def entry(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def test_the_pool_and_the_log_line_are_vllms(entry: dict[str, Any]) -> None:
    answers, engine = entry["answers"], engine_of(entry)
    gpu = read_gpu(GPUS[entry["arguments"]["gpu"]])
    limits = vllm.limits(model_of(entry), gpu, engine, entry["arguments"]["usage"])
    per_block_bytes = vllm.block_bytes(model_of(entry), engine, limits.block_size)
    blocks = vllm.whole_blocks(Interval.exact(entry["arguments"]["kv_bytes"]), per_block_bytes)
    pool = KvPool(
        blocks=int(blocks.likely),
        reserved_blocks=vllm.NULL_BLOCKS,
        block_size_tokens=limits.block_size,
        bytes_per_block=per_block_bytes,
        source="config",
    )
    headline = vllm_headline(pool, limits.max_model_len)
    per_request = held_blocks(limits.max_model_len, limits.block_size)
    assert {
        "block_size": limits.block_size,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "bytes_per_block": per_block_bytes,
        "num_blocks": pool.blocks,
        "blocks_per_request": per_request,
        "min_bytes_one_request": per_request * per_block_bytes,
        "kv_cache_size_tokens": headline.cache_tokens,
        "max_concurrency": headline.max_concurrency,
    } == {
        key: answers[key] for key in answers if key not in ("param_bytes", "buffer_bytes", "cudagraph_sizes")
    }


def test_the_weights_are_vllms_to_the_byte(entry: dict[str, Any]) -> None:
    model = model_of(entry)
    assert parameter_bytes(model, entry["arguments"]["tp"]) == entry["answers"]["param_bytes"]
    assert buffer_bytes(model) == entry["answers"]["buffer_bytes"]


def test_a_fixed_kv_cache_gives_vllms_blocks_through_the_whole_estimate(entry: dict[str, Any]) -> None:
    engine = engine_of(entry, kv_cache_memory_bytes=entry["arguments"]["kv_bytes"])
    weights = Weights(size_bytes=0, source="left out, so that every model fits")
    answer = estimate(model_of(entry), read_gpu(GPUS[entry["arguments"]["gpu"]]), engine, weights)
    assert answer.pool.blocks == entry["answers"]["num_blocks"]
    assert answer.headline is not None
    assert answer.headline.max_concurrency == entry["answers"]["max_concurrency"]


def test_a_request_holds_over_its_life_what_vllms_own_manager_gave_it() -> None:
    seen = [(entry, held) for entry in ENTRIES.values() for held in entry["held"]]
    assert len(seen) == 3
    for entry, theirs in seen:
        ours = held_over_life(
            Workload.constant(theirs["prompt"], theirs["output"]), entry["answers"]["block_size"]
        )
        assert ours.start_blocks == theirs["after_prefill"]
        assert round(ours.mean_blocks, 2) == theirs["decode_mean"]
        usable = entry["answers"]["num_blocks"] - vllm.NULL_BLOCKS
        assert round(usable / ours.mean_blocks, 2) == theirs["fit_by_decode_mean"]
        # Our longest counts the last token as computed, which vLLM never stores: at most one block more.
        assert 0 <= ours.longest_blocks - theirs["at_end"] <= 1


def test_every_dense_answer_is_checked_or_skipped_for_a_stated_reason() -> None:
    assert len(ENTRIES) == 32
    assert sorted(reason.split(":")[0] for reason in FACTS["skipped"].values()) == [
        *["pipeline parallelism"] * 3,
        "speculative decoding",
        *["turboquant keeps its first and last layers in another format"] * 3,
    ]


@pytest.mark.parametrize("name", FACTS["refused"])
def test_what_we_cannot_count_is_refused_by_name(name: str) -> None:
    config = FACTS["refused"][name]
    with pytest.raises(UnsupportedModel, match=r"^not yet supported: ") as refusal:
        model_spec(config, name)
    assert repr(config["model_type"]) in str(refusal.value)


def test_turboquant_is_refused_because_its_layers_differ() -> None:
    with pytest.raises(SpecError, match="not yet supported: --kv-cache-dtype turboquant_k8v4"):
        vllm.kv_format("turboquant_k8v4")
