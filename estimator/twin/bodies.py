"""JSON bodies over HTTP: a request's, refused in vLLM's words when it is none, and an answer's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from estimator.twin.refusals import bad_json, no_body, wrong_type
from estimator.twin.wire import compact_json


def answer(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=compact_json(body), status=status, headers=headers, content_type="application/json"
    )


async def read_json(request: web.Request) -> Any:
    """The body. Raises AskError or HTTPBadRequest in vLLM's words when it is not JSON."""
    if request.content_type != "application/json":
        raise wrong_type()
    try:
        raw = await request.read()
        return json.loads(raw) if raw else _refuse_empty()
    except json.JSONDecodeError as error:
        raise bad_json(error.pos, error.msg) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise web.HTTPBadRequest(reason="There was an error parsing the body") from error


def _refuse_empty() -> None:
    raise no_body()


def rank_asked_for(request: web.Request) -> int | None:
    """What is no number is ignored, as in vLLM."""
    try:
        return int(request.headers["X-data-parallel-rank"])
    except (KeyError, ValueError):
        return None
