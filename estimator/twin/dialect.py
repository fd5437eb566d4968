"""What an engine is known by from outside: its error bodies, streams and metrics, one table an engine."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from estimator.twin import lmdeploy_page, lmdeploy_wire, vllm_page
from estimator.twin.answers import Wire
from estimator.twin.ask import Ask, Preflight, Rules, parse_ask
from estimator.twin.lmdeploy_ask import parse_lmdeploy, refusal
from estimator.twin.profile import TwinProfile
from estimator.twin.refusals import AskError
from estimator.twin.speech import Speech
from estimator.twin.telemetry import Page
from estimator.twin.wire import Envelope, StreamWire, whole_answer

VERSION: Final = "0.32.0+twin"
COMMON_PATHS: Final = frozenset(
    ("/health", "/v1/models", "/metrics", "/v1/completions", "/v1/chat/completions")
)
GUARDED: Final = ("/v1", "/v2", "/inference", "/cohere")
"""vLLM asks for the key only below these (entrypoints/serve/middleware, GUARDED_PREFIX)."""

UNGUARDED: Final = ("/health", "/docs", "/redoc", "/nodes")
"""LMDeploy asks for it everywhere else, /metrics included (serve/utils/server_utils.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One engine as clients and collectors see it."""

    version: str
    paths: frozenset[str]
    page: Page
    gauges_every_s: float | None
    """How often the gauges of /metrics are written; None: at each scrape."""
    is_guarded: Callable[[str], bool]
    unauthorized: Any
    refusal: Callable[[AskError], Any]
    health: Callable[[bool], Any]
    """The body of /health by whether the engine is well; None for an empty one."""
    card: Callable[[TwinProfile, int], dict[str, Any]]
    answer_id: Callable[[bool], str]
    """The id of a chat's or a completion's answer."""
    parse: Callable[[Any, bool, Rules, Preflight], Ask]
    """A body, whether it is a chat's, and the server's rules -> what is asked. Raises AskError."""
    wire: Callable[[Ask, Sequence[Speech], Envelope], Wire]
    whole: Callable[[Ask, Sequence[Speech], Envelope, Sequence[int]], dict[str, Any]]


def _card(profile: TwinProfile, created_s: int, **own: Any) -> dict[str, Any]:
    """One entry of /v1/models; `own` are the engine's keys in it and in its permission."""
    permission = {
        "id": f"modelperm-{secrets.token_hex(8)}",
        "object": "model_permission",
        "created": created_s,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": own.pop("allow_search_indices"),
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }
    name = profile.served_model_name
    head = {"id": name, "object": "model", "created": created_s, "owned_by": own.pop("owned_by")}
    return {**head, "root": name, "parent": None, **own, "permission": [permission]}


def _vllm_card(profile: TwinProfile, created_s: int) -> dict[str, Any]:
    limit = profile.max_model_len
    return _card(profile, created_s, owned_by="vllm", max_model_len=limit, allow_search_indices=False)


def _lmdeploy_card(profile: TwinProfile, created_s: int) -> dict[str, Any]:
    return _card(profile, created_s, owned_by="lmdeploy", allow_search_indices=True)


def _lmdeploy_health(well: bool) -> dict[str, str]:
    if well:
        return {"status": "healthy", "message": "Engine is healthy."}
    return {"status": "unhealthy", "message": "Backend reported unhealthy."}


def _nothing(_: bool) -> None:
    return None


VLLM: Final = Dialect(
    version=VERSION,
    paths=COMMON_PATHS | {"/ping", "/version", "/tokenize", "/detokenize"},
    page=vllm_page.PAGE,
    gauges_every_s=None,
    is_guarded=lambda path: path.startswith(GUARDED),
    unauthorized={"error": "Unauthorized"},
    refusal=AskError.body,
    health=_nothing,
    card=_vllm_card,
    answer_id=lambda chat: f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(8)}",
    parse=lambda body, chat, rules, preflight: parse_ask(body, chat=chat, rules=rules, preflight=preflight),
    wire=StreamWire,
    whole=whole_answer,
)
LMDEPLOY: Final = Dialect(
    version="0.18.0+twin",
    paths=COMMON_PATHS | {"/v1/encode"},
    page=lmdeploy_page.PAGE,
    gauges_every_s=lmdeploy_page.GAUGES_EVERY_S,
    is_guarded=lambda path: not path.startswith(UNGUARDED),
    unauthorized=refusal(AskError("Unauthorized.", param=None, status=401)),
    refusal=refusal,
    health=_lmdeploy_health,
    card=_lmdeploy_card,
    answer_id=lambda chat: f"chatcmpl-{secrets.token_hex(11)}" if chat else "-1",
    parse=lambda body, chat, rules, _: parse_lmdeploy(body, chat, rules),
    wire=lmdeploy_wire.StreamWire,
    whole=lmdeploy_wire.whole_answer,
)
"""A completion's id is its session id, and -1 where the client named none."""
