"""Prometheus' own tool accepts the rules, and they do what tests/dashboards/rules_test.yml says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

PROMTOOL = shutil.which("promtool")
RULES = sorted((Path(__file__).parents[2] / "dashboards/rules").glob("*.yml"))
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool: apt-get install prometheus")


def promtool(*words: str | Path) -> str:
    """What it complained of; "" for nothing."""
    assert PROMTOOL is not None
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, timeout=240, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_promtool_accepts_every_rule() -> None:
    assert len(RULES) == 4
    assert promtool("check", "rules", *RULES) == ""


def test_the_rules_do_what_they_say() -> None:
    assert promtool("test", "rules", Path(__file__).parent / "rules_test.yml") == ""
