"""A file of faults is data: read whole, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from estimator.spec import SpecError
from estimator.twin.faults import parse_faults, read_faults

EXAMPLE = Path(__file__).resolve().parents[3] / "configs/faults/example.yaml"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ([], "a list under the key 'faults'"),
        ({"faults": [{"name": "die"}]}, "there is no fault 'die'"),
        ({"faults": [{"name": "truncate", "argument": "soon"}]}, "takes a number"),
        ({"faults": [{"name": "truncate", "argument": "inf"}]}, "takes a number"),
        ({"faults": [{"name": "truncate", "every": 0}]}, "every must be at least 1"),
        ({"faults": [{"name": "truncate", "evry": 3}]}, "faults.0.evry"),
        ({"faults": [{"name": "redirect", "argument": "http://a\r\nX: 1"}]}, "one line"),
    ],
)
def test_a_wrong_file_is_one_sentence(body: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words) as raised:
        parse_faults(body)
    assert "\n" not in str(raised.value)


def test_the_example_file_can_be_read() -> None:
    assert len(read_faults(EXAMPLE)) == 5
