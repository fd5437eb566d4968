"""The API key comes from the environment or a private file, and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from estimator.spec import SpecError
from estimator.twin.command import parser_of
from estimator.twin.faults import KINDS
from estimator.twin.options import read_key


@pytest.mark.parametrize("content", ["two words", ""])
def test_a_key_that_cannot_be_sent_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(SpecError):
        read_key({"ULLAGE_TWIN_API_KEY_FILE": str(file)})


def test_a_key_file_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("s3cret\n")
    file.chmod(0o644)
    with pytest.raises(SpecError, match="chmod 600"):
        read_key({"ULLAGE_TWIN_API_KEY_FILE": str(file)})
    file.chmod(0o600)
    assert read_key({"ULLAGE_TWIN_API_KEY_FILE": str(file)}) == "s3cret"
    assert read_key({}) is None


def test_every_flag_and_every_fault_is_in_the_reference() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/reference/twin-server.md").read_text(encoding="utf-8")
    flags = [flag for action in parser_of()._actions for flag in action.option_strings]
    flags = [flag for flag in flags if flag not in ("-h", "--help")]
    assert len(flags) > 20
    assert [name for name in (*flags, *KINDS) if f"`{name}" not in text] == []
