"""Is the server done with what came before? Requests of a run that was cancelled may go on in it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from loadtest.audit import Check
from loadtest.collector.engine_metrics import EngineReading

IDLE_WITHIN_S: Final = 30.0
LOOK_S: Final = 0.5

Look = Callable[[], EngineReading | None]


def idle_check(
    look: Look,
    *,
    within_s: float = IDLE_WITHIN_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Check:
    """Looks until nothing runs and nothing waits; red when that takes longer than `within_s` seconds."""
    name, begun_s = "server at rest", clock()
    while (busy := _busy(look())) != (0, 0):
        waited_s = clock() - begun_s
        if busy is None:
            return Check(name=name, level="skipped", said="the server does not show what runs in it")
        if waited_s >= within_s:
            running, waiting = busy
            return Check(
                name=name,
                level="red",
                said=f"{running:g} requests run and {waiting:g} wait in it after {waited_s:.0f} s",
                fix="wait for them, or end what else uses the server",
            )
        sleep(LOOK_S)
    return Check(name=name, level="ok", said="nothing runs or waits in it")


def _busy(reading: EngineReading | None) -> tuple[float, float] | None:
    """Running and waiting; None where the server shows neither."""
    signals = {} if reading is None else reading.signals
    if "running" not in signals or "waiting" not in signals:
        return None
    return signals["running"], signals["waiting"]
