"""Did tokens come one by one, or held back and several at once? From the gaps of the rows. Pure.

An engine sends a token a step. Several of a stream in one read were held back by somebody: by a proxy that
buffers, by an API server that falls behind its engine, or by this client, whose loop must be cleared first.
Several tokens in one event (speculative decoding, --stream-interval) are one read, and no burst.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from loadtest.reporter.latency import succeeded
from loadtest.reporter.observation import Window
from loadtest.reporter.question import Question, need_of, started

NEEDED: Final = ("outcome", "chunks", "gap_p50_s", "intended_ns", "last_token_ns")
CHUNKS_MIN: Final = 8
"""In a shorter answer the last token and the finish reason, which come together, weigh too much."""


def burst_ratio(windows: Sequence[Window], loop_lag_s: float | None) -> Question[float | None]:
    """Share of the answers of which most tokens came in one read with the token before.

    None where nobody can tell: no answer was long enough, or the client's loop was not seen, or it ran as
    late as a token takes, so that it may have put together what came apart. That time includes the wait for
    the first one: of an answer that was held back whole, nothing else is left.
    """
    answers = in_bursts = chunks = took_ns = 0
    need = need_of(NEEDED, windows)
    while (part := (yield need)) is not None:
        for rows in started(part, windows):
            good = rows.only(NEEDED).take(
                succeeded(rows) & (rows["chunks"] >= CHUNKS_MIN) & ~np.isnan(rows["gap_p50_s"])
            )
            answers += good.rows
            in_bursts += int(np.count_nonzero(good["gap_p50_s"] == 0.0))
            chunks += int(good["chunks"].sum())
            took_ns += int((good["last_token_ns"] - good["intended_ns"]).sum())
    if not answers or loop_lag_s is None or loop_lag_s * 1e9 * chunks >= took_ns:
        return None
    return in_bursts / answers
