"""Ctrl-C or SIGTERM: once ends the load in good order, twice at once; either way no written row is lost."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import gevent

from estimator.errors import EXIT_INTERRUPTED


def heed_interrupts() -> None:
    """Puts Locust's main greenlet in charge; Python would hit whichever user runs. Called once a process.

    Locust itself heeds SIGTERM only once a headless load is over.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) is usual:
            signal.signal(number, _first)


def _first(*_: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _second)
    hub = gevent.get_hub()
    if gevent.getcurrent() is hub.parent:
        raise KeyboardInterrupt
    hub.loop.run_callback_threadsafe(hub.parent.throw, KeyboardInterrupt)


def _second(*_: Any) -> None:
    """Rows are written whole, one call each: there is nothing to save."""
    print("ullage: ended at once; `ullage recover` makes the run whole", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)
