"""Data-parallel engines have a KV cache and slots each: what fits is what fits in all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from estimator.capacity import KvPool, Prediction, predict
from estimator.spec import Lengths, SpecError, Workload
from estimator.twin.engine import Engine
from estimator.twin.profile import read_profile
from estimator.twin.telemetry import Metrics, Telemetry
from estimator.twin.vllm_page import PAGE
from loadtest.collector.engine_metrics import EngineReading, read_engine_page
from loadtest.collector.joined import joined_readings
from loadtest.conductor.pool import computed_pool, counted_pool, kv_pool_from_metrics
from loadtest.reporter.lines import of_prediction

ONE = (Path(__file__).parents[2] / "fixtures/metrics/vllm-0.32-idle.txt").read_text(
    "utf-8"
)  # 512 blocks of 32
MAX_MODEL_LEN = 2048
WORKLOAD = Workload(input_tokens=Lengths.constant(256), output_tokens=Lengths.constant(256))


def page_of(engines: int) -> str:
    """As vLLM writes it: every line once an engine, and with each the blocks of all together."""
    summed = ONE.replace('num_gpu_blocks="512"', f'num_gpu_blocks="{512 * engines}"')
    lines = summed.splitlines(keepends=True)
    more = [line for line in lines if 'engine="0"' in line]
    return "".join(
        [*lines, *(line.replace('engine="0"', f'engine="{n}"') for n in range(1, engines) for line in more)]
    )


def pool_of(*pages: str) -> KvPool | None:
    return kv_pool_from_metrics(joined_readings([read_engine_page(page) for page in pages]), MAX_MODEL_LEN)


def predicted(*pages: str, slots: int | None = None) -> Prediction:
    pool = pool_of(*pages)
    assert pool is not None
    return predict(pool, WORKLOAD, max_model_len=MAX_MODEL_LEN, slots=slots)


def test_the_blocks_that_vllm_adds_up_are_those_of_all_engines() -> None:
    reading = read_engine_page(page_of(4))
    assert reading.engine_blocks == (512, 512, 512, 512)
    assert reading.cache_config["num_gpu_blocks"] == "512"


@pytest.mark.parametrize(
    "pages", [(page_of(3),), (ONE, ONE, ONE), (page_of(2), ONE)], ids=("ranks", "replicas", "both")
)
def test_three_engines_hold_three_times_what_one_holds(pages: tuple[str, ...]) -> None:
    one, three = predicted(ONE, slots=20), predicted(*pages, slots=20)
    assert one.n_guaranteed == 511 // 16
    assert (three.n_guaranteed, three.n_slots) == (3 * one.n_guaranteed, 3 * 20)
    assert three.n_saturation == pytest.approx(3 * one.n_saturation)
    assert three.limited_by == one.limited_by == "slots"


def test_of_engines_that_differ_the_smallest_makes_the_promise_and_all_fill_up() -> None:
    """Requests are spread evenly, so the smallest is full while the others have room."""
    larger = ONE.replace('num_gpu_blocks="512"', 'num_gpu_blocks="1024"').replace(
        'kv_cache_size_tokens="16384"', 'kv_cache_size_tokens="32768"'
    )
    one, both = predicted(ONE), predicted(larger, ONE)
    assert both.n_guaranteed == 2 * one.n_guaranteed
    assert both.n_saturation == pytest.approx((511 + 1023) / one.held.mean_blocks)
    assert "2 engines, loaded alike: each 511 to 1,023 blocks of 32 tokens" in of_prediction(both)


def test_the_chance_of_a_preemption_is_shared_by_the_engines() -> None:
    short = Workload(input_tokens=Lengths.constant(32), output_tokens=Lengths.constant(256))
    pools = [pool_of(ONE), pool_of(page_of(8))]
    one, eight = (
        predict(pool, short, max_model_len=MAX_MODEL_LEN, slots=None) for pool in pools if pool is not None
    )
    assert one.n_sustained is not None
    assert eight.n_sustained is not None
    assert eight.n_guaranteed <= eight.n_sustained < 8 * one.n_sustained


def test_the_first_line_says_how_many_engines_there_are() -> None:
    assert "2 engines, loaded alike: each 511 blocks" in of_prediction(predicted(page_of(2)))
    assert "engine" not in of_prediction(predicted(ONE))


def test_an_engine_that_does_not_show_its_cache_leaves_no_pool() -> None:
    hidden = "".join(
        line
        for line in page_of(2).splitlines(keepends=True)
        if not (line.startswith("vllm:cache_config_info") and 'engine="1"' in line)
    )
    assert pool_of(hidden) is None
    assert pool_of(ONE, hidden) is None


def test_a_cache_of_several_groups_is_not_guessed_at_either() -> None:
    assert pool_of(page_of(2).replace('kv_cache_size_tokens="16384"', 'kv_cache_size_tokens="20000"')) is None


def test_the_pages_of_a_twin_of_two_engines_are_predicted() -> None:
    twin = read_profile("tiny")
    facts = [Telemetry(Engine(twin.limits), twin, PAGE, rank) for rank in range(2)]
    page = Metrics(facts, PAGE).page()[0].decode()
    pool = kv_pool_from_metrics(read_engine_page(page), twin.max_model_len)
    assert pool is not None
    assert pool.engine_blocks == (twin.num_gpu_blocks, twin.num_gpu_blocks)


COMPUTED = KvPool(blocks=100, reserved_blocks=1, block_size_tokens=32, bytes_per_block=None, source="config")


def test_a_computed_pool_is_there_once_an_engine() -> None:
    shows_no_blocks = EngineReading(engine="lmdeploy", signals={"engines": 2.0})
    assert counted_pool(shows_no_blocks, COMPUTED) is None
    assert computed_pool(shows_no_blocks, COMPUTED).usable_blocks_of_all == 2 * 99
    assert computed_pool(EngineReading(), COMPUTED) == COMPUTED


def test_a_computed_pool_has_the_blocks_that_each_engine_shows() -> None:
    counted = counted_pool(read_engine_page(page_of(2)), COMPUTED)
    assert counted is not None
    assert (counted.blocks, counted.engine_blocks) == (512, (512, 512))


def test_a_pool_of_several_engines_is_that_of_the_smallest() -> None:
    with pytest.raises(SpecError, match="smallest"):
        replace(COMPUTED, engine_blocks=(100, 90))
