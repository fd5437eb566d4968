"""Latencies of whole columns of requests, and their exact quantiles in bounded memory. Pure.

The same arithmetic, in the same order, as RequestRecord's own properties. NaN: the request has no such time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from loadtest.columns import NULL, Array, Columns, Flags, Floats
from loadtest.records import SUCCESSES
from loadtest.reporter.question import Need, Question
from loadtest.scenario import Limits

NEEDED: Final = (
    "outcome",
    "intended_ns",
    "first_token_ns",
    "last_token_ns",
    "done_ns",
    "output_tokens",
    "first_chunk_tokens",
)
"""The columns that the three latencies and the limits on them are made of."""
NEEDED_BY_LATENESS: Final = ("intended_ns", "connected_ns", "free_ns", "sent_ns")
LEVEL_BITS: Final = 16
KEPT_VALUES: Final = 1 << 18
"""Up to so many values of one latency are kept; where there are more, they are counted first."""


def succeeded(rows: Columns) -> Flags:
    return rows.among("outcome", SUCCESSES)


def ttft_s(rows: Columns) -> Floats:
    """Intended send to first token."""
    first_ns = rows["first_token_ns"]
    return np.where(first_ns == NULL, np.nan, (first_ns - rows["intended_ns"]) / 1e9)


def e2e_s(rows: Columns) -> Floats:
    """Intended send to the end of the request."""
    return np.asarray((rows["done_ns"] - rows["intended_ns"]) / 1e9)


def tpot_s(rows: Columns) -> Floats:
    """Per output token after the first chunk: (last - first) / (n - n_first)."""
    first_ns, last_ns, tokens = rows["first_token_ns"], rows["last_token_ns"], rows["output_tokens"]
    later = tokens - rows["first_chunk_tokens"]
    known = (first_ns != NULL) & (last_ns != NULL) & (tokens != NULL) & (later > 0)
    return np.where(known, (last_ns - first_ns) / 1e9 / np.where(known, later, 1), np.nan)


def send_lateness_s(rows: Columns) -> Floats:
    """How late the client itself was: last byte written after intent, free user and connection."""
    sent_ns = rows["sent_ns"]
    ready_ns = np.maximum(np.maximum(rows["intended_ns"], rows["connected_ns"]), rows["free_ns"])
    return np.where(sent_ns == NULL, np.nan, (sent_ns - ready_ns) / 1e9)


def breaks_a_limit(rows: Columns, limits: Limits) -> Flags:
    """True when a request was slower than a limit that is set; of one that failed nothing is said.

    One that we cut short has broken the limits that its time until then was too long for.
    """
    cut_short = rows.among("outcome", {"client_cancel"})
    first_s, whole_s = ttft_s(rows), e2e_s(rows)
    first_s = np.where(cut_short & np.isnan(first_s), whole_s, first_s)
    broke = np.zeros(rows.rows, np.bool_)
    for took_s, limit_s in ((first_s, limits.ttft_s), (tpot_s(rows), limits.tpot_s), (whole_s, limits.e2e_s)):
        if limit_s is not None:
            broke |= took_s > limit_s  # NaN is not more than anything
    return broke & (succeeded(rows) | cut_short)


@dataclass(slots=True, kw_only=True)
class _Search:
    """Looks for the value of one rank among those whose key begins with `prefix`; all of them at first."""

    share: float
    kept_values: int
    rank: int | None = None
    prefix: int = 0
    bits: int = 64
    """Bits of the key that are not known yet."""
    kept: list[Array] = field(default_factory=list)
    counts: Array | None = None
    """By the next LEVEL_BITS bits; None as long as all values seen could be kept."""

    def see(self, keys: Array) -> None:
        self.kept.append(keys if self.bits == 64 else keys[keys >> np.uint64(self.bits) == self.prefix])
        if self.counts is not None or sum(map(len, self.kept)) > self.kept_values:
            self._count()

    def _count(self) -> None:
        width = min(LEVEL_BITS, self.bits)
        leading = (np.concatenate(self.kept) >> np.uint64(self.bits - width)) & np.uint64((1 << width) - 1)
        counts = np.bincount(leading.astype(np.int64), minlength=1 << width)
        self.counts = counts if self.counts is None else self.counts + counts
        self.kept = []

    def narrow(self) -> int | None:
        """The key when it is known now; None when one more look, at one bucket only, is needed."""
        if self.counts is None:
            keys = np.concatenate(self.kept)
            rank = self._rank(len(keys))
            return int(np.partition(keys, rank)[rank])
        up_to = np.cumsum(self.counts)
        rank = self._rank(int(up_to[-1]))
        bucket = int(np.searchsorted(up_to, rank, side="right"))
        width = min(LEVEL_BITS, self.bits)
        self.rank = rank - (int(up_to[bucket - 1]) if bucket else 0)
        self.prefix, self.bits, self.counts = self.prefix << width | bucket, self.bits - width, None
        return self.prefix if self.bits == 0 else None

    def _rank(self, total: int) -> int:
        return max(math.ceil(self.share * total) - 1, 0) if self.rank is None else self.rank


Latencies = Iterable[Mapping[str, Floats]]


def exact_quantiles(
    need: Need,
    latencies: Callable[[Columns], Latencies],
    shares: Sequence[float],
    *,
    kept_values: int = KEPT_VALUES,
) -> Question[dict[str, tuple[float, ...]]]:
    """Nearest ranks of each latency: the smallest value that `share` of all values do not exceed.

    `latencies` gives those of a part's rows that count, NaN where there is none; a latency without a value
    is left out. Exact, and little more than `kept_values` of each rank in memory: a float's bits sort
    like the float, so where there are more, one pass counts by the leading bits and the next one looks only
    where the rank fell.
    """
    searches: dict[tuple[str, float], _Search] = {}
    found: dict[tuple[str, float], float] = {}
    while not found or len(found) < len(searches):
        while (rows := (yield need)) is not None:
            for name, values in (pair for part in latencies(rows) for pair in part.items()):
                keys = _sort_keys(values[~np.isnan(values)])
                for at in [(name, share) for share in shares] if len(keys) else ():
                    search = searches.setdefault(at, _Search(share=at[1], kept_values=kept_values))
                    if at not in found:
                        search.see(keys)
        if not searches:
            break
        for at, search in searches.items():
            key = search.narrow() if at not in found else None
            if key is not None:
                found[at] = _value(key)
    names = dict.fromkeys(name for name, _ in searches)
    return {name: tuple(found[name, share] for share in shares) for name in names}


_SIGN: Final = np.uint64(1 << 63)


def _sort_keys(values: Floats) -> Array:
    """Unsigned integers in the order of the floats: negative ones have all bits turned, others the sign."""
    bits = (values + 0.0).view(np.uint64)  # -0.0 is 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _value(key: int) -> float:
    bits = key & ~(1 << 63) if key >> 63 else key ^ ((1 << 64) - 1)
    return float(np.array([bits], np.uint64).view(np.float64)[0])
