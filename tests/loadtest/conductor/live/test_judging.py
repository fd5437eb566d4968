"""A run that has ended under a page is judged beside it, and a soak is not: it has found no limit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gevent
from fake_run import FakeRun

from loadtest.conductor.live.judging import judge_in_thread
from loadtest.reporter.verdict import Verdict
from loadtest.run_folder import PlannedStage, RunFolder

RUN = FakeRun(stages=())


def judged_of(home: Path, *users: int) -> list[Verdict]:
    """What came of a run whose stages were planned so."""
    folder = RunFolder.create(home, RUN.manifest.run_id)
    stages = tuple(
        PlannedStage(index=index, label="", users=n, hold_s=60.0, settle_s=0.0, spawn_rate_per_s=1.0)
        for index, n in enumerate(users)
    )
    folder.write_manifest(dataclasses.replace(RUN.manifest, stages=stages))
    judged: list[Verdict] = []
    judge_in_thread(folder, judged.append)
    assert gevent.get_hub().join(timeout=60), "nothing is left to be done"
    return judged


def test_stages_are_judged(tmp_path: Path) -> None:
    (verdict,) = judged_of(tmp_path, 20, 30)
    assert verdict.observation.stages == (), "it had no rows"


def test_a_soak_redefines_no_limit(tmp_path: Path) -> None:
    assert judged_of(tmp_path, 20, 0, 20) == []
