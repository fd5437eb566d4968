"""What exists in C as well as in Python: used where the installation could build it, unless it is refused."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["IS_WANTED", "PURE_PYTHON_VARIABLE", "gaps"]

PURE_PYTHON_VARIABLE: Final = "ULLAGE_PURE_PYTHON"
IS_WANTED: Final = not os.environ.get(PURE_PYTHON_VARIABLE)

try:
    if not IS_WANTED:
        raise ImportError
    from loadtest import _gaps as gaps
except ImportError:  # not wanted, or there was no compiler
    gaps = None  # type: ignore[assignment]
