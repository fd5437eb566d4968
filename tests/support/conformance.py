"""Recorded answers of real servers, and what has to be equal when the same request goes to the twin."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

HEADERS: Final = ("content-type", "allow", "retry-after", "www-authenticate", "transfer-encoding")
ANSWER_S: Final = 60.0
LITERAL: Final = frozenset(
    (
        "object",
        "type",
        "code",
        "param",
        "finish_reason",
        "finished_reason",
        "role",
        "index",
        "owned_by",
        "detail",
        "cached_tokens",
        "created_cache_tokens",
    )
)
"""Keys whose very value is part of the contract; of all others only the type is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request, and under which flags of the server it is sent."""

    name: str
    path: str
    body: Any = None
    raw: str | None = None
    """A body that is no JSON, as Latin-1 text."""
    method: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        """As plain data, the way the fixture keeps it."""
        sent = self.raw if self.raw is not None else None if self.body is None else json.dumps(self.body)
        headers = {"Content-Type": "application/json", **self.headers} if sent is not None else self.headers
        method = self.method or ("GET" if sent is None else "POST")
        return {"method": method, "path": self.path, "headers": dict(headers), "body": sent}


def ask(port: int, request: Mapping[str, Any]) -> dict[str, Any]:
    """Sends it over a socket of its own; status, telling headers and the body with its chunks undone."""
    payload = (request["body"] or "").encode("latin-1")
    lines = [f"{request['method']} {request['path']} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in request["headers"].items()]
    if request["body"] is not None:
        lines.append(f"Content-Length: {len(payload)}")
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + payload)
        return _parsed(_everything(connection))


def _everything(connection: socket.socket) -> bytes:
    deadline = time.monotonic() + ANSWER_S
    received = b""
    while time.monotonic() < deadline:
        piece = connection.recv(65536)
        if not piece:
            return received
        received += piece
    raise TimeoutError(f"no end of the answer in {ANSWER_S:.0f} s: {received[:200]!r}")


def _parsed(answer: bytes) -> dict[str, Any]:
    head, body = answer.split(b"\r\n\r\n", 1)
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    told = {name: headers[name] for name in HEADERS if name in headers}
    return {"status": int(status_line.split()[1]), "headers": told, "body": body.decode()}


def _unchunked(body: bytes) -> bytes:
    joined = b""
    while body:
        size, body = body.split(b"\r\n", 1)
        joined += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return joined


def shape(answer: Mapping[str, Any]) -> Any:
    """What must be equal: the JSON's keys and types, or those of the events of a stream in their order."""
    body = answer["body"]
    if not answer["headers"].get("content-type", "").startswith("text/event-stream"):
        try:
            return shape_of(json.loads(body))
        except json.JSONDecodeError:
            return "text" if body else ""
    assert body.endswith("\n\n"), "the last event is not ended"
    return _runs(_event_shape(event) for event in body.removesuffix("\n\n").split("\n\n"))


def _event_shape(event: str) -> Any:
    assert event.startswith("data: "), f"not a data event: {event[:80]!r}"
    data = event.removeprefix("data: ")
    return data if data == "[DONE]" else shape_of(json.loads(data))


def shape_of(value: Any, key: str = "") -> Any:
    """Keys in order and types; the values of LITERAL keys as they are."""
    if isinstance(value, dict):
        return {name: shape_of(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return _runs(shape_of(inner) for inner in value)
    return value if key in LITERAL else type(value).__name__


def _runs(shapes: Iterable[Any]) -> list[Any]:
    """Neighbours of equal shape count as one: how many tokens came in a chunk is not the contract."""
    kept: list[Any] = []
    for one in shapes:
        if not kept or kept[-1] != one:
            kept.append(one)
    return kept
