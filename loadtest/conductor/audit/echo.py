"""Tries this client's reader against an instant server on loopback, in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

from loadtest.conductor.audit.host_audit import Echo

START_AND_END_S: Final = 15.0
"""On a busy machine; a trial that takes longer says nothing."""


def try_reader(echo_s: float) -> Echo | None:
    """Takes `echo_s` and half a second more; None when the trial broke or hung."""
    command = [sys.executable, "-m", "loadtest.workers.echo", "--seconds", str(echo_s)]
    try:
        done = subprocess.run(  # noqa: S603  (our own module, no shell)
            command, capture_output=True, text=True, timeout=echo_s + START_AND_END_S, check=True
        )
        return Echo(**json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None
