"""What processes of one machine need: an end, politely, then not; a port that nobody has."""

from __future__ import annotations

import socket
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


def free_port() -> int:
    """A loopback port that nobody has now; who is to listen there should not wait long."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
