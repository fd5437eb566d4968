"""What a load process has counted since its run began, for those who watch the run: totals and histograms.

Counts are whole numbers and add up over processes exactly. The rows stay the only thing that is judged.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from loadtest.records import SUCCESSES, RequestRecord
from loadtest.scenario import Limits
from loadtest.violations import violates

Timing = Literal["ttft", "tpot", "itl", "e2e", "lateness"]

_WHOLE_ANSWERS_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
EDGES_S: Final[Mapping[Timing, tuple[float, ...]]] = {
    "ttft": (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
             40.0, 80.0, 160.0),
    "tpot": _TOKENS_S,
    "itl": (*_TOKENS_S, 5.0, 10.0),
    "e2e": _WHOLE_ANSWERS_S,
    "lateness": (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0),
}  # fmt: skip
"""Upper edges of the histograms, seconds. The scenario's limits are put between them."""


def edges_s(timing: Timing, limits: Limits) -> tuple[float, ...]:
    """Upper edges, ascending; a limit is one of them, so that the share within it is exact."""
    limit_s = {"ttft": limits.ttft_s, "tpot": limits.tpot_s, "itl": limits.tpot_s, "e2e": limits.e2e_s}
    limit = limit_s.get(timing)
    return tuple(sorted({*EDGES_S[timing], *(() if limit is None else (limit,))}))


class Spread:
    """One histogram. `counts[i]` are the values in (edge i-1, edge i]; the last one those above all edges."""

    def __init__(self, edges_s: Sequence[float]) -> None:
        self.edges_s = tuple(edges_s)
        self.counts = [0] * (len(self.edges_s) + 1)
        self.sum_s = 0.0
        self._edges_ns = [round(edge * 1e9) for edge in self.edges_s]

    @property
    def count(self) -> int:
        return sum(self.counts)

    def add(self, value_s: float | None) -> None:
        """None: it was not seen, so it counts nowhere."""
        if value_s is not None:
            self.counts[bisect_left(self.edges_s, value_s)] += 1
            self.sum_s += value_s

    def add_sorted_ns(self, values_ns: Sequence[int], sum_ns: int) -> None:
        """Costs a step for each edge between the least value and the greatest, not for each value."""
        edges_ns, end = self._edges_ns, len(values_ns)
        below, index = 0, bisect_left(edges_ns, values_ns[0]) if end else 0
        while below < end:
            upto = bisect_right(values_ns, edges_ns[index], below) if index < len(edges_ns) else end
            self.counts[index] += upto - below
            below, index = upto, index + 1
        self.sum_s += sum_ns / 1e9

    def at_most(self, edge_s: float) -> int:
        """How many values did not exceed this edge. Raises ValueError when it is none of ours."""
        return sum(self.counts[: self.edges_s.index(edge_s) + 1])

    def merge(self, counts: Iterable[int], sum_s: float) -> None:
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, counts, strict=True)]
        self.sum_s += sum_s


class LiveCounts:
    """Requests that have ended, by outcome, and the times of those that succeeded, as the report counts them.

    Send lateness is the client's own and is taken of every request that was sent.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.outcomes: Counter[str] = Counter()
        self.good = 0
        """Succeeded, and kept every limit of the scenario."""
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.spreads: dict[Timing, Spread] = {timing: Spread(edges_s(timing, limits)) for timing in EDGES_S}

    def add(self, record: RequestRecord, sorted_gaps_ns: Sequence[int]) -> None:
        self.outcomes[record.outcome] += 1
        self.prompt_tokens += record.input_tokens or 0
        self.output_tokens += record.output_tokens or 0
        spreads = self.spreads
        spreads["lateness"].add(record.send_lateness_s)
        if record.succeeded:
            spreads["ttft"].add(record.ttft_s)
            spreads["tpot"].add(record.tpot_s)
            spreads["e2e"].add(record.e2e_s)
            spreads["itl"].add_sorted_ns(
                sorted_gaps_ns, (record.last_token_ns or 0) - (record.first_token_ns or 0)
            )
            self.good += not violates(record, self._limits)

    @property
    def succeeded(self) -> int:
        return sum(self.outcomes[outcome] for outcome in SUCCESSES)

    @property
    def judged(self) -> int:
        """Requests that have ended, but those that the load itself cut short."""
        return self.outcomes.total() - self.outcomes["client_cancel"]

    def since(self, before: LiveCounts) -> LiveCounts:
        """What came after `before`, an earlier state of these counts."""
        later = LiveCounts(self._limits)
        later.outcomes = self.outcomes - before.outcomes
        later.good = self.good - before.good
        later.prompt_tokens = self.prompt_tokens - before.prompt_tokens
        later.output_tokens = self.output_tokens - before.output_tokens
        for timing, spread in self.spreads.items():
            earlier = before.spreads[timing]
            later.spreads[timing].merge(
                (n - m for n, m in zip(spread.counts, earlier.counts, strict=True)),
                spread.sum_s - earlier.sum_s,
            )
        return later

    def message(self) -> dict[str, Any]:
        """Everything since the run began, as plain data: a message that is lost loses nothing for long."""
        return {
            "outcomes": dict(self.outcomes),
            "good": self.good,
            "tokens": [self.prompt_tokens, self.output_tokens],
            "spreads": {timing: [spread.counts, spread.sum_s] for timing, spread in self.spreads.items()},
        }

    def merge(self, message: Mapping[str, Any]) -> None:
        """Adds what another process has counted, under the same limits."""
        self.outcomes.update(message["outcomes"])
        self.good += message["good"]
        prompt_tokens, output_tokens = message["tokens"]
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens
        for timing, spread in self.spreads.items():
            spread.merge(*message["spreads"][timing])
