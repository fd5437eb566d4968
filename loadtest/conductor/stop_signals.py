"""A person's word that a sign-off should end: the first one in good order, the second at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SUPERVISOR: Final = "ULLAGE_SUPERVISOR"
"""Names the process that drives a load, for the load: it ends when that one has died."""


@dataclass(slots=True)
class Asked:
    """How often we were told to end."""

    times: int = 0


@contextmanager
def stop_signals() -> Iterator[Asked]:
    """Counts the first signal of SIGNALS; a second raises KeyboardInterrupt. Undone at the end."""
    asked = Asked()

    def heed(*_: Any) -> None:
        asked.times += 1
        if asked.times > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, heed) for number in SIGNALS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def supervised_environ() -> dict[str, str]:
    """Of a load that this process drives."""
    return {**os.environ, SUPERVISOR: str(os.getpid())}


def supervisor_pid() -> int | None:
    """Who drives this process, which a fork of it inherits; None when a person started it."""
    pid = os.environ.get(SUPERVISOR, "")
    return int(pid) if pid.isdigit() else None
