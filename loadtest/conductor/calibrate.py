"""`ullage calibrate`: light load on a running server, and from it the cost of its steps for the twin."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from estimator.spec import EngineName
from estimator.twin.cost_file import MeasuredCost
from estimator.twin.fit import StepSeen, fit_server_cost
from loadtest.calibrator.observe import front_end_seen, steps_seen
from loadtest.calibrator.probe import Prober
from loadtest.calibrator.waves import Room, Wave, waves
from loadtest.conductor.pool import kv_pool_from_metrics
from loadtest.conductor.prepare import served_model
from loadtest.conductor.server_facts import ServerFacts, read_server
from loadtest.conductor.tokenizer import Tokenizer
from loadtest.origin import ApiKey, Origin
from loadtest.scenario import PATHS
from loadtest.workload.prompts import (
    TOKEN_IDS,
    ChatWords,
    Draw,
    calibrate,
    chat_prompt,
    nonce,
    request_body,
    token_prompt,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """Which server, and the slots it has when that is known."""

    origin: Origin
    key: ApiKey | None
    engine: EngineName
    model: str | None = None
    max_num_seqs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """The cost, and the steps it was fitted to."""

    measured: MeasuredCost
    steps: tuple[StepSeen, ...]


def calibrate_server(
    request: CalibrationRequest, at: datetime, say: Callable[[str], None] = lambda _: None
) -> Calibrated:
    """A minute or so of light load. Raises PlainError when the server cannot be reached or read."""
    facts = read_server(request.origin, request.key)
    served = served_model(request.origin, request.engine, request.model, facts)
    chat = None
    if request.engine == "lmdeploy":
        server = Tokenizer(origin=request.origin, key=request.key, model=served.name, engine=request.engine)
        chat = calibrate(server.counter())
    plan = waves(_room(request, facts, served.max_model_len, chat))
    run_id = f"calibrate {at.timestamp()}"
    bodies = [_bodies(wave, number, served.name, chat, run_id) for number, wave in enumerate(plan)]
    prober = Prober(
        origin=request.origin, key=request.key, path=PATHS["completions" if chat is None else "chat"]
    )
    say(f"{served.name} at {request.origin}: {len(plan)} waves of light load")
    warm_up = [(plan[0], _bodies(plan[0], len(plan), served.name, chat, run_id))]
    asyncio.run(prober.run(warm_up, lambda _: None))  # the first request of a server's life is no measure
    seen = asyncio.run(
        prober.run(list(zip(plan, bodies, strict=True)), lambda done: _tell(say, done, len(plan)))
    )
    steps = steps_seen(seen)
    day = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")
    source = f"measured on {served.name} ({request.engine} {facts.version or 'of unknown version'}), {day}"
    return Calibrated(
        measured=MeasuredCost(
            model=served.name,
            engine=request.engine,
            version=facts.version,
            measured_at=day,
            cost=fit_server_cost(steps, front_end_seen(seen), source),
        ),
        steps=tuple(steps),
    )


def _tell(say: Callable[[str], None], done: int, count: int) -> None:
    if done % 9 == 0 or done == count:
        say(f"wave {done} of {count}")


def _room(
    request: CalibrationRequest, facts: ServerFacts, max_model_len: int | None, chat: ChatWords | None
) -> Room:
    pool = kv_pool_from_metrics(facts.reading, max_model_len) if facts.reading else None
    base, template_tokens = (len(TOKEN_IDS), 0) if chat is None else (len(chat.words), chat.overhead_tokens)
    return Room(
        max_model_len=max_model_len,
        kv_tokens=None if pool is None else pool.usable_blocks * pool.block_size_tokens,
        max_num_seqs=request.max_num_seqs,
        shortest_input_tokens=template_tokens + len(nonce("", 0, 0, base)),
    )


def _bodies(
    wave: Wave, number: int, model: str, chat: ChatWords | None, run_id: str
) -> Sequence[Mapping[str, Any]]:
    """Prompts no two of which begin alike, so that prefix caching shows nothing."""
    bodies = []
    for stream in range(wave.streams):
        draw = Draw(
            input_tokens=wave.input_tokens,
            output_tokens=wave.output_tokens,
            rng=random.Random(f"{number}/{stream}"),  # noqa: S311  (a test load, no secret)
        )
        seq = number * 1000 + stream
        prompt = (
            token_prompt(draw, run_id, 0, seq) if chat is None else chat_prompt(draw, chat, run_id, 0, seq)
        )
        bodies.append(request_body(model, prompt, wave.output_tokens))
    return bodies
