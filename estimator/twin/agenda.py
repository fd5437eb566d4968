"""Who has something coming in which step: what spares the engine a look at every request in every step."""

from __future__ import annotations

from collections import defaultdict

from estimator.twin.request import Request

Entry = tuple[int, int, Request]
"""(place, since, request): it holds while the request has both, and sorts by place."""


class Agenda:
    """Decoding requests by step number. Those that stop decoding need not be taken out of a near step."""

    def __init__(self) -> None:
        self._entries: defaultdict[int, list[Entry]] = defaultdict(list)

    def put(self, step: int, request: Request) -> None:
        """`request` decodes: it has a place and a step since when."""
        if request.since is not None:
            self._entries[step].append((request.place, request.since, request))

    def put_again(self, step: int, entries: list[Entry]) -> None:
        self._entries[step] += entries

    def strike(self, step: int, request: Request) -> None:
        """`request` stops decoding before this step, which may be hours away."""
        entry = (request.place, request.since, request)
        entries = self._entries.get(step)
        if entries and entry in entries:
            entries.remove(entry)
            if not entries:
                del self._entries[step]

    def take(self, step: int) -> list[Entry]:
        """What is due in this step, in order of place, without what holds no more."""
        entries = self._entries.pop(step, None)
        if not entries:
            return []
        entries.sort()
        return [entry for entry in entries if entry[2].place == entry[0] and entry[2].since == entry[1]]
