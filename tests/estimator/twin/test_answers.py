"""Tokens on their way to the socket: each goes out once and in order, whether the reader keeps up or not."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from estimator.twin.answers import BACKLOG_BYTES_MAX, Channel, Entry, Streamed
from estimator.twin.ask import Ask
from estimator.twin.cost import StepCost
from estimator.twin.engine import Engine
from estimator.twin.faults import Fault
from estimator.twin.profile import read_profile
from estimator.twin.ranks import Gate, QueueLimits, Rank
from estimator.twin.realtime import EngineLoop
from estimator.twin.speech import Speech
from estimator.twin.telemetry import Telemetry
from estimator.twin.tokens import text_of
from estimator.twin.vllm_page import PAGE
from estimator.twin.wire import Envelope, StreamWire

COST = StepCost(fixed_s=0.01, compute_s_per_token=0, weights_s=0, context_s_per_token=0, sequence_s=0)
TINY = replace(read_profile("tiny"), step_cost=COST)
TOKENS = 30
SPEECH = Speech(prompt_tokens=4, output_tokens=TOKENS, finish_reason="length")
ASK = Ask(chat=False, prompts_tokens=(4,), max_tokens=TOKENS, stream=True)


class Reader:
    """What the socket was given, and how much of it is said to be unread."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.unread_bytes = 0

    def write(self, data: bytes) -> None:
        self.chunks.append(data)

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    @property
    def words(self) -> list[int]:
        """Words of each chunk."""
        return [len(text.split()) for text in self.texts]

    @property
    def texts(self) -> list[str]:
        events = b"".join(self.chunks).decode().replace("data: [DONE]\n\n", "").split("\n\n")
        bodies: list[Any] = [json.loads(event.removeprefix("data: ")) for event in events if event]
        return [body["choices"][0]["text"] for body in bodies]


def streamed(
    reader: Any, before: Callable[[int], None], *, interval: int = 1, faults: tuple[Fault, ...] = ()
) -> Streamed:
    """An answer of TOKENS tokens, told step by step; `before(step)` happens ahead of each."""

    async def tell() -> Streamed:
        engine = Engine(TINY.limits)
        telemetry = Telemetry(engine, TINY, PAGE)
        rank = Rank(engine=engine, telemetry=telemetry, loop=EngineLoop(engine, COST, telemetry))
        gate = Gate([rank], QueueLimits(), Counter())
        wire = StreamWire(ASK, [SPEECH], Envelope(answer_id="cmpl-1", model="tiny", created_s=1))
        answer = Streamed(wire, interval=interval)
        answer.submit(gate, [SPEECH], Entry(answer_id="a", max_tokens=TOKENS))
        for step in range(TOKENS):
            before(step)
            if step == 2:  # the headers take their time
                answer.open(Channel(reader, chunked=False, faults=faults))
            scheduled = engine.step()
            rank.loop._note_scheduled(scheduled, 0.0)
            rank.loop._deliver(engine.settle(scheduled), float(step))
        return answer

    return asyncio.run(tell())


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("slow_from", [0, 1, 9, 28, TOKENS])
def test_a_reader_that_falls_behind_misses_nothing(slow_from: int, interval: int) -> None:
    reader = Reader()

    def before(step: int) -> None:
        reader.unread_bytes = BACKLOG_BYTES_MAX + 1 if slow_from <= step < slow_from + 8 else 0

    answer = streamed(reader, before, interval=interval)
    assert "".join(reader.texts) == text_of(0, TOKENS)
    assert answer.done.is_set()


def test_the_tokens_of_a_slow_reader_come_together() -> None:
    reader = Reader()

    def before(step: int) -> None:
        reader.unread_bytes = BACKLOG_BYTES_MAX + 1 if 10 <= step < 15 else 0

    streamed(reader, before)
    assert reader.words == [2] + [1] * 8 + [6] + [1] * (TOKENS - 16)


def test_a_fault_sees_every_chunk() -> None:
    reader = Reader()
    streamed(reader, lambda _: None, faults=(Fault(name="coalesced", argument="5"),))
    assert max(chunk.count(b"data: ") for chunk in reader.chunks) == 5
    assert "".join(reader.texts) == text_of(0, TOKENS)
