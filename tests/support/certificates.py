"""Certificates made on the spot, and a loopback door that speaks TLS before a plain server.

As a script it is the door itself: `certificates.py PORT KEY CERTIFICATE` prints the port it listens on.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Key and certificate of 127.0.0.1 and localhost that no system knows. Skips without openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        import pytest

        pytest.skip("no openssl here to make a certificate")
    key, made = folder / "key.pem", folder / "certificate.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(made)]
    subprocess.run([openssl, *words, *names], check=True, capture_output=True)
    return key, made


@contextmanager
def tls_door(port: int, key: Path, certificate: Path) -> Iterator[str]:
    """A TLS server that hands every byte to 127.0.0.1:port and back; yields its base URL."""
    command = [sys.executable, __file__, str(port), str(key), str(certificate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as door:
        assert door.stdout is not None
        try:
            yield f"https://127.0.0.1:{int(door.stdout.readline())}"
        finally:
            door.terminate()


async def _serve(port: int, key: str, certificate: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def relay(near: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        far, far_out = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pump(near, far_out), _pump(far, out))

    server = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # a reset, or a client that does not believe the certificate
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    target.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), *sys.argv[2:4]))
