"""The twin answers every recorded request as the real server did, down to the sentence of an error."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conformance import ask, shape

from estimator.twin.command import options_of, parser_of, profile_of
from estimator.twin.cost import StepCost
from estimator.twin.options import ServerOptions
from estimator.twin.profile import TwinProfile, read_profile
from estimator.twin.server import TwinServer, runner_of

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures/conformance"
QUICK = StepCost(fixed_s=0.0001, compute_s_per_token=0, weights_s=0.0001, context_s_per_token=0, sequence_s=0)
TINY = replace(read_profile("tiny"), step_cost=QUICK)
OWN_WORDS = {"vllm-0.32:prompt of an odd type", "lmdeploy-0.18:chat too long"}
"""Refused with the same status and form: vLLM lists every alternative of its prompt type, and LMDeploy
names the length, which is another with another tokenizer."""
RECORDED = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))["groups"] for path in FIXTURES.glob("*.json")
}
GROUPS = [(server, group) for server, groups in RECORDED.items() for group in groups]


def started_like(server: str, flags: list[str]) -> tuple[TwinProfile, ServerOptions]:
    """By the recorded server's own flags, all of which the twin knows but the key."""
    key = None
    if "--api-key" in flags:
        place = flags.index("--api-key")
        key, flags = flags[place + 1], flags[:place] + flags[place + 2 :]
    # The recorded model's next token is the end mark wherever it may be: a mean length of 1.
    flags = ["--engine", server.partition("-")[0], "--mean-output-tokens", "1", *flags]
    parsed = parser_of().parse_args(flags)
    return profile_of(parsed, TINY), replace(options_of(parsed), api_key=key)


def answers(
    profile: TwinProfile, options: ServerOptions, requests: list[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    async def tell() -> list[dict[str, Any]]:
        runner = runner_of(TwinServer(profile, options))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        try:
            return [await asyncio.to_thread(ask, port, request) for request in requests]
        finally:
            await runner.cleanup()

    return asyncio.run(asyncio.wait_for(tell(), 60))


def contract(answer: Mapping[str, Any]) -> dict[str, Any]:
    headers = dict(answer["headers"])
    if not headers.get("content-type", "").startswith("text/event-stream"):
        headers.pop("transfer-encoding", None)  # how a body of known length is framed is the HTTP server's
    return {"status": answer["status"], "headers": headers, "shape": shape(answer)}


def sentence(answer: Mapping[str, Any]) -> Any:
    """What an error says; None for an answer that is none."""
    if answer["status"] < 400 or not answer["body"]:
        return None
    body = json.loads(answer["body"])
    error = body.get("error", body)
    return error.get("message", error) if isinstance(error, dict) else error


@pytest.mark.parametrize(("server", "group"), GROUPS, ids=[shlex.quote(f"{s}:{g}") for s, g in GROUPS])
def test_every_recorded_answer_is_the_twins_too(server: str, group: str) -> None:
    recorded = RECORDED[server][group]
    theirs = recorded["answers"]
    ours = answers(*started_like(server, recorded["flags"]), [one["request"] for one in theirs])
    wrong = {}
    for their, our in zip(theirs, ours, strict=True):
        own_words = f"{server}:{their['name']}" in OWN_WORDS
        said = [contract(their), None if own_words else sentence(their)]
        says = [contract(our), None if own_words else sentence(our)]
        if said != says:
            wrong[their["name"]] = {"real": said, "twin": says}
    assert not wrong, json.dumps(wrong, indent=1)
