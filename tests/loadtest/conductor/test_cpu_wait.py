"""How long a thread of this process had no processor is known from look to look, where Linux counts it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from loadtest.conductor.cpu_wait import CpuWait

MS_NS = 1_000_000


def wait(tasks: Path, **waits_ms: int) -> None:
    for task, wait_ms in waits_ms.items():
        (tasks / task).mkdir(parents=True, exist_ok=True)
        (tasks / task / "schedstat").write_text(f"77 {wait_ms * MS_NS} 5\n")


def test_a_look_tells_the_longest_wait_of_one_thread_since_the_last(tmp_path: Path) -> None:
    wait(tmp_path, t1=5000, t2=10)
    waited = CpuWait(tmp_path)
    wait(tmp_path, t1=5100, t2=410)
    assert waited.seconds() == pytest.approx(0.4)
    wait(tmp_path, t1=5900)
    assert waited.seconds() == pytest.approx(0.8)
    assert waited.seconds() == 0.0


def test_a_new_thread_has_waited_since_it_began_and_one_that_ended_is_forgotten(tmp_path: Path) -> None:
    wait(tmp_path, t1=9000)
    waited = CpuWait(tmp_path)
    wait(tmp_path, t2=30)
    shutil.rmtree(tmp_path / "t1")
    assert waited.seconds() == pytest.approx(0.03)


@pytest.mark.parametrize("text", ["", "rubbish", "1", "1 x 3"])
def test_where_it_is_not_counted_nothing_is_said(text: str, tmp_path: Path) -> None:
    assert CpuWait(tmp_path / "nowhere").seconds() is None
    (tmp_path / "t1").mkdir()
    (tmp_path / "t1/schedstat").write_text(text)
    assert CpuWait(tmp_path).seconds() is None
