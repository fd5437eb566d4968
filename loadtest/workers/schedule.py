"""An open loop's arrivals: users stand in line for them, and what nobody was free to take is counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping

from gevent.event import Event as Bell
from gevent.lock import BoundedSemaphore


class Schedule:
    """One for each process. Times are nanoseconds of the one monotonic clock.

    Only the first in line looks at the clock, and takes the arrival when it is due: whoever is ended while
    waiting takes none along.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._door = BoundedSemaphore(1)
        self._bell = Bell()
        self._later: Iterator[int] = iter(())
        self._next_ns: int | None = None
        self._due: deque[int] = deque()
        self._due_total = 0
        self._unsent_total = 0
        self._was_open_loop = False
        self.is_open_loop = False

    def begin(self, times_s: Iterable[float] | None, start_ns: int) -> None:
        """A stage begins: its arrivals come `times_s` after `start_ns`, ascending; None for a closed loop."""
        self._stop()
        self.is_open_loop = times_s is not None
        self._was_open_loop |= self.is_open_loop
        self._later = (start_ns + int(time_s * 1e9) for time_s in times_s or ())
        self._next_ns = next(self._later, None)
        self._bell.set()

    def end(self) -> None:
        """Nothing comes any more; who waits in an open loop waits until Locust ends it."""
        self._stop()
        self._next_ns = None

    def take(self) -> int | None:
        """Waits for the next arrival and returns when it was due; None at once in a closed loop."""
        with self._door:
            while self.is_open_loop:
                self._arrive()
                if self._due:
                    return self._due.popleft()
                self._bell.clear()
                self._bell.wait(None if self._next_ns is None else (self._next_ns - self._clock()) / 1e9)
        return None

    def signals(self) -> Mapping[str, float]:
        """What a sample of this process says of them; nothing where there was no open loop."""
        if not self._was_open_loop:
            return {}
        self._arrive()
        return {
            "client_due_total": float(self._due_total),
            "client_backlog": float(len(self._due)),
            "client_unsent_total": float(self._unsent_total),
        }

    def _arrive(self) -> None:
        now_ns = self._clock()
        while self._next_ns is not None and self._next_ns <= now_ns:
            self._due.append(self._next_ns)
            self._due_total += 1
            self._next_ns = next(self._later, None)

    def _stop(self) -> None:
        self._arrive()
        self._unsent_total += len(self._due)
        self._due.clear()
