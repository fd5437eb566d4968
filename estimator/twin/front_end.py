"""The API server in front of the engine, on the virtual clock: one thread that takes in and writes out.

Sources: vLLM 0.32 v1/engine/async_llm.py (one output handler for all requests) and output_processor.py beside
it (RequestOutputCollector merges what a slow writer has not taken yet). LMDeploy's api_server is one event
loop as well. Several API servers (--api-server-count) are not modelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from estimator.twin.cost import FrontEndCost
from estimator.twin.request import Request


class FrontEnd:
    """Tells when a request reaches the engine and when a token reaches its client; times are seconds.

    While the writer is behind, the tokens of later steps join the chunks that still wait: a slow front end
    sends fewer, longer chunks, and a backlog never exceeds one chunk a stream.
    """

    def __init__(self, cost: FrontEndCost) -> None:
        self._cost = cost
        self._start_s = 0.0
        """When the last batch of chunks starts to be written; later tokens may join it until then."""
        self._end_s = 0.0
        """When the front end has nothing more to do."""
        self._batch: dict[Request, int] = {}
        """Place of each request in the last batch."""

    def takes_in(self, sent_s: float) -> float:
        """When the engine has a request that its client sent at `sent_s`."""
        behind_s = max(0.0, self._end_s - sent_s)
        self._end_s = max(self._end_s, sent_s) + self._cost.request_cpu_s
        return sent_s + behind_s + self._cost.request_s

    def writes(self, made_s: float, emitted: Sequence[Request], of: Iterable[Request]) -> list[float]:
        """When the tokens that `of` (some of `emitted`) gained at `made_s` are with their clients."""
        step_s, chunk_s = self._cost.step_s, self._cost.chunk_s
        if not step_s + chunk_s:
            return [max(made_s, self._end_s) for _ in of]
        if made_s >= self._start_s:
            self._start_s, self._batch = max(made_s, self._end_s), {}
        for request in emitted:
            self._batch.setdefault(request, len(self._batch))
        self._end_s = max(self._end_s, self._start_s + step_s + len(self._batch) * chunk_s)
        return [self._start_s + step_s + (self._batch[request] + 1) * chunk_s for request in of]
