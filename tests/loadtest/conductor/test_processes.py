"""A free port stays free until the one it was picked for listens on it."""

from __future__ import annotations

import errno
import socket

import pytest

from loadtest.conductor.processes import free_port


def test_a_free_port_is_for_the_server_that_knows_it_and_for_nobody_else() -> None:
    port = free_port()
    with socket.socket() as somebody, pytest.raises(OSError, match="in use") as refused:
        somebody.bind(("127.0.0.1", port))
    assert refused.value.errno == errno.EADDRINUSE
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)) as server:  # it sets SO_REUSEADDR, as servers do
        assert server.getsockname()[1] == port
