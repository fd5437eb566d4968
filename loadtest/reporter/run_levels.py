"""The stages of a finished run that say what a step of its server costs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from estimator.spec import Workload
from estimator.twin.forecast import mean_tokens
from estimator.twin.scales import LevelSeen
from loadtest.reporter.observation import StageObservation

REQUESTS_MIN: Final = 30
"""Of a stage: the median of fewer says little."""
REQUESTS_KEPT_MIN: Final = 100
"""Of all usable stages together, before anything is kept for later predictions."""


def telling(stages: Iterable[StageObservation]) -> tuple[StageObservation, ...]:
    """Stages whose medians are of the server's steps: no queue, no preemption, and a client on time."""
    return tuple(stage for stage in stages if _tells(stage))


def level_of(stage: StageObservation, workload: Workload) -> LevelSeen:
    """A telling stage, as the fit takes it."""
    assert stage.tpot is not None
    prompt, answer = mean_tokens(workload.input_tokens), mean_tokens(workload.output_tokens)
    return LevelSeen(
        running=stage.in_flight_mean if stage.running_mean is None else stage.running_mean,
        prompt_tokens=prompt * (1.0 - (stage.prefix_hit_ratio or 0.0)),
        context_tokens=prompt + answer / 2,
        requests_per_s=stage.requests_per_s,
        step_s=stage.tpot.p50_s,
    )


def _tells(stage: StageObservation) -> bool:
    has_queue = stage.waiting_median is not None and stage.waiting_median > stage.queue_from
    running = stage.in_flight_mean if stage.running_mean is None else stage.running_mean
    return (
        stage.requests >= REQUESTS_MIN
        and stage.ttft is not None
        and stage.tpot is not None
        and stage.tpot.p50_s > 0.0
        and running >= 1.0
        and not stage.preemptions
        and not has_queue
        and not stage.client.faults
    )
