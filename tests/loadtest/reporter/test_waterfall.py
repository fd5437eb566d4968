"""From the estimate to the observed limit: terms that sum exactly, and none that nobody measured."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import pytest
from fake_folder import write_run
from fake_run import FakeRun, FakeStage, verdict_of
from hypothesis import given
from hypothesis import strategies as st

from estimator.catalog import find_model, read_gpu
from estimator.engine_spec import EngineSpec
from estimator.estimate import estimate
from estimator.hf_config import read_model
from estimator.spec import Workload
from estimator.weights.count import weights_on_rank
from loadtest.reporter.lines import gap
from loadtest.reporter.observation import Wall, WallName
from loadtest.reporter.report import write_report
from loadtest.reporter.saturation import observe
from loadtest.reporter.textbook_case import textbook_facts
from loadtest.reporter.verdict import Verdict, judge
from loadtest.reporter.waterfall import Waterfall, fold, waterfall_of
from loadtest.reporter.waterfall_steps import Step
from loadtest.reporter.waterfall_text import TITLES, waterfall_rows
from loadtest.request_table import RequestTable
from loadtest.results import RunRows
from loadtest.run_folder import RunFolder
from loadtest.textbook_facts import TextbookFacts

PREEMPTED = FakeStage(users=37, running=36.0, waiting=1.0, kv_usage_ratio=0.99, preemptions=9)
KV_RUN = FakeRun(stages=(FakeStage(users=31), FakeStage(users=34), PREEMPTED))
VERDICT = verdict_of(KV_RUN)
FACTS = TextbookFacts(
    gpu="imaginary",
    gpus=1,
    gpu_memory_bytes=24 * 10**9,
    weights_bytes=14 * 10**9,
    overhead_bytes=21 * 10**8,
    growing_bytes=8 * 10**8,
    usable_blocks=600,
    block_bytes=2 * 10**6,
    taken_bytes={"weights": 14 * 10**9, "CUDA graphs": 10**9},
)


def total(waterfall: Waterfall) -> Decimal:
    return sum((term.requests for term in waterfall.terms), waterfall.start)


def terms_of(verdict: Verdict, facts: TextbookFacts | None = None) -> dict[str, Decimal]:
    waterfall = waterfall_of(verdict, facts)
    assert waterfall is not None
    assert total(waterfall) == waterfall.observed
    return {term.name: term.requests for term in waterfall.terms}


levels = st.fractions(min_value=0, max_value=10**7)


@given(start=levels, after=st.lists(levels, max_size=20), observed=st.integers(0, 10**7))
def test_the_terms_of_any_levels_sum_exactly_and_so_do_the_printed_ones(
    start: Fraction, after: list[Fraction], observed: int
) -> None:
    steps = [Step(name="life", level=level, figure="", sentence="") for level in (start, *after)]
    waterfall = fold(steps[0], steps[1:], start_name="pool", observed=observed)
    assert total(waterfall) == observed
    *shown, last = [Decimal(row[1].replace(",", "")) for row in waterfall_rows(waterfall)]
    assert sum(shown) == last


@given(
    facts=st.builds(
        TextbookFacts,
        gpu=st.just("g"),
        gpus=st.just(1),
        gpu_memory_bytes=st.integers(10**9, 10**12),
        weights_bytes=st.integers(10**6, 10**12),
        overhead_bytes=st.integers(0, 10**11),
        growing_bytes=st.integers(10**3, 10**11),
        usable_blocks=st.integers(1, 10**6),
        block_bytes=st.integers(10**3, 10**8),
        taken_bytes=st.just({"weights": 1}),
    ),
    wall=st.sampled_from(get_args(WallName)),
    n_max=st.integers(0, 36),
    held_ratio=st.floats(0.01, 1.0),
    parked=st.none() | st.floats(-0.5, 1.0),
    hits=st.none() | st.floats(0.0, 1.0),
    slots=st.none() | st.integers(1, 200),
)
def test_the_terms_of_any_run_sum_exactly(
    facts: TextbookFacts, wall: WallName, n_max: int, held_ratio: float, parked: float | None,
    hits: float | None, slots: int | None,
) -> None:  # fmt: skip
    seen = VERDICT.observation
    stages = tuple(
        replace(
            stage,
            kv_usage_mean_ratio=held_ratio,
            prefix_hit_ratio=hits,
            client=replace(stage.client, parked_ratio=parked),
        )
        for stage in seen.stages
    )
    observation = replace(
        seen, stages=stages, first_broken=stages[-1], n_max=n_max, wall=Wall(name=wall, evidence="seen")
    )
    assert VERDICT.prediction is not None
    prediction = replace(VERDICT.prediction, n_slots=slots)
    verdict = replace(VERDICT, observation=observation, prediction=prediction, n_max=n_max)
    waterfall = waterfall_of(verdict, facts)
    assert (waterfall is None) == (wall == "invalid")
    assert waterfall is None or total(waterfall) == n_max


def test_a_full_cache_is_explained_to_the_last_request() -> None:
    terms = terms_of(verdict_of(KV_RUN))
    assert list(terms) == [
        "longest", "life", "held", "slots", "preemption", "client", "not_tried", "unexplained"
    ]  # fmt: skip
    assert terms["longest"] == 31 - 7  # 511 blocks: 64 hold 2,048 tokens, 16 hold 512
    assert terms["life"] == Decimal("9.9")  # to 511 / 12.49
    assert terms["preemption"] < 0
    assert terms["not_tried"] == -3  # between 34 and 37
    assert terms["unexplained"] == 0


def test_requests_that_hold_more_than_predicted_are_told_apart_from_preemption() -> None:
    """The pool is full at half of the predicted number: the blocks they held say so, not preemption."""
    held = FakeStage(users=18, kv_usage_ratio=0.9)
    broken = replace(PREEMPTED, users=22, running=20.0, waiting=2.0)
    terms = terms_of(verdict_of(replace(KV_RUN, stages=(held, broken))))
    assert terms["held"] == Decimal("-20.9")  # to 511 / (0.9 x 511 / 18) = 20
    assert terms["unexplained"] == 0


def test_preemption_below_what_was_guaranteed_is_not_explained_by_it() -> None:
    calm, early = FakeStage(users=10), replace(PREEMPTED, users=12, running=12.0, waiting=0.0)
    terms = terms_of(verdict_of(replace(KV_RUN, stages=(calm, early))))
    assert terms["unexplained"] < -10


@pytest.mark.parametrize(
    ("broken", "slots", "term"),
    [
        (FakeStage(users=40, ttft_s=3.0), 128, "latency"),
        (FakeStage(users=40, running=20.0, waiting=20.0), 20, "slots"),
        (FakeStage(users=40, running=20.0, waiting=20.0), 128, "scheduler"),
        (FakeStage(users=40, running=20.0, waiting=1.0), 128, "front_end"),
        (FakeStage(users=38, failing="http_429", failing_share=0.3), 128, "admission"),
        (FakeStage(users=38, lateness_s=0.2, ttft_s=3.0), 128, "client"),
    ],
)
def test_the_wall_has_a_term_of_its_own(broken: FakeStage, slots: int, term: str) -> None:
    run = replace(KV_RUN, stages=(FakeStage(users=16), broken), slots=slots)
    terms = terms_of(verdict_of(run))
    assert terms[term] < 0
    assert terms["unexplained"] == 0


def test_where_every_stage_held_the_rest_was_not_tried() -> None:
    verdict = verdict_of(replace(KV_RUN, stages=(FakeStage(users=31),)))
    waterfall = waterfall_of(verdict)
    assert waterfall is not None
    assert waterfall.is_lower_bound
    assert terms_of(verdict)["not_tried"] < 0
    assert terms_of(verdict)["unexplained"] == 0


def test_what_nobody_saw_has_no_term() -> None:
    blind = replace(KV_RUN, with_metrics=False, slots=None, stages=(FakeStage(users=31),))
    assert list(terms_of(verdict_of(blind))) == ["longest", "life", "not_tried", "unexplained"]
    assert waterfall_of(verdict_of(replace(KV_RUN, with_prediction=False))) is None
    assert waterfall_of(verdict_of(replace(KV_RUN, restart_at_s=100.0))) is None


def with_hits(run: FakeRun, hit_ratio: float) -> Verdict:
    """The same run on a server that counts its prefix cache: 1,000 tokens looked up a second."""
    rows = run.rows()
    samples = []
    for sample in rows.samples:
        if sample.source == "engine":
            asked = sample.at_ns / 1e6
            hits = {"prefix_cache_queries_total": asked, "prefix_cache_hits_total": hit_ratio * asked}
            sample = replace(sample, signals={**sample.signals, **hits})
        samples.append(sample)
    counted = RunRows(
        requests=RequestTable.of(list(rows.requests)), samples=tuple(samples), events=rows.events,
        damage=rows.damage,
    )  # fmt: skip
    return judge(run.prediction, observe(counted, run.manifest, run.slots))


def test_a_shared_prefix_explains_no_more_than_what_was_found_in_the_cache() -> None:
    """Requests held 8.5 blocks where 12.5 were predicted; half of 8 prompt blocks were found."""
    lean = FakeStage(users=34, kv_usage_ratio=34 * 8.5 / 511)
    run = replace(KV_RUN, stages=(lean, replace(PREEMPTED, users=60, running=59.0)))
    half, none, little = (terms_of(with_hits(run, ratio)) for ratio in (0.5, 0.0, 0.125))
    assert half["prefix"] > 17  # 3.99 of the 4 blocks found are missing: 511 / 8.5 - 511 / 12.49
    assert abs(half["held"]) <= Decimal("0.1")
    assert none["prefix"] == 0
    assert none["held"] == half["prefix"] + half["held"]
    assert 0 < little["prefix"] < half["prefix"]


def test_the_textbook_misses_by_units_by_what_a_token_stores_and_by_lengths() -> None:
    """Qwen2.5-7B on an L4, worked out by hand: 28 layers x 4 KV heads x 128 x K and V x 2 bytes = 56 KiB."""
    model, gpu = read_model(find_model("Qwen2.5-7B-Instruct")), read_gpu("l4-24gb")
    engine = EngineSpec(max_model_len=8192)
    answer = estimate(model, gpu, engine, weights_on_rank(model, engine), Workload.constant(256, 256))
    facts = textbook_facts(answer)
    assert facts.gpu_memory_bytes == gpu.memory_total_bytes
    assert facts.block_bytes == 16 * 56 * 1024
    taken, kv_bytes = sum(facts.taken_bytes.values()), facts.usable_blocks * facts.block_bytes
    assert 0 <= facts.gpu_memory_bytes - taken - kv_bytes < 2 * facts.block_bytes  # the null block and a rest
    prediction = replace(answer.prediction, pool=replace(answer.pool, blocks=answer.pool.blocks - 1000))
    verdict = replace(verdict_of(KV_RUN), prediction=prediction)
    waterfall = waterfall_of(verdict, facts)
    assert waterfall is not None
    # 22.03 GiB less 1.15 x 15.23 GB leave "4.5"; a request of 8,192 tokens takes 4,933 MB: not even one
    assert waterfall.start == 0
    assert "floor(4.5 x 1024 / 4,933)" in waterfall.start_figure
    terms = terms_of(verdict, facts)
    assert terms["unit"] == Decimal("1.2")  # 5.72 GiB / 4.59 GiB
    assert terms["memory"] == Decimal("-0.1")  # 5.02 GiB are left for the cache
    assert terms["pool"] == Decimal("-0.2")  # the server has 1,000 blocks fewer
    assert terms["stored"] == Decimal("8.6")  # 56 KiB a token where textbooks say 588
    assert terms["blocks"] < 0


def test_tensor_parallel_gpus_count_together() -> None:
    model, gpu = read_model(find_model("Qwen2.5-7B-Instruct")), read_gpu("l4-24gb")
    engine = EngineSpec(tp=2, max_model_len=8192)
    facts = textbook_facts(estimate(model, gpu, engine, weights_on_rank(model, engine)))
    assert (facts.gpus, facts.gpu_memory_bytes) == (2, 2 * gpu.memory_total_bytes)
    assert facts.block_bytes == 16 * 56 * 1024


def test_the_gap_line_names_the_largest_terms() -> None:
    line = gap(verdict_of(KV_RUN))
    assert line.startswith("+10%   from 31 to 34: +9.9 requests rarely at their longest together, ")
    assert line.endswith("-3.0 between two loads")


def test_every_page_shows_it_and_a_run_keeps_what_the_textbook_said(tmp_path: Path) -> None:
    root = write_run(KV_RUN, tmp_path, "with-facts", textbook=FACTS)
    folder = RunFolder.open(root)
    assert folder.read_manifest().textbook == FACTS
    write_report(folder)
    told: Any = json.loads(folder.report_path("json").read_text())["waterfall"]
    assert told["start_name"] == "textbook"
    summed = sum((Decimal(str(term["requests"])) for term in told["terms"]), Decimal(str(told["start"])))
    assert summed == told["observed"] == 34
    for suffix in ("html", "md"):
        page = folder.report_path(suffix).read_text()
        assert "From the estimate to the limit" in page
        assert all(TITLES[term["name"]] in page for term in told["terms"])
    assert folder.report_path("html").read_text().count("<svg") == 5


def test_a_run_from_before_it_is_still_read(tmp_path: Path) -> None:
    root = write_run(KV_RUN, tmp_path, "older")
    path = root / "manifest.json"
    body = json.loads(path.read_text())
    del body["textbook"]
    path.write_text(json.dumps(body))
    assert RunFolder.open(root).read_manifest().textbook is None
