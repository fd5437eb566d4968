"""Files that travel in pieces arrive whole, or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.conductor.far import parcels
from loadtest.conductor.far.parcels import PIECE_BYTES, BrokenParcel, Joiner, parcel, parcel_of, piece

NAME = "streams/w01-000.jsonl"


def sent(root: Path, content: bytes) -> Path:
    path = root / "there" / NAME
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return root / "there"


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES])
def test_a_file_arrives_as_it_was_sent(tmp_path: Path, size: int) -> None:
    content = bytes(number % 251 for number in range(size))
    root, here = sent(tmp_path, content), tmp_path / "here" / NAME
    with Joiner(parcel_of(parcel(root, NAME).message()), here) as joiner:
        while not joiner.is_whole:
            joiner.take(joiner.next_start, piece(root / NAME, joiner.next_start))
        joiner.finish()
    assert here.read_bytes() == content
    assert [path.name for path in here.parent.iterdir()] == [here.name]


@given(
    cuts=st.lists(st.tuples(st.integers(0, 40), st.binary(max_size=40)), max_size=6),
)
def test_no_other_pieces_make_the_file(cuts: list[tuple[int, bytes]]) -> None:
    content = b"one row\nanother row\n"
    with tempfile.TemporaryDirectory() as home:
        root, here = sent(Path(home), content), Path(home) / "here" / NAME
        try:
            with Joiner(parcel(root, NAME), here) as joiner:
                for start, data in cuts:
                    joiner.take(start, data)
                joiner.finish()
        except BrokenParcel:
            assert not list(here.parent.iterdir())
        else:
            assert here.read_bytes() == content


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    root, here = sent(tmp_path, b"one row\n"), tmp_path / "here" / NAME
    with Joiner(parcel(root, NAME), here) as joiner:
        joiner.take(0, b"one sow\n")
        with pytest.raises(BrokenParcel, match="checksum"):
            joiner.finish()
    assert not list(here.parent.iterdir())


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    root = sent(tmp_path, b"rows\n")
    with pytest.raises(BrokenParcel, match="twice"), Joiner(parcels.parcel(root, NAME), root / NAME):
        pass
    assert (root / NAME).read_bytes() == b"rows\n"
