"""How long a server keeps an idle connection: one connection for each second, tried again after it."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from loadtest.access import client_context
from loadtest.audit import Check
from loadtest.origin import ApiKey, Origin

IDLE_S: Final = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
REUSED_S: Final = 2.0
"""How long the load's own connections may idle before they are opened anew."""
ANSWER_S_MAX: Final = 5.0
PATH: Final = "/v1/models"

Sleep = Callable[[float], None]


def idle_survived(
    origin: Origin, key: ApiKey | None, idles_s: Sequence[float] = IDLE_S, sleep: Sleep = time.sleep
) -> dict[float, bool | None]:
    """For each idle time, at once: did the connection answer afterwards? None when it never did before."""
    with ThreadPoolExecutor(len(idles_s)) as pool:
        lived = pool.map(lambda idle_s: _lives(origin, key, idle_s, sleep), idles_s)
        return dict(zip(idles_s, lived, strict=True))


def _lives(origin: Origin, key: ApiKey | None, idle_s: float, sleep: Sleep) -> bool | None:
    connection = _connection(origin)
    headers = {} if key is None else dict([key.header()])
    try:
        connection.request("GET", origin.path + PATH, headers=headers)
        answer = connection.getresponse()
        answer.read()
        if answer.will_close or connection.sock is None:
            return False
        sleep(idle_s)
    except (OSError, http.client.HTTPException):
        return None
    else:
        return _answers(connection, origin.path + PATH, headers)
    finally:
        connection.close()


def _answers(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> bool:
    try:
        connection.request("GET", path, headers=headers)
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    return True


def _connection(origin: Origin) -> http.client.HTTPConnection:
    if origin.scheme == "http":
        return http.client.HTTPConnection(origin.host, origin.port, timeout=ANSWER_S_MAX)
    context: ssl.SSLContext = client_context(origin.access)
    return http.client.HTTPSConnection(origin.host, origin.port, timeout=ANSWER_S_MAX, context=context)


def keep_alive_check(survived: dict[float, bool | None]) -> Check:
    """Connections must outlive the time for which the load reuses them."""
    name = "keep-alive"
    died = [idle_s for idle_s, lived in survived.items() if lived is False]
    lived = [idle_s for idle_s, lived in survived.items() if lived]
    if not died and not lived:
        return Check(name=name, level="skipped", said="no connection answered")
    if not died:
        said = f"idle connections live for {max(lived):g} s and more"
        return Check(name=name, level="ok", said=said)
    first = min(died)
    said = f"an idle connection is closed within {first:g} s"
    figures = {"closed_within_s": first}
    if first <= REUSED_S:
        fix = f"the load reuses connections for {REUSED_S:g} s: raise the server's keep-alive timeout"
        return Check(name=name, level="amber", said=said, fix=fix, figures=figures)
    return Check(name=name, level="ok", said=f"{said}, lives for {max(lived):g} s", figures=figures)
