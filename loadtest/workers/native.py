"""The reader of tokens: the one in C, or the one in Python. Both give the same record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.native import IS_WANTED

__all__ = ["IS_NATIVE", "Reading", "Steady"]

if TYPE_CHECKING:
    from loadtest.workers._reader import Reading
    from loadtest.workers.steady import PythonSteady as Steady

    IS_NATIVE: bool
else:
    try:
        if not IS_WANTED:
            raise ImportError
        from loadtest.workers._reader import Reading, Steady
    except ImportError:  # not wanted, or there was no compiler
        from loadtest.workers.steady import PythonSteady as Steady

        Reading = None
    IS_NATIVE = Reading is not None
