"""The charts of a report are legible also where two limits lie close together."""

from __future__ import annotations

import re
from dataclasses import replace

from fake_run import FakeRun, FakeStage, verdict_of

from loadtest.reporter.charts import draw_charts
from loadtest.reporter.verdict import Verdict


def height(label: str, verdict: Verdict) -> float:
    """Of a label in the chart of concurrency, from above."""
    found = re.search(rf'<text[^>]* y="([^"]+)"[^>]*>{label}</text>', draw_charts(verdict)["concurrency"])
    assert found is not None
    return float(found[1])


def test_the_guarantee_is_named_on_the_side_that_has_more_room() -> None:
    far = verdict_of(FakeRun(stages=(FakeStage(users=24), FakeStage(users=31))))
    assert far.prediction is not None
    near = replace(far, prediction=replace(far.prediction, n_saturation=31.8))
    assert height("saturation 40.9", far) < height("guaranteed 31", far) < height("signed 24", far)
    assert height("saturation 31.8", near) + 8.5 < height("guaranteed 31", near) < height("signed 24", near)
