"""Bytes of a server, however they were cut, to one and the same record's facts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.records import Outcome
from loadtest.workers.http1 import BadResponse, ResponseReader
from loadtest.workers.reply import Reply
from loadtest.workers.sse import EventReader, ServerEvent, read_event

STREAMS = Path(__file__).parents[2] / "fixtures/streams"
RECORDED = [STREAMS / f"vllm-0.32-{name}.http" for name in ("chat", "completions", "chat-usage-every-chunk")]
Facts = tuple[object, ...]


def facts_of(pieces: list[bytes], planned_output_tokens: int = 8) -> Facts:
    """What a record would say of a response that arrived in `pieces`; the n-th piece at n nanoseconds."""
    reader, reply = ResponseReader(), Reply(is_stream=True)
    for at_ns, piece in enumerate(pieces):
        body = reader.feed(piece)
        if body:
            reply.feed(body, at_ns)
    outcome = reply.outcome(
        status=reader.status or 0,
        clean_end=reader.complete or reader.end_of_stream(),
        planned_output_tokens=planned_output_tokens,
    )
    return outcome, reply.chunks, reply.input_tokens, reply.output_tokens, reply.finish_reason, reply.error


def pieces_of(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_stream_means_the_same_cut_at_every_byte(path: Path) -> None:
    content = path.read_bytes()
    planned = 4 if "every-chunk" in path.name else 8
    whole = facts_of([content], planned)
    assert whole[:2] == ("ok", planned)
    for cut in range(1, len(content)):
        assert facts_of([content[:cut], content[cut:]], planned) == whole, cut


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_recorded_stream_means_the_same_byte_by_byte(path: Path) -> None:
    content = path.read_bytes()
    assert facts_of([content[i : i + 1] for i in range(len(content))]) == facts_of([content])


def test_the_recorded_chat_has_eight_tokens_and_its_role_chunk_is_none_of_them() -> None:
    content = (STREAMS / "vllm-0.32-chat.http").read_bytes()
    assert facts_of([content]) == ("ok", 8, 16, 8, "length", None)


def test_output_that_the_server_clipped_is_short() -> None:
    content = (STREAMS / "vllm-0.32-clipped.http").read_bytes()
    assert facts_of([content], planned_output_tokens=80)[0] == "short_eos"


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_a_stream_that_ends_early_anywhere_is_never_ok(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        assert facts_of([content[:length]])[0] != "ok", length


def chat_chunk(**delta: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode()


FINISH = b'{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}'
USAGE = b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}'


def stream(*data: bytes, end: bytes = b"\n", space: bytes = b" ") -> bytes:
    return b"".join(b"data:" + space + payload + end + end for payload in data)


def said(body: bytes, planned_output_tokens: int = 2, *, clean_end: bool = True) -> tuple[Outcome, int]:
    reply = Reply(is_stream=True)
    reply.feed(body, 1)
    outcome = reply.outcome(status=200, clean_end=clean_end, planned_output_tokens=planned_output_tokens)
    return outcome, reply.chunks


A = chat_chunk(content="a")
ERROR = b'{"error":{"message":"engine died","code":500}}'


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (stream(A, A, FINISH, USAGE, b"[DONE]"), ("ok", 2)),
        (stream(A, A, FINISH, USAGE, b"[DONE]", end=b"\r\n"), ("ok", 2)),
        (stream(A, A, FINISH, USAGE, b"[DONE]", end=b"\r"), ("ok", 2)),
        (stream(A, A, FINISH, USAGE, b"[DONE]", space=b""), ("ok", 2)),
        (b"\xef\xbb\xbf" + stream(A, A, FINISH, USAGE, b"[DONE]"), ("ok", 2)),
        (b": ping\n\n" + stream(A, A, FINISH, USAGE, b"[DONE]"), ("ok", 2)),
        (stream(A, ERROR, b"[DONE]"), ("stream_error", 1)),
        (stream(A, A, FINISH, ERROR, b"[DONE]"), ("stream_error", 2)),
        (b"event: error\n" + stream(b'{"message":"x"}') + stream(b"[DONE]"), ("stream_error", 0)),
        (stream(A, A), ("truncated", 2)),
        (stream(A, A, FINISH), ("truncated", 2)),
        (stream(A, A, b"[DONE]"), ("truncated", 2)),
        (stream(A, b"<html>", FINISH, b"[DONE]"), ("bad_payload", 1)),
        (stream(A, b"[1]", FINISH, b"[DONE]"), ("bad_payload", 1)),
        (stream(A, FINISH.replace(b"length", b"abort"), b"[DONE]"), ("aborted", 1)),
        (stream(A, FINISH, USAGE.replace(b"2}", b"1}"), b"[DONE]"), ("short_eos", 1)),
        (stream(chat_chunk(role="assistant", content=""), A, FINISH, b"[DONE]"), ("ok", 1)),
        (stream(chat_chunk(role="assistant", content="a"), FINISH, b"[DONE]"), ("ok", 1)),
        (stream(chat_chunk(content=""), FINISH, b"[DONE]"), ("ok", 1)),
        (stream(chat_chunk(reasoning="r"), FINISH, b"[DONE]"), ("ok", 1)),
        (stream(chat_chunk(reasoning_content="r"), FINISH, b"[DONE]"), ("ok", 1)),
        (stream(chat_chunk(tool_calls=[{"index": 0}]), FINISH, b"[DONE]"), ("ok", 1)),
        (stream(A, FINISH, b'{"choices":[],"usage":{"completion_tokens":"2"}}', b"[DONE]"), ("ok", 1)),
    ],
)
def test_a_stream_ends_in_exactly_one_outcome(body: bytes, expected: tuple[Outcome, int]) -> None:
    assert said(body) == expected


def test_a_stream_whose_connection_broke_is_truncated_whatever_it_said() -> None:
    assert said(stream(A, A, FINISH, USAGE, b"[DONE]"), clean_end=False)[0] == "truncated"


def test_data_over_several_lines_is_one_event() -> None:
    assert EventReader().feed(b"data: a\ndata: b\n\n") == [ServerEvent("", b"a\nb")]


def test_a_carriage_return_ends_a_line_of_an_event_that_comes_whole() -> None:
    assert EventReader().feed(b"data: a\rdata: b\n\n") == [ServerEvent("", b"a\nb")]


def test_line_separators_inside_a_text_do_not_end_a_line() -> None:
    text = "a\u0085b\u2028c\x0bd\x0ce"
    events = EventReader().feed(b"data: " + json.dumps({"t": text}, ensure_ascii=False).encode() + b"\n\n")
    assert json.loads(events[0].data) == {"t": text}


@given(
    payloads=st.lists(st.sampled_from([A, FINISH, USAGE, ERROR, b"[DONE]", b"{", b": x"]), max_size=8),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    data=st.data(),
)
@settings(max_examples=150)
def test_any_stream_cut_anywhere_gives_the_same_events(
    payloads: list[bytes], end: bytes, data: st.DataObject
) -> None:
    body = stream(*payloads, end=end)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=6))
    whole, cut = EventReader(), EventReader()
    expected = whole.feed(body)
    assert [event for piece in pieces_of(body, cuts) for event in cut.feed(piece)] == expected


LINES = (
    b"data: a\n",
    b"data:b\n",
    b"data: \n",
    b"data: c\rd\n",
    b"\n",
    b"\r\n",
    b"\r",
    b": x\n",
    b"event: e\n",
    b"data: ",
)
BOM = b"\xef\xbb\xbf"


@given(
    groups=st.lists(st.lists(st.sampled_from(LINES), min_size=1, max_size=3), max_size=5),
    bom=st.sampled_from([b"", BOM]),
    data=st.data(),
)
@settings(max_examples=500)
def test_any_lines_cut_anywhere_give_the_events_of_single_bytes(
    groups: list[list[bytes]], bom: bytes, data: st.DataObject
) -> None:
    reads = [bom, *(b"".join(lines) for lines in groups)]
    body = b"".join(reads)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=6))
    for pieces in reads, pieces_of(body, cuts):
        single, cut = EventReader(), EventReader()
        expected = [event for byte in body for event in single.feed(bytes([byte]))]
        assert [event for piece in pieces for event in cut.feed(piece)] == expected


@given(data=st.binary(max_size=300))
def test_garbage_never_raises_and_is_never_a_token(data: bytes) -> None:
    for event in EventReader().feed(b"data: " + data + b"\n\n"):
        read_event(event)


def response(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"HTTP/1.1 200 OK", *lines, b"", b"")) + body


@pytest.mark.parametrize(
    ("content", "body", "complete", "keep_alive"),
    [
        (response(b"Content-Length: 3", body=b"abc"), b"abc", True, True),
        (response(b"Content-Length: 0"), b"", True, True),
        (response(b"Content-Length: 3", b"Connection: close", body=b"abc"), b"abc", True, False),
        (response(b"Content-Length: 4", body=b"abc"), b"abc", False, True),
        (response(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"), b"abc", True, True),
        (
            response(b"transfer-encoding: Chunked", body=b"3;x=1\r\nabc\r\n0\r\nT: 1\r\n\r\n"),
            b"abc",
            True,
            True,
        ),
        (response(b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n"), b"abc", False, True),
        (response(body=b"abc"), b"abc", False, False),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"Content-Length: 1", body=b"a"), b"a", True, True),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", b"a", True, False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True, True),
    ],
)
def test_a_response_is_read_to_its_end_cut_at_every_byte(
    content: bytes, body: bytes, complete: bool, keep_alive: bool
) -> None:
    for cut in range(len(content) + 1):
        reader = ResponseReader()
        assert reader.feed(content[:cut]) + reader.feed(content[cut:]) == body
        assert (reader.complete, reader.keep_alive) == (complete, keep_alive)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    reader = ResponseReader()
    reader.feed(response(body=b"abc"))
    assert (reader.complete, reader.end_of_stream()) == (False, True)


@pytest.mark.parametrize(
    "content",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc\r\n",
        b"HTTP/2 200 OK\r\n",
        response(b"no colon"),
        response(b"Content-Length: -1"),
        response(b"Content-Length: 1_0"),
        response(b"Transfer-Encoding: chunked", body=b"zz\r\n"),
        response(b"Transfer-Encoding: chunked", body=b"-1\r\n"),
        response(b"Transfer-Encoding: chunked", body=b"2\r\nabc\r\n"),
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_what_is_no_http_is_refused(content: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseReader().feed(content)


THOUGHT = chat_chunk(reasoning="r")
CALL = chat_chunk(tool_calls=[{"index": 0}])
NOTHING_YET = chat_chunk(content="")


@pytest.mark.parametrize("scans", [True, False])
@pytest.mark.parametrize(
    ("answer", "began_ns"),
    [
        ([A, A, A], None),
        ([THOUGHT, THOUGHT, A, A], 2),
        ([NOTHING_YET, THOUGHT, NOTHING_YET, A, THOUGHT, A], 3),
        ([chat_chunk(reasoning_content="r", content=None), CALL], 1),
        ([chat_chunk(role="assistant", content="", reasoning="r"), A], 1),
        ([THOUGHT, chat_chunk(reasoning="r", content="a"), A], 1),
        ([A, THOUGHT, A], None),
        ([THOUGHT, THOUGHT], None),
        ([b'{"choices":[{"text":"a"}]}'] * 2, None),
    ],
)
def test_the_answer_proper_has_a_time_of_its_own_only_after_reasoning(
    answer: list[bytes], began_ns: int | None, scans: bool
) -> None:
    reply = Reply(is_stream=True, scans=scans)
    for at_ns, event in enumerate(answer):
        reply.feed(stream(event), at_ns)
    assert reply.first_output_ns == began_ns
    assert reply.first_token_ns == 0
