"""For tests that run a program in C."""

from __future__ import annotations

import shutil

import pytest


def c_compiler() -> str:
    """The compiler; a test that needs one is skipped where there is none."""
    found = shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler here")
    return found
