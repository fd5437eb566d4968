"""Fetches the rows of a worker elsewhere, piece by piece, and puts them into the run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from estimator.errors import PlainError
from loadtest.conductor.far.messages import ASK, FETCH, PARCELS, PIECE, plain
from loadtest.conductor.far.parcels import Joiner, Parcel, parcel_of
from loadtest.run_folder import RunFolder

ANSWER_S_MAX: Final = 20.0
SEAL_S_MAX: Final = 120.0
"""How long a worker may turn its text into columns before it sends them."""


class NotGathered(PlainError):  # noqa: N818  (what happened)
    """Rows of the run are on another machine only."""

    exit_code = 5


class Ask(Protocol):
    """Sends a message to the worker, and waits for its answer of the kind that is named."""

    def __call__(self, message: str, data: dict[str, Any], answer: str, within_s: float) -> Mapping[str, Any]:
        """Raises NotGathered when none comes."""


def fetch_all(ask: Ask, folder: RunFolder, worker: int) -> dict[str, str | int | float | bool | None]:
    """What came, as an event tells it. Raises PlainError, OSError, or KeyError, TypeError, ValueError for
    answers that are none."""
    begun_ns = time.perf_counter_ns()
    parcels = [parcel_of(one) for one in _good(ask(ASK, {}, PARCELS, SEAL_S_MAX))["parcels"]]
    for parcel in parcels:
        _fetch(ask, parcel, folder, worker)
    return {
        "worker": worker,
        "files": len(parcels),
        "bytes": sum(parcel.size_bytes for parcel in parcels),
        "took_s": (time.perf_counter_ns() - begun_ns) / 1e9,
    }


def _fetch(ask: Ask, parcel: Parcel, folder: RunFolder, worker: int) -> None:
    with Joiner(parcel, folder.part_path(parcel.name, worker)) as joiner:
        while not joiner.is_whole:
            wanted = {"name": parcel.name, "start": joiner.next_start}
            got = _good(ask(FETCH, wanted, PIECE, ANSWER_S_MAX))
            joiner.take(int(got["start"]), bytes(got["data"]))
        joiner.finish()


def _good(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    if answer.get("error"):
        raise NotGathered(plain(answer["error"]))
    return answer
