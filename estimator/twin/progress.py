"""How far each running request is with its tokens, without a look at every request in every step.

A running request reads (tokens known before the step are still to be computed), decodes (one token a step:
nothing is written down), or is spent (its last token is under way). Steps are numbered from 1; with two under
way, what is known of a request lags behind what is computed of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from estimator.twin.agenda import Agenda, Entry
from estimator.twin.group_rules import NEVER
from estimator.twin.request import Request, StepClock

place_of = attrgetter("place")


class Progress:
    """The three kinds of running requests, and in which step each next needs attention."""

    def __init__(self) -> None:
        self.clock = StepClock()
        self.reading: list[Request] = []
        """In order of running."""
        self.spent: list[Request] = []
        """They keep their places and blocks until the step under way ends, as in vLLM's AsyncScheduler."""
        self.context_tokens = 0
        """Computed tokens of all that decode."""
        self._owed: list[Request] = []
        """Those that stopped decoding while the older of two steps was to give them a token."""
        self._changes = Agenda()
        """Steps in which the block tables of a request that decodes change."""
        self._endings = Agenda()

    @property
    def steps_under_way(self) -> int:
        return self.clock.started - self.clock.settled

    def begin(self, running: int) -> None:
        """The next step starts, with `running` requests; those that decode compute one token more."""
        self.context_tokens += running - len(self.reading)
        self.clock.started += 1
        if self.steps_under_way > 1:
            for _, _, request in self._endings.take(self.clock.started - 1):
                self._pause(request)
                self.spent.append(request)

    def changes(self) -> list[Entry]:
        """Those that decode and whose block tables change in this step, in order of running."""
        return self._changes.take(self.clock.started)

    def change_again(self, entries: list[Entry], steps: int) -> None:
        self._changes.put_again(self.clock.started + steps, entries)

    def watch(self, request: Request, computed: int) -> None:
        """Notes the next change of the block tables of a request that decodes."""
        change = min([table.change for table in request.tables])
        if change < NEVER:
            self._changes.put(self.clock.started + change - computed, request)

    def read(self, request: Request, chunk: int) -> None:
        """A request that reads computes `chunk` tokens in this step."""
        request.chunk, request.chunk_step = chunk, self.clock.started
        request.computed += chunk

    def end(self, read: Sequence[Request]) -> tuple[tuple[Request, ...], frozenset[Request]]:
        """The step is made up, with chunks for `read`: those it gives a first token, and those it gives none.

        The others have computed all they know: this step gives each a token, and every later one another.
        """
        now, first, silent = self.clock.started, [], []
        for request in read:
            if request.computed < request.known:
                silent.append(request)
                continue
            if request.known == request.prompt_tokens:
                first.append(request)
            request.since = now
            request.known += 1
            self._endings.put(_last_step(request), request)
            self.context_tokens += request.computed
            self.watch(request, request.computed)
        self.reading = [request for request in self.reading if request.since is None]
        return tuple(first), frozenset(silent)

    def pause(self, requests: Sequence[Request]) -> None:
        """Those of `requests` that decode get no token in this step: they catch up as if they read."""
        for request in requests:
            if request.since is not None:
                self._pause(request)
                self.reading.append(request)
        self.reading.sort(key=place_of)

    def drop(self, request: Request) -> None:
        """The request runs no more."""
        if request.since is not None:
            self._freeze(request)
        for kind in (self.reading, self.spent):
            if request in kind:
                kind.remove(request)

    def settle(self) -> tuple[list[Request], list[Request]]:
        """The older step ends: those that decode and end with it, and those it owed a token, paid now."""
        self.clock.settled += 1
        ending = [request for _, _, request in self._endings.take(self.clock.settled)]
        owed = [request for request in self._owed if not request.ended] if self._owed else []
        for request in owed:
            request.known += 1
        if self._owed:
            self._owed, self.spent = [], []
        return ending, owed

    def _pause(self, request: Request) -> None:
        self._freeze(request)
        request.computed -= 1

    def _freeze(self, request: Request) -> None:
        """Writes down the progress of a request that decodes no more."""
        self._endings.strike(_last_step(request), request)
        if self.clock.started - 1 > self.clock.settled:
            self._owed.append(request)
        self.context_tokens -= request.computed_tokens
        request.known, request.computed, request.since = request.tokens, request.computed_tokens, None


def _last_step(request: Request) -> int:
    """The step that gives a request that decodes its last token, if nothing comes between."""
    assert request.since is not None
    return request.since + request.tokens_max - request.known
