"""Ends a process we started: politely, then not."""

from __future__ import annotations

import subprocess
from typing import Any, Final

STOP_S: Final = 5.0


def end_process(process: subprocess.Popen[Any]) -> None:
    """Terminates it, waits STOP_S seconds, kills it if need be, and closes the pipes we hold to it."""
    process.terminate()
    try:
        process.wait(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
