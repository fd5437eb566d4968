"""The reader of tokens: the one in C, or the one in Python. Both give the same record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.native import IS_WANTED

__all__ = ["IS_NATIVE", "Reader", "Reading", "Steady"]

if TYPE_CHECKING:
    from loadtest.workers._reader import Reader, Reading
    from loadtest.workers.steady import PythonSteady as Steady

    IS_NATIVE: bool
else:
    try:
        if not IS_WANTED:
            raise ImportError
        from loadtest.workers._reader import Reader, Reading, Steady
    except ImportError:  # not wanted, not Linux, or there was no compiler
        from loadtest.workers.steady import PythonSteady as Steady

        Reader = Reading = None
    IS_NATIVE = Reader is not None
