"""The twin against a real vLLM: calibrated once a model, it must foretell what every load does to the server.

The table that this prints is kept in docs/validation/vllm-cpu.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from twin_cases import ALL_CASES, CASES, SERVERS, Case
from twin_figures import Figures, wall_of
from twin_forecast import forecast
from twin_load import observe
from twin_table import Row, markdown
from vllm_server import Machine

from estimator.twin.cost import ServerCost
from estimator.twin.fit import predicted_s
from loadtest.conductor.calibrate import CalibrationRequest, calibrate_server
from loadtest.origin import parse_origin
from loadtest.reporter.cost_text import cost_lines

REQUESTS_MIN = 50
"""Fewer in a window say little about quantiles: the machine is too slow for this check."""
CALIBRATIONS_MAX = 3
WATCHES_MAX = 3
"""Machines are shared: a minute in which this one got half as much as in its calibration is no answer."""


@pytest.fixture(scope="module")
def rows(machine: Machine) -> Mapping[str, Row]:
    """Every case, foretold and seen. The twin never hears what was seen."""
    costs: dict[str, ServerCost] = {}
    found: dict[str, Row] = {}
    for case in CASES:
        server = SERVERS[case.server]
        vllm = machine.server(server.model, server.arguments)
        if server.model not in costs:  # servers of one model differ by their flags alone
            costs[server.model] = calibrated(vllm.host)
        foretold = forecast(case, vllm.model_folder, costs[server.model])
        for _ in range(WATCHES_MAX):
            seen = asyncio.run(observe(vllm.host, case))
            row = found[case.name] = Row(case=case, server=server, foretold=foretold, seen=seen)
            print(f"\n{markdown([row])}")
            if not out_of_pace(row):
                break
    print("\n" + markdown(list(found.values())))
    return found


def calibrated(host: str) -> ServerCost:
    """Made again where the machine's pace changed so much meanwhile that no fit is like it."""
    for _ in range(CALIBRATIONS_MAX):
        done = calibrate_server(
            CalibrationRequest(origin=parse_origin(host), key=None, engine="vllm"), datetime.now(UTC)
        )
        cost = done.measured.cost
        off = sorted(abs(predicted_s(cost.step, step) / step.seconds - 1.0) for step in done.steps)
        print("\n" + "\n".join(cost_lines(cost, done.steps)))
        middle = off[len(off) // 2]
        print(f"half of the steps within {middle:.1%}")
        if middle < 0.10:
            return cost
    pytest.fail(f"{CALIBRATIONS_MAX} fits miss half of the steps they were made from by 10% and more")


def pairs(row: Row, *names: str) -> list[tuple[str, float, float]]:
    return [(name, getattr(row.foretold, name), getattr(row.seen, name)) for name in names]


def out_of_pace(row: Row) -> list[str]:
    """What the twin foretold at less than half or more than twice what was seen."""
    if row.seen.requests < REQUESTS_MIN:
        return []
    timed = pairs(row, "output_tokens_per_s", "tpot_p50_s")
    return [name for name, foretold, seen in timed if not seen / 2 < foretold < seen * 2]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_foretells_how_many_run_and_what_they_hold(rows: Mapping[str, Row], case: Case) -> None:
    """Within 5%, or one request where few run."""
    row = rows[case.name]
    if case.rate_per_s:  # how many are there follows from how fast they are served: a latency, see below
        return
    (_, foretold, seen), (_, foretold_kv, seen_kv) = pairs(row, "running", "kv_usage")
    assert foretold == pytest.approx(seen, rel=0.05, abs=1.0)
    assert foretold_kv == pytest.approx(seen_kv, abs=0.05)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_names_the_wall_that_the_server_meets(rows: Mapping[str, Row], case: Case) -> None:
    row = rows[case.name]
    assert wall_of(row.foretold, row.server) == wall_of(row.seen, row.server) == case.wall


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_foretells_how_often_requests_are_preempted(rows: Mapping[str, Row], case: Case) -> None:
    """Within a quarter, or 0.08 a request: a window sees a hundred preemptions or two."""
    ((_, foretold, seen),) = pairs(rows[case.name], "preemptions_per_request")
    assert foretold == pytest.approx(seen, rel=0.25, abs=0.08)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_twin_foretells_throughput_and_latency(rows: Mapping[str, Row], case: Case) -> None:
    """Within a factor of two, which catches a broken cost model and no busy machine; the table says more."""
    row = rows[case.name]
    if row.seen.requests < REQUESTS_MIN:
        pytest.skip(f"{row.seen.requests:.0f} requests in the window: too slow a machine to time anything")
    assert out_of_pace(row) == [], row


def test_the_figures_themselves_tell_walls_apart() -> None:
    """Else the checks above would compare one word with itself."""
    assert {case.wall for case in ALL_CASES} == {"kv", "slots", "prefill", "none"}
    idle = Figures(
        running=1.0,
        waiting=0.0,
        kv_usage=0.99,
        preemptions_per_request=0.0,
        output_tokens_per_s=1.0,
        ttft_p50_s=0.1,
        ttft_p95_s=0.1,
        tpot_p50_s=0.1,
        step_tokens=1.0,
        requests=100,
    )
    assert wall_of(idle, SERVERS["plain"]) == "none"
