"""The one kind of error a person sees: a sentence that names the fix, and the command's exit code."""

from __future__ import annotations

from typing import Final

EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_VOID: Final = 5
EXIT_INTERRUPTED: Final = 130


class PlainError(Exception):
    """Shown as one sentence without a traceback; `exit_code` is what the command ends with."""

    exit_code: int = EXIT_USAGE
