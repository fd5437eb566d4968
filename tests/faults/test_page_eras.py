"""Pages of every era, of several engines, of several API servers: a figure is read once, or is absent."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_run import FakeRun, FakeStage, verdict_of

from loadtest.collector.engine_metrics import read_engine_page
from loadtest.records import Sample
from loadtest.reporter.validity import server_death
from loadtest.request_table import RequestTable
from loadtest.scenario import ScenarioError
from loadtest.scenario.parts import check_extra_body

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"
JUDGED = {"running", "waiting", "kv_usage_ratio", "preemptions_total", "requests_finished_total"}
"""Without these nobody knows whether a level held."""
CACHE = {"prefix_cache_queries_total", "prefix_cache_hits_total"}
ERAS = [
    ("vllm-0.6.txt", JUDGED, CACHE),
    ("vllm-0.8.txt", JUDGED | CACHE, set()),
    ("vllm-0.10-both-names.txt", (JUDGED | CACHE) - {"requests_finished_total"}, {"requests_finished_total"}),
    ("vllm-0.10-two-engines.txt", JUDGED, CACHE),
    ("vllm-0.32-idle.txt", JUDGED | CACHE, set()),
    ("vllm-0.32-loaded.txt", JUDGED | CACHE, set()),
    ("lmdeploy-0.18.txt", JUDGED - {"preemptions_total"}, {"preemptions_total"}),
    ("lmdeploy-0.18-idle.txt", JUDGED - {"preemptions_total"}, {"preemptions_total"}),
    ("lmdeploy-gauges-only.txt", {"running", "waiting"}, {"preemptions_total", "kv_usage_ratio"}),
]


def page(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "shown", "absent"), ERAS)
def test_f39_whatever_an_era_calls_a_figure_it_is_read_and_what_it_lacks_is_absent(
    name: str, shown: set[str], absent: set[str]
) -> None:
    signals = read_engine_page(page(name)).signals
    assert shown <= signals.keys()
    assert not absent & signals.keys()


@pytest.mark.parametrize("name", [name for name, _, _ in ERAS if name.startswith("vllm")])
def test_f39_a_name_that_nobody_knows_yet_takes_its_figure_away_and_no_other(name: str) -> None:
    renamed = page(name).replace("_cache_usage_perc", "_cache_fill_perc")
    before, after = (read_engine_page(text).signals for text in (page(name), renamed))
    assert before.keys() - after.keys() == {"kv_usage_ratio", "kv_usage_mean_ratio"}
    assert after.items() <= before.items()


def test_f39_a_run_that_was_shown_nothing_is_not_signed() -> None:
    stages = (FakeStage(users=36),)
    assert verdict_of(FakeRun(stages=stages)).status == "PASS"
    verdict = verdict_of(FakeRun(stages=stages, with_metrics=False))
    assert (verdict.status, verdict.exit_code) == ("INCONCLUSIVE", 4)


def ranks(text: str, count: int) -> str:
    """The page of a server with so many data-parallel ranks, rank r as busy as the one before and a bit."""
    lines = []
    for line in text.splitlines():
        name, found, value = line.rpartition(" ")
        if not found or 'engine="0"' not in name:
            lines.append(line)
            continue
        for rank in range(count):
            figure = float(value) / (rank + 1) if "_perc" in name else float(value) + rank
            own = name.replace('engine="0"', f'engine="{rank}"')
            lines.append(f"{own} {figure}")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("count", [1, 2, 8])
def test_f40_ranks_are_summed_and_the_fullest_cache_stands_beside_the_mean(count: int) -> None:
    one = read_engine_page(page("vllm-0.32-loaded.txt")).signals
    seen = read_engine_page(ranks(page("vllm-0.32-loaded.txt"), count)).signals
    more = count * (count - 1) / 2
    assert seen["engines"] == count
    assert seen["running"] == count * one["running"] + more
    assert seen["waiting"] == count * one["waiting"] + more
    assert seen["preemptions_total"] == count * one["preemptions_total"] + more
    assert seen["kv_usage_ratio"] == one["kv_usage_ratio"]
    mean = sum(one["kv_usage_ratio"] / (rank + 1) for rank in range(count)) / count
    assert seen["kv_usage_mean_ratio"] == pytest.approx(mean)


def test_f40_one_rank_that_is_not_shown_leaves_no_sum() -> None:
    whole = ranks(page("vllm-0.32-loaded.txt"), 4)
    (gone,) = [line for line in whole.splitlines() if line.startswith('vllm:num_requests_waiting{engine="2"')]
    signals = read_engine_page(whole.replace(f"{gone}\n", "")).signals
    assert "waiting" not in signals
    assert (signals["engines"], signals["running"]) == (4, 4 * 46 + 6)


def api_servers(text: str) -> str:
    """As `--api-server-count 2` shows it: figures of all processes joined, none of a process alone.

    Source: prometheus_client's MultiProcessCollector, which vLLM turns to, knows no process_ or python_
    families and no _created lines.
    """
    kept = [
        line
        for line in text.splitlines()
        if not line.startswith(("process_", "python_")) and "_created" not in line.partition("{")[0]
    ]
    return "\n".join(kept) + "\n"


def test_f41_several_api_servers_count_every_request_once() -> None:
    one = read_engine_page(page("vllm-0.32-loaded.txt")).signals
    several = read_engine_page(api_servers(page("vllm-0.32-loaded.txt"))).signals
    assert several == {name: value for name, value in one.items() if not name.startswith("process_")}


def test_f41_steps_that_every_api_server_counts_are_not_read() -> None:
    several = api_servers(page("vllm-0.32-loaded.txt"))
    steps = [line for line in several.splitlines() if line.startswith("vllm:iteration_tokens_total")]
    assert steps
    multiplied = several
    for line in steps:
        name, _, value = line.rpartition(" ")
        multiplied = multiplied.replace(f"{line}\n", f"{name} {2 * float(value)}\n")
    assert read_engine_page(multiplied) == read_engine_page(several)


def test_f41_a_restart_shows_though_nobody_tells_when_a_process_began() -> None:
    signals = read_engine_page(api_servers(page("vllm-0.32-loaded.txt"))).signals
    fresh = read_engine_page(api_servers(page("vllm-0.32-idle.txt"))).signals
    looks = [
        Sample(at_ns=at, source="engine", target="t", signals=one) for at, one in ((1, signals), (2, fresh))
    ]
    assert "restarted" in str(server_death(RequestTable.of([]), looks))
    assert server_death(RequestTable.of([]), looks[:1] * 2) is None


@pytest.mark.parametrize("key", ["n", "best_of", "use_beam_search"])
def test_f41_a_request_that_would_be_counted_several_times_is_refused(key: str) -> None:
    with pytest.raises(ScenarioError, match="several"):
        check_extra_body({key: 2})
