"""How long this process was ready and had no processor, as Linux counts it (/proc/self/task/*/schedstat)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

TASKS: Final = Path("/proc/self/task")


class CpuWait:
    """From look to look; the first counts from when this was made. Of the thread that waited longest."""

    def __init__(self, tasks: Path = TASKS) -> None:
        self._tasks = tasks
        self._before_ns = self._waits_ns()

    def seconds(self) -> float | None:
        """What one thread waited since the last look, seconds. None: not shown.

        Linux adds a wait when it is over. A thread that is new here has waited since it began.
        """
        before_ns, self._before_ns = self._before_ns, self._waits_ns()
        waited_ns = [wait_ns - before_ns.get(task, 0) for task, wait_ns in self._before_ns.items()]
        return max(waited_ns) / 1e9 if waited_ns else None

    def _waits_ns(self) -> dict[str, int]:
        """schedstat: nanoseconds on a processor, nanoseconds ready for one, turns had."""
        found: dict[str, int] = {}
        try:
            tasks = [task.name for task in self._tasks.iterdir()]
        except OSError:
            return found
        for task in tasks:
            try:
                found[task] = int((self._tasks / task / "schedstat").read_bytes().split()[1])
            except (OSError, ValueError, IndexError):  # it has ended, or there is nothing of the kind
                continue
        return found
