"""What a killed writer's folder must hold, however and whenever it was killed."""

from __future__ import annotations

from pathlib import Path

from killed_writers import row_of

from loadtest.records import RequestIssued, RequestRecord
from loadtest.results import RunRows, finalise, load_results
from loadtest.run_folder import RunFolder


def check_kept(root: Path, acknowledged: int) -> int:
    """Rows lost of those acknowledged; AssertionError when anything else is wrong. Seals the folder."""
    before, sealed, again = (fold(RunFolder(root)) for fold in (load_results, finalise, load_results))
    assert list(before.requests) == list(sealed.requests) == list(again.requests)
    assert sealed.damage == again.damage == before.damage
    assert sealed.damage.bad_lines == 0
    assert sealed.damage.torn_tails <= 1
    held = rows_in(sealed)
    assert held <= acknowledged + 1
    return max(acknowledged - held, 0)


def rows_in(rows: RunRows) -> int:
    """How many rows were written, if what is held is exactly the first so many of them."""
    count = 0
    for request in rows.requests:  # in order
        written = row_of(2 * request.seq + 1)
        assert isinstance(written, RequestRecord)
        if request.outcome == "client_lost":
            issued = row_of(2 * request.seq)
            assert isinstance(issued, RequestIssued)
            assert request.intended_ns == issued.intended_ns
            assert count == 2 * request.seq
            return count + 1
        assert request == written
        assert count == 2 * request.seq
        count += 2
    return count
