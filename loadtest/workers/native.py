"""The reader of tokens: the one in C where the installation could build it, else the one in Python.

Both give the same record; `ULLAGE_PURE_PYTHON=1` asks for the second.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

__all__ = ["IS_NATIVE", "PURE_PYTHON_VARIABLE", "Reading", "Steady"]

PURE_PYTHON_VARIABLE: Final = "ULLAGE_PURE_PYTHON"

if TYPE_CHECKING:
    from loadtest.workers._reader import Reading
    from loadtest.workers.steady import PythonSteady as Steady

    IS_NATIVE: bool
else:
    try:
        if os.environ.get(PURE_PYTHON_VARIABLE):
            raise ImportError
        from loadtest.workers._reader import Reading, Steady
    except ImportError:  # not wanted, or there was no compiler
        from loadtest.workers.steady import PythonSteady as Steady

        Reading = None
    IS_NATIVE = Reading is not None
