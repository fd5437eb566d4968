"""A server that streams what nobody can read is told of in one sentence; one that streams well is timed."""

from __future__ import annotations

import asyncio

import pytest
from fault_server import LAST_CHUNK, STREAM_HEAD, chunk, events, serving

from loadtest.calibrator.probe import ProbeError, Prober, WaveSeen
from loadtest.calibrator.waves import Wave

TOKEN = '{"choices":[{"index":0,"text":"a"}]}'
WAVE = Wave(streams=1, input_tokens=8, output_tokens=2)


def probed(*pieces: bytes) -> WaveSeen:
    with serving((STREAM_HEAD, *pieces, LAST_CHUNK)) as (_, origin):
        prober = Prober(origin=origin, key=None, path="/v1/completions")
        (seen,) = asyncio.run(prober.run([(WAVE, [{"prompt": "x"}])], lambda number: None))
        return seen


def test_each_event_with_a_choice_is_a_chunk_and_the_usage_counts_the_tokens() -> None:
    usage = '{"choices":[],"usage":{"completion_tokens":5}}'
    (stream,) = probed(events(TOKEN, TOKEN, usage, "[DONE]")).streams
    assert (len(stream.chunks_s), stream.output_tokens) == (2, 5)


@pytest.mark.parametrize(
    "data",
    ['{"choices":[{"text":', "{]", '{"a":' * 100_000, '{"a":"\\ud800'],
    ids=["cut", "broken", "deep", "half a word"],
)
def test_an_event_that_is_no_json_ends_in_one_sentence(data: str) -> None:
    with pytest.raises(ProbeError, match="streamed an event that is") as found:
        probed(events(TOKEN, data))
    assert "\n" not in str(found.value)


def test_a_line_that_does_not_end_is_one_sentence_too() -> None:
    with pytest.raises(ProbeError, match="an event that is too long"):
        probed(*[chunk(b"data: {" + b"x" * 100_000)] * 8)


@pytest.mark.parametrize(
    "odd",
    [
        '{"choices":{}}',
        '{"choices":[7]}',
        '{"choices":null,"usage":[]}',
        '{"usage":{"completion_tokens":"9"}}',
        '{"usage":{"completion_tokens":-1}}',
        '{"usage":{"completion_tokens":true}}',
    ],
)
def test_an_event_of_another_shape_is_no_token_and_no_count(odd: str) -> None:
    (stream,) = probed(events(odd, TOKEN, TOKEN)).streams
    assert (len(stream.chunks_s), stream.output_tokens) == (2, 2)
