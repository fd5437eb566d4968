"""Which sockets have something to read: asked once a turn of the event loop, for all of them together.

gevent would start a watcher for each socket and come back through each of them: half of what a token costs
in Python. Here one watcher waits on an epoll of our own, and one call hears every socket that is ready.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any, Final, Protocol

from gevent.hub import get_hub
from gevent.monkey import get_original

from loadtest.workers.native import IS_NATIVE, Reader

AT_ONCE: Final = 256
"""Sockets heard before the greenlets have their turn; the others are still ready then."""
READABLE: Final = 1
"""libev's flag, and epoll's EPOLLIN."""

Hear = Callable[[], None]


class Ear(Protocol):
    """Calls `hear` inside the event loop while there is something to read. Numbers are file descriptors."""

    @property
    def reader(self) -> Reader | None:
        """What reads plain sockets without the loop; None where that was not built."""

    def listen(self, number: int, hear: Hear) -> None: ...
    def stop(self, number: int) -> None:
        """Also for a number that is not listened to. Before its file is closed."""

    def hear(self) -> None:
        """What is ready now, from any greenlet.

        gevent lets 50 greenlets run before it looks at its sockets again. Where each of them works for half a
        millisecond, as when a thousand users ask at once, a token would be dated 25 ms late.
        """


def ear() -> Ear:
    """The one of this thread's event loop, in this process."""
    return _ear_of(get_hub(), os.getpid())


@cache
def _ear_of(hub: Any, process: int) -> Ear:
    try:
        return EpollEar(hub.loop, get_original("select", "epoll")())
    except AttributeError:  # not Linux
        return WatcherEar(hub.loop)


class EpollEar:
    def __init__(self, loop: Any, poll: Any) -> None:
        self._poll = poll
        self._hears: dict[int, Hear] = {}
        self._process = os.getpid()
        # a loop with nothing else to wait for may end
        self._watcher = loop.io(poll.fileno(), READABLE, ref=False)
        self._watcher.start(self._hear_in_time)
        self.reader = Reader() if IS_NATIVE else None
        if self.reader is not None:
            self.listen(self.reader.fileno(), self.reader.hear)

    def listen(self, number: int, hear: Hear) -> None:
        self._hears[number] = hear
        self._poll.register(number, READABLE)

    def stop(self, number: int) -> None:
        if self._hears.pop(number, None) is not None:
            self._poll.unregister(number)

    def hear(self) -> None:
        hears = self._hears
        for number, _ in self._poll.poll(0, AT_ONCE):
            hears[number]()  # stops nobody but itself, so every number of this turn is still here

    def _hear_in_time(self) -> None:
        if os.getpid() == self._process:
            self.hear()
        else:
            self._watcher.stop()  # a fork has the loop of its parent, but not the right to its sockets


class WatcherEar:
    """The same with a watcher a socket, where there is no epoll."""

    reader = None

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._watchers: dict[int, Any] = {}

    def listen(self, number: int, hear: Hear) -> None:
        watcher = self._watchers[number] = self._loop.io(number, READABLE)
        watcher.start(hear)

    def stop(self, number: int) -> None:
        watcher = self._watchers.pop(number, None)
        if watcher is not None:
            watcher.close()

    def hear(self) -> None:
        """Nothing: only the loop knows what is ready."""
