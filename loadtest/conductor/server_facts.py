"""Asks a running server what it is: the models it serves, its version, its /metrics page.

http.client is used because it follows no redirect, verifies TLS by default and works the same inside
Locust's patched process and outside it.
"""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from estimator.errors import EXIT_UNREACHABLE, PlainError
from loadtest.access import client_context
from loadtest.collector.engine_metrics import EngineReading, read_engine_page
from loadtest.origin import ApiKey, Origin
from loadtest.workers.reply import told

ANSWER_BYTES_MAX: Final = 16 * 2**20
ASK_TIMEOUT_S: Final = 10.0


class ServerError(PlainError):
    """The server answered, but not as an OpenAI-compatible server does: one sentence that names the fix."""


class ServerUnreachable(ServerError):  # noqa: N818  (reads as what happened)
    """No answer at all."""

    exit_code = EXIT_UNREACHABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One entry of /v1/models; `max_model_len` is None where the engine does not show it."""

    name: str
    max_model_len: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What the server said of itself. `reading` is None when /metrics could not be read."""

    models: tuple[ServedModel, ...]
    version: str | None
    reading: EngineReading | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    body: bytes


def ask(origin: Origin, path: str, key: ApiKey | None, *, body: Mapping[str, Any] | None = None) -> Answer:
    """One GET, or one POST when a body is given. Raises ServerUnreachable when no answer came."""
    connection: http.client.HTTPConnection
    if origin.scheme == "https":
        context = client_context(origin.access)
        connection = http.client.HTTPSConnection(
            origin.host, origin.port, timeout=ASK_TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(origin.host, origin.port, timeout=ASK_TIMEOUT_S)
    headers = {"Accept-Encoding": "identity", "Connection": "close"}
    if key is not None:
        headers.update([key.header()])
    payload = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        payload = json.dumps(body).encode()
    try:
        connection.request("GET" if body is None else "POST", origin.path + path, payload, headers)
        response = connection.getresponse()
        return Answer(status=response.status, body=response.read(ANSWER_BYTES_MAX))
    except ssl.SSLError as error:
        raise ServerUnreachable(
            f"cannot verify the TLS certificate of {origin} ({error.reason}); name its CA with --ca-file"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise ServerUnreachable(
            f"cannot reach {origin}: {reason}; start the server or correct --host"
        ) from error
    finally:
        connection.close()


def read_server(origin: Origin, key: ApiKey | None) -> ServerFacts:
    """Raises ServerUnreachable, or ServerError when /v1/models is not OpenAI's."""
    return ServerFacts(
        models=_models(origin, ask(origin, "/v1/models", key)),
        version=_version(origin, key),
        reading=_metrics(origin, key),
    )


def _models(origin: Origin, answer: Answer) -> tuple[ServedModel, ...]:
    if answer.status in (401, 403):
        raise ServerError(f"{origin} refuses the request ({answer.status}): set ULLAGE_API_KEY to its key")
    if answer.status != 200:
        raise ServerError(
            f"{origin}/v1/models answered {answer.status}: --host must be the base of an OpenAI server"
        )
    try:
        entries = json.loads(answer.body)["data"]
        served = tuple(
            ServedModel(name=str(entry["id"]), max_model_len=_count(entry.get("max_model_len")))
            for entry in entries
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ServerError(
            f"{origin}/v1/models is not an OpenAI model list: --host must be the base of such a server"
        ) from error
    if not all(model.name.isprintable() for model in served):  # it would reach terminals and reports
        raise ServerError(f"{origin} serves a model with control characters in its name: rename it there")
    return served


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _version(origin: Origin, key: ApiKey | None) -> str | None:
    answer = ask(origin, "/version", key)
    try:
        found = json.loads(answer.body).get("version") if answer.status == 200 else None
    except (ValueError, AttributeError):
        return None
    return told(found, key, 64) if isinstance(found, str) else None


def _metrics(origin: Origin, key: ApiKey | None) -> EngineReading | None:
    try:
        answer = ask(origin, "/metrics", key)
    except ServerUnreachable:  # the API was reached a moment ago; a page that hangs is a page unseen
        return None
    if answer.status != 200:
        return None
    reading = read_engine_page(answer.body.decode("utf-8", errors="replace"))
    return reading if reading.engine is not None else None
