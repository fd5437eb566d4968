"""Loads a real server with one case and returns its figures: streams over aiohttp, gauges at 4 Hz."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
from twin_cases import Case
from twin_figures import Figures, quantile

from estimator.twin.arrivals import Arrival, poisson
from loadtest.workload.prompts import TOKEN_IDS

SETTLE_S = 15.0
MEASURE_S = 40.0
RAMP_S = 6.0
LOOK_EVERY_S = 0.25
"""Users in step let gauges swing by half within seconds: one look a second misses the mean by 2%."""
GAUGES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv": "vllm:kv_cache_usage_perc",
}
COUNTERS = {
    "preemptions": "vllm:num_preemptions_total",
    "output": "vllm:generation_tokens_total",
    "steps": "vllm:iteration_tokens_total_count",
    "tokens": "vllm:iteration_tokens_total_sum",
}
numbers = itertools.count(1)
"""Of all requests ever sent: no two prompts are alike."""


@dataclass(slots=True)
class Answer:
    sent_s: float
    first_s: float
    last_s: float
    tokens: int


@dataclass(slots=True)
class Load:
    host: str
    case: Case
    session: aiohttp.ClientSession
    answers: list[Answer] = field(default_factory=list)

    async def ask(self, prompt_tokens: int, output_tokens: int) -> None:
        rng = random.Random(next(numbers))
        shared = random.Random(0).choices(TOKEN_IDS, k=self.case.shared_tokens)
        prompt = shared + rng.choices(TOKEN_IDS, k=prompt_tokens - len(shared))
        body = {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        payload = json.dumps(body).encode()
        chunks, first_s = 0, 0.0
        sent_s = last_s = time.perf_counter()
        async with self.session.post(
            f"{self.host}/v1/completions", data=payload, headers={"Content-Type": "application/json"}
        ) as reply:
            assert reply.status == 200, await reply.text()
            async for piece in reply.content.iter_any():
                count = piece.count(b"data: {")
                if count:
                    last_s = time.perf_counter()
                    first_s = first_s or last_s
                    chunks += count
        assert chunks, "a stream without a token"
        self.answers.append(Answer(sent_s, first_s, last_s, output_tokens))

    async def user(self, number: int, until_s: float) -> None:
        rng = random.Random(f"user {number}")
        await asyncio.sleep(RAMP_S * number / self.case.users)
        while time.perf_counter() < until_s:
            lengths = self.case.workload
            await self.ask(lengths.input_tokens.at(rng.random()), lengths.output_tokens.at(rng.random()))

    async def arrive(self, start_s: float) -> None:
        async with asyncio.TaskGroup() as group:
            for arrival in arrivals(self.case):
                await asyncio.sleep(max(0.0, start_s + arrival.at_s - time.perf_counter()))
                group.create_task(self.ask(arrival.prompt_tokens, arrival.output_tokens))

    async def page(self) -> dict[str, float]:
        wanted = {**GAUGES, **COUNTERS}
        async with self.session.get(f"{self.host}/metrics") as reply:
            found = dict(_pairs(await reply.text()))
        return {name: found.get(metric, 0.0) for name, metric in wanted.items()}


def arrivals(case: Case) -> Iterator[Arrival]:
    """The same for the real server and the twin."""
    return poisson(case.rate_per_s, case.workload, until_s=SETTLE_S + MEASURE_S, seed=7)


def _pairs(page: str) -> Iterator[tuple[str, float]]:
    for line in page.splitlines():
        if line.startswith("vllm:"):
            name, _, value = line.rpartition(" ")
            yield name.partition("{")[0], float(value)


async def observe(host: str, case: Case) -> Figures:
    """About a minute. Whoever is still under way at the end is cut off."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False) as session:
        load = Load(host, case, session)
        start_s = time.perf_counter()
        end_s = start_s + SETTLE_S + MEASURE_S
        tasks = (
            [asyncio.create_task(load.user(number, end_s)) for number in range(case.users)]
            if case.users
            else [asyncio.create_task(load.arrive(start_s))]
        )
        await asyncio.sleep(SETTLE_S)
        before, since_s, looks = await load.page(), time.perf_counter(), []
        while time.perf_counter() < end_s:
            await asyncio.sleep(LOOK_EVERY_S)
            looks.append(await load.page())
            assert not any(task.done() and task.exception() for task in tasks), "a request failed"
        after, until_s = looks[-1], time.perf_counter()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    grown = {name: after[name] - before[name] for name in COUNTERS}
    answers = [answer for answer in load.answers if since_s <= answer.last_s < until_s]
    ttfts_s = [answer.first_s - answer.sent_s for answer in answers]
    return Figures(
        **{name: sum(look[key] for look in looks) / len(looks) for name, key in MEANS.items()},
        preemptions_per_request=grown["preemptions"] / max(1, len(answers)),
        output_tokens_per_s=grown["output"] / (until_s - since_s),
        ttft_p50_s=quantile(ttfts_s, 0.5),
        ttft_p95_s=quantile(ttfts_s, 0.95),
        tpot_p50_s=quantile([(a.last_s - a.first_s) / (a.tokens - 1) for a in answers if a.tokens > 1], 0.5),
        step_tokens=grown["tokens"] / max(1.0, grown["steps"]),
        requests=len(answers),
    )


MEANS = {"running": "running", "waiting": "waiting", "kv_usage": "kv"}
