"""The live side of a wire: what the event loop reads, when a listener wakes; plain and TLS, on loopback."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from gevent import socket
from gevent.hub import get_hub
from gevent.ssl import SSLContext
from used_again import pair_at

from loadtest.workers.ear import Ear, WatcherEar, ear
from loadtest.workers.wire import SocketWire

EARS: list[Callable[[], Ear]] = [ear, lambda: WatcherEar(get_hub().loop)]


@pytest.fixture(params=EARS, ids=["epoll", "watchers"])
def pair(request: pytest.FixtureRequest) -> tuple[SocketWire, socket.socket]:
    mine, peer = socket.socketpair()
    return SocketWire(mine, request.param()), peer


Pair = tuple[SocketWire, socket.socket]


def test_every_read_comes_with_its_time_until_the_listener_has_enough(pair: Pair) -> None:
    wire, peer = pair
    reads: list[tuple[bytes, int]] = []

    def take(data: bytes, at_ns: int) -> bool:
        reads.append((data, at_ns))
        return data == b"b"

    said = gevent.spawn(lambda: [(peer.sendall(one), gevent.sleep(0.01)) for one in (b"a", b"b", b"c")])
    assert wire.listen(take, 5.0)
    said.join()
    assert [data for data, _ in reads] == [b"a", b"b"]
    assert 5_000_000 < reads[1][1] - reads[0][1] < 5_000_000_000
    assert wire.listen(lambda data, _: data == b"c", 5.0), "what came while nobody listened is still there"
    wire.close()
    peer.close()


def test_a_listener_wakes_when_its_time_has_passed_and_may_listen_again(pair: Pair) -> None:
    wire, peer = pair
    assert not wire.listen(lambda *_: True, 0.01)
    peer.sendall(b"late")
    assert wire.listen(lambda data, _: data == b"late", 5.0)
    wire.close()
    peer.close()


def test_the_end_of_the_stream_is_an_empty_read(pair: Pair) -> None:
    wire, peer = pair
    peer.close()
    assert wire.listen(lambda data, _: data == b"", 5.0)
    wire.close()


def test_what_a_listener_raises_reaches_it_and_nobody_else(pair: Pair) -> None:
    wire, peer = pair
    other, its_peer = socket.socketpair()
    heard = gevent.spawn(SocketWire(other).listen, lambda data, _: data == b"fine", 5.0)

    def take(data: bytes, at_ns: int) -> bool:
        raise ValueError("no use")

    peer.sendall(b"x")
    with pytest.raises(ValueError, match="no use"):
        wire.listen(take, 5.0)
    its_peer.sendall(b"fine")
    assert heard.get(timeout=5.0)
    wire.close()
    for one in (peer, other, its_peer):
        one.close()


def test_a_listener_that_is_killed_leaves_its_socket_in_silence(pair: Pair) -> None:
    wire, peer = pair
    listener = gevent.spawn(wire.listen, lambda *_: False, 5.0)
    gevent.sleep(0)
    listener.kill()
    peer.sendall(b"x")
    assert wire.listen(lambda data, _: data == b"x", 5.0)
    wire.close()
    peer.close()


def test_a_number_that_is_used_again_is_the_new_sockets_alone(pair: Pair) -> None:
    wire, peer = pair
    number = wire._socket.fileno()
    wire.close()
    peer.close()
    mine, its_peer = pair_at(number)
    again = SocketWire(mine, wire._ear)
    its_peer.sendall(b"new")
    assert again.listen(lambda data, _: data == b"new", 5.0)
    again.close()
    its_peer.close()


def test_a_request_the_peer_does_not_take_is_late(pair: Pair) -> None:
    wire, peer = pair
    with pytest.raises(TimeoutError):
        wire.send(bytes(2**24), 0.02)
    wire.close()
    peer.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and its own certificate for localhost, made here and forgotten."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl here to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, made = folder / "key.pem", folder / "certificate.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(made)]
    subprocess.run([openssl, *words, *names], check=True, capture_output=True)
    return key, made


def test_tls_records_are_heard_one_by_one_to_the_last(
    certificate: tuple[Path, Path],
) -> None:
    key, made = certificate
    server, client = SSLContext(ssl.PROTOCOL_TLS_SERVER), SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(made, key)
    client.load_verify_locations(made)
    mine, peer = socket.socketpair()
    accepted = gevent.spawn(server.wrap_socket, peer, server_side=True)
    wire = SocketWire(client.wrap_socket(mine, server_hostname="localhost"))
    far = accepted.get(timeout=5.0)
    records = [b"%d" % number * 3000 for number in range(9)]
    said = gevent.spawn(lambda: [far.sendall(record) for record in records])
    heard = bytearray()

    def take(data: bytes, at_ns: int) -> bool:
        heard.extend(data)
        return len(heard) == 27_000

    assert wire.listen(take, 5.0)
    assert bytes(heard) == b"".join(records)
    assert not wire.listen(take, 0.01), "nothing is left, and that is no error"
    wire.send(b"thanks", 1.0)
    assert far.recv(100) == b"thanks"
    said.join()
    far.close()
    wire.close()
