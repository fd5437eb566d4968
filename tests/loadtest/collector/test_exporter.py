"""Our own metrics page: what is known and nothing else, in names and units that Prometheus accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_run import FakeRun, FakeStage, verdict_of
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from replay import Replay

from loadtest.collector.exporter import COUNTERS, GAUGES, HISTOGRAMS, PREFIX, WORKER_GAUGES, RunPage
from loadtest.scenario import Limits

LIMITS = Limits(ttft_s=1.234, tpot_s=0.0321, e2e_s=7.77)
RUN = FakeRun(stages=(FakeStage(users=20), FakeStage(users=30)), limits=LIMITS)
OPEN_LOOP = FakeRun(stages=(FakeStage(users=20, rate_per_s=4.0, unsent_share=0.25),), limits=LIMITS)
UNITS = ("seconds", "bytes", "ratio", "total", "info", "concurrency", "requests", "rate", "index", "users")
LABELS = {"model_name", "engine_kind", "outcome", "target", "worker", "le"}


def page_of(replay: Replay) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunPage(replay.standing.figures))
    return generate_latest(registry).decode()


def families(page: str) -> dict[str, Metric]:
    return {family.name.removeprefix(PREFIX): family for family in text_string_to_metric_families(page)}


def judged(run: FakeRun, home: Path) -> Replay:
    replay = Replay(run, home, workers=2)
    replay.play().judged(verdict_of(run))
    return replay


def test_before_the_first_run_the_page_is_empty_and_whole(tmp_path: Path) -> None:
    assert page_of(Replay(RUN, tmp_path)) == ""


def test_what_is_not_known_yet_is_absent_and_nothing_is_ever_no_number(tmp_path: Path) -> None:
    replay = Replay(RUN, tmp_path)
    replay.play(seconds=80)
    found = families(page_of(replay))
    assert {"predicted_max_concurrency", "step_index", "predicted_kv_cache_usage_ratio"} <= found.keys()
    assert not {"observed_max_concurrency", "safe_limit_concurrency", "due_arrivals"} & found.keys()
    assert not any(sample.value != sample.value for family in found.values() for sample in family.samples)


def test_limits_outlive_the_run_and_the_load_is_gone(tmp_path: Path) -> None:
    found = families(page_of(judged(RUN, tmp_path)))
    verdict = verdict_of(RUN)
    values = {name: family.samples[0].value for name, family in found.items() if name in GAUGES}
    assert values["observed_max_concurrency"] == verdict.n_max == 30
    assert values["safe_limit_concurrency"] == verdict.n_safe
    assert values["predicted_max_concurrency"] == min(verdict.n_kv or 0, verdict.n_slots or 0)
    assert values["target_concurrency"] == 0
    assert "step_index" not in values


def test_every_limit_is_a_bucket_edge_and_buckets_count_up_to_the_count(tmp_path: Path) -> None:
    found = families(page_of(judged(RUN, tmp_path)))
    limits = {"ttft": "1.234", "tpot": "0.0321", "itl": "0.0321", "e2e": "7.77"}
    for timing, (name, _) in HISTOGRAMS.items():
        samples = found[name].samples
        buckets = [(s.labels["le"], s.value) for s in samples if s.name.endswith("_bucket")]
        (count,) = (s.value for s in samples if s.name.endswith("_count"))
        assert timing == "lateness" or limits[timing] in dict(buckets)
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        assert buckets[-1] == ("+Inf", count)


def test_an_open_loop_tells_its_rate_and_the_arrivals_nobody_sent(tmp_path: Path) -> None:
    replay = Replay(OPEN_LOOP, tmp_path)
    replay.play(seconds=40)
    found = families(page_of(replay))
    values = {name: family.samples[0].value for name, family in found.items()}
    assert values["target_request_rate"] == 4.0
    assert values["unsent_arrivals"] == pytest.approx(values["due_arrivals"] / 4)


def test_every_name_ends_in_its_unit_and_every_label_is_of_a_closed_set(tmp_path: Path) -> None:
    page = page_of(judged(RUN, tmp_path))
    for family in families(page).values():
        name = family.name + ("_total" if family.type == "counter" else "")
        assert re.fullmatch(rf"{PREFIX}[a-z_]+", name)
        assert name.endswith((*UNITS, "workers")), name
        assert family.documentation.endswith(".")
        run_info = family.name.endswith("run_info")
        assert run_info or all(sample.labels.keys() <= LABELS for sample in family.samples)


def test_run_ids_and_versions_stand_on_the_info_metric_alone(tmp_path: Path) -> None:
    page = page_of(judged(RUN, tmp_path))
    (line,) = (line for line in page.splitlines() if RUN.manifest.run_id in line)
    assert line.startswith(f"{PREFIX}run_info{{")
    assert 'ullage_version="0.1.0"' in line


def test_a_model_name_that_would_end_a_label_stays_inside_it(tmp_path: Path) -> None:
    hostile = 'm"} 1\nevil{x="\\'
    found = families(page_of(judged(FakeRun(stages=(FakeStage(users=20),), model=hostile), tmp_path)))
    assert {s.labels["model_name"] for s in found["requests"].samples} == {hostile}
    assert "evil" not in found


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("run", [RUN, OPEN_LOOP])
def test_prometheus_own_lint_finds_nothing(run: FakeRun, tmp_path: Path) -> None:
    replay = Replay(run, tmp_path)
    replay.play(seconds=50).judged(verdict_of(run))
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=page_of(replay),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_reference_names_every_metric() -> None:
    text = (Path(__file__).parents[3] / "docs" / "reference" / "exporter.md").read_text(encoding="utf-8")
    names = {*GAUGES, *(f"{name}_total" for name in COUNTERS), "requests_total", "scrape_errors_total"}
    names |= {name for name, _ in (*HISTOGRAMS.values(), *WORKER_GAUGES.values())} | {"run_info"}
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
