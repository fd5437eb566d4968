"""What a person's YAML file may hold, and the one sentence for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from estimator.spec import SpecError
from estimator.yaml_file import DEPTH_MAX, FILE_BYTES_MAX, read_yaml


def written(tmp_path: Path, text: bytes) -> Path:
    path = tmp_path / "a.yaml"
    path.write_bytes(text)
    return path


def test_plain_data_comes_back(tmp_path: Path) -> None:
    path = written(tmp_path, "a: [1, 2.5, ja, ü]\nb: {c: null}\n".encode())
    assert read_yaml(path) == {"a": [1, 2.5, "ja", "ü"], "b": {"c": None}}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: [", "is not YAML"),
        (b"\x00", "is not YAML"),
        (b"a: 1\nb: 2\na: 3\n", "the key 'a' twice"),
        (b"outer: {a: 1, a: 1}\n", "the key 'a' twice"),
        (b"a: &x [1]\nb: *x\n", "write the value itself"),
        (b"a: 1\n---\nb: 2\n", "is not YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),
        (b"[" * (DEPTH_MAX + 1) + b"]" * (DEPTH_MAX + 1), f"more than {DEPTH_MAX} levels"),
        (b"[" * 100_000, f"more than {DEPTH_MAX} levels"),
        (b"\xff", "cannot read"),
        (b"#" * (FILE_BYTES_MAX + 1), "has more than 1,000,000 bytes"),
    ],
)
def test_what_is_not_read_is_named_with_its_file(tmp_path: Path, text: bytes, sentence: str) -> None:
    with pytest.raises(SpecError, match=sentence) as refused:
        read_yaml(written(tmp_path, text))
    assert str(tmp_path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_as_deep_as_allowed_is_read(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, b"[" * DEPTH_MAX + b"]" * DEPTH_MAX))


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read .*b\.yaml: No such file"):
        read_yaml(tmp_path / "b.yaml")
