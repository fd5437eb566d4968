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
    """A loopback port that nobody has and nobody is given for a minute, but whoever asks for it by number.

    A connection that its listener closed first leaves the port in TIME_WAIT: the kernel hands it to nobody,
    and servers, which set SO_REUSEADDR, may listen there.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])
        with socket.create_connection(("127.0.0.1", port)) as client:
            listener.accept()[0].close()
            client.recv(1)  # the end
    return port
