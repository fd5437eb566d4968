"""A number that a closed socket had, given to a new one: the kernel does so where no lower one is free."""

from __future__ import annotations

import os

from gevent import socket


def pair_at(number: int) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection, the first of which has this number; nobody may hold it now."""
    mine, peer = socket.socketpair()
    if peer.fileno() == number:
        return peer, mine
    if mine.fileno() != number:
        with mine:
            mine = socket.socket(fileno=os.dup2(mine.fileno(), number, inheritable=False))
    return mine, peer
