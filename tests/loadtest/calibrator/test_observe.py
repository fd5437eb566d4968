"""From chunk times to steps: the time in which all streams decode counts, and the engine's clock first."""

from __future__ import annotations

import pytest

from loadtest.calibrator.observe import front_end_seen, steps_seen
from loadtest.calibrator.probe import Stream, WaveSeen
from loadtest.calibrator.waves import Wave

STEP_S = 0.02


def stream(first_s: float, tokens: int, *, each: int = 1, sent_s: float = 0.0) -> Stream:
    chunks = -(-tokens // each)
    return Stream(
        sent_s=sent_s,
        chunks_s=tuple(first_s + STEP_S * each * n for n in range(chunks)),
        output_tokens=tokens,
    )


def decode(*streams: Stream, input_tokens: int = 64) -> WaveSeen:
    wave = Wave(streams=len(streams), input_tokens=input_tokens, output_tokens=64)
    return WaveSeen(wave=wave, streams=streams)


def prefill(ttft_s: float, **server_s: float) -> WaveSeen:
    wave = Wave(streams=1, input_tokens=256, output_tokens=1)
    return WaveSeen(wave=wave, streams=(stream(ttft_s, 1),), server_s=server_s)


def test_decoding_steps_are_as_long_as_the_gap_between_tokens() -> None:
    (step,) = steps_seen([decode(stream(0.1, 64), stream(0.1, 64))])
    assert step.seconds == pytest.approx(STEP_S)
    assert (step.decoding, step.prefill_tokens) == (2, 0)


def test_the_time_before_the_last_stream_began_does_not_count() -> None:
    """The early stream waited 0.4 s in the middle, while the late one's prompt was read."""
    late = stream(0.5, 64)
    early = Stream(sent_s=0.0, chunks_s=(0.1, *late.chunks_s[:63]), output_tokens=64)
    (step,) = steps_seen([decode(early, late)])
    assert step.seconds == pytest.approx(STEP_S)


def test_several_tokens_a_chunk_are_as_many_steps() -> None:
    (step,) = steps_seen([decode(stream(0.1, 64, each=4), stream(0.1, 64, each=4))])
    assert step.seconds == pytest.approx(STEP_S, rel=0.01)


def test_the_context_is_what_the_streams_hold_half_way() -> None:
    (step,) = steps_seen([decode(stream(0.1, 65), stream(0.1, 65), input_tokens=1000)])
    assert step.context_tokens == pytest.approx(2 * (1000 + 1 + 32), abs=2)


def test_of_repeats_the_middle_one_counts() -> None:
    slow = [decode(stream(0.1, 64)) for _ in range(2)]
    hiccup = decode(Stream(sent_s=0.0, chunks_s=tuple(0.1 * n for n in range(64)), output_tokens=64))
    (step,) = steps_seen([slow[0], hiccup, slow[1]])
    assert step.seconds == pytest.approx(STEP_S)


def test_a_prompt_takes_what_the_engine_says_it_took() -> None:
    (step,) = steps_seen([prefill(0.050, prefill_s=0.040, queue_s=0.001)])
    assert step.seconds == 0.040
    assert (step.prefill_tokens, step.attended_pairs) == (256, 256 * 128)


def test_without_the_engines_clock_the_clients_is_taken() -> None:
    (step,) = steps_seen([prefill(0.050)])
    assert step.seconds == 0.050


def test_a_lone_request_spends_the_rest_of_its_wait_in_the_front_end() -> None:
    seen = front_end_seen([prefill(0.050, prefill_s=0.040, queue_s=0.001)] * 3)
    assert seen.request_s == pytest.approx(0.009)


def test_a_front_end_that_nobody_clocked_has_no_delay() -> None:
    assert front_end_seen([prefill(0.050)]).request_s == 0.0


def test_streams_too_short_to_see_a_step_are_left_out() -> None:
    assert steps_seen([decode(stream(0.1, 3), stream(0.1, 3))]) == []
