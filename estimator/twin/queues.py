"""The waiting queue under the priority policy, with the verbs of the deque that FCFS uses."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from estimator.twin.request import Request


def rank(request: Request) -> tuple[int, int]:
    """The lower, the sooner served and the later preempted (vLLM 0.32 v1/request.py __lt__)."""
    return request.priority, request.arrival


class PriorityQueue:
    """Requests in order of `rank`, wherever they are put in."""

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)

    def __getitem__(self, index: int) -> Request:
        return self._requests[index]

    def append(self, request: Request) -> None:
        insort(self._requests, request, key=rank)

    appendleft = append

    def popleft(self) -> Request:
        return self._requests.pop(0)

    def remove(self, request: Request) -> None:
        self._requests.remove(request)
