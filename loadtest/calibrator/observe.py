"""Waves -> what one step cost, and what the API front end did: the numbers the fit goes by. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from estimator.twin.fit import CpuSeen, FrontEndSeen, StepSeen
from loadtest.calibrator.probe import WaveSeen


def steps_seen(waves: Sequence[WaveSeen]) -> list[StepSeen]:
    """One for each kind of wave, the median of its repeats by seconds."""
    kinds = {seen.wave: [other for other in waves if other.wave == seen.wave] for seen in waves}
    found = []
    for wave, repeats in kinds.items():
        steps = [step for seen in repeats if (step := _prefill(seen) if wave.is_prefill else _decode(seen))]
        if steps:
            steps.sort(key=lambda step: step.seconds)
            found.append(steps[len(steps) // 2])
    return found


def _prefill(seen: WaveSeen) -> StepSeen:
    """The engine's own clock where it shows one, else the client's with the front end in it."""
    tokens = seen.wave.input_tokens
    (stream,) = seen.streams
    return StepSeen(
        prefill_tokens=tokens,
        decoding=0,
        context_tokens=tokens,
        attended_pairs=tokens * tokens // 2,
        seconds=seen.server_s.get("prefill_s", stream.chunks_s[0] - stream.sent_s),
    )


def _decode(seen: WaveSeen) -> StepSeen | None:
    """The time between the last stream's first token and the first stream's last, in which all decode."""
    start_s = max(stream.chunks_s[0] for stream in seen.streams)
    end_s = min(stream.chunks_s[-1] for stream in seen.streams)
    chunks = [sum(start_s < at_s <= end_s for at_s in stream.chunks_s) for stream in seen.streams]
    tokens_each = [stream.output_tokens / len(stream.chunks_s) for stream in seen.streams]
    steps = fmean(count * tokens for count, tokens in zip(chunks, tokens_each, strict=True))
    if steps < 5:
        return None
    before = [sum(at_s <= start_s for at_s in stream.chunks_s) for stream in seen.streams]
    held = [
        seen.wave.input_tokens + (first + count / 2) * tokens
        for first, count, tokens in zip(before, chunks, tokens_each, strict=True)
    ]
    return StepSeen(
        prefill_tokens=0,
        decoding=seen.wave.streams,
        context_tokens=round(sum(held)),
        attended_pairs=0,
        seconds=(end_s - start_s) / steps,
    )


def front_end_seen(waves: Sequence[WaveSeen]) -> FrontEndSeen:
    """What a lone request spends outside the engine, and the processor time of each wave."""
    alone = [
        seen.streams[0].chunks_s[0] - seen.streams[0].sent_s - sum(seen.server_s.values())
        for seen in waves
        if seen.wave.is_prefill and {"prefill_s", "queue_s"} <= seen.server_s.keys()
    ]
    return FrontEndSeen(
        request_s=max(0.0, median(alone)) if alone else 0.0,
        cpu=tuple(
            CpuSeen(
                requests=len(seen.streams),
                steps=max(stream.output_tokens for stream in seen.streams),
                chunks=sum(len(stream.chunks_s) for stream in seen.streams),
                cpu_s=seen.cpu_s,
            )
            for seen in waves
            if seen.cpu_s is not None
        ),
    )
