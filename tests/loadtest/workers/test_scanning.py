"""Recognising events by their bytes gives the record that decoding each gives, for any bytes cut anywhere."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.workers.attempt import ANSWER_BYTES_MAX, Attempt, Fault
from loadtest.workers.event_form import form_of
from loadtest.workers.http1 import ResponseReader, head_of_chunk
from loadtest.workers.native import IS_NATIVE
from loadtest.workers.reply import Reply
from loadtest.workers.sse import EventReader, ServerEvent, read_event

FIXTURES = Path(__file__).parents[2] / "fixtures"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
Facts = tuple[object, ...]


def facts(pieces: list[bytes], *, scans: bool) -> Facts:
    """Everything a record takes from an answer that arrived in `pieces`, each at a time of its own."""
    attempt = Attempt(reused=False, scans=scans)
    fault = None
    try:
        for number, piece in enumerate([*pieces, b""]):
            if attempt.take(piece, number * number):
                break
    except Fault as error:
        fault = error.outcome, str(error)
    reader, reply = attempt.reader, attempt.reply
    ended = fault, attempt.headers_ns, attempt.stopped_ns, attempt.clean_end, reader.status, reader.complete
    counts = reply.input_tokens, reply.output_tokens, reply.coalesced_reads, reader.has_extra_bytes
    counts = *counts, reply.first_output_ns, reply.first_chunk_tokens
    words = reply.finish_reason, reply.done, reply.error, reply.unreadable, reply.error_body()
    outcome = reply.outcome(status=200, clean_end=attempt.clean_end, planned_output_tokens=3)
    return *ended, *counts, *words, outcome, list(reply.token_ns), reply.sorted_gaps_ns()


def same_either_way(pieces: list[bytes]) -> None:
    assert facts(pieces, scans=True) == facts(pieces, scans=False)


def pieces_of(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(edges)]


def bodies_of(recorded: Any) -> Iterator[bytes]:
    """Every body of a recorded conversation, wherever it is kept."""
    if isinstance(recorded, dict):
        if isinstance(recorded.get("body"), str):
            yield recorded["body"].encode()
        for value in recorded.values():
            yield from bodies_of(value)
    elif isinstance(recorded, list):
        for value in recorded:
            yield from bodies_of(value)


STREAMS = {path.stem: path.read_bytes() for path in sorted((FIXTURES / "streams").glob("*.http"))}
CONVERSATIONS = sorted((FIXTURES / "conformance").glob("*.json"))


@pytest.mark.parametrize("name", STREAMS)
def test_a_recorded_stream_gives_one_record_cut_at_many_bytes(name: str) -> None:
    content, dice = STREAMS[name], random.Random(5)
    for _ in range(150):
        same_either_way(pieces_of(content, [dice.randrange(len(content)) for _ in range(dice.randrange(30))]))


@pytest.mark.parametrize("path", CONVERSATIONS, ids=lambda path: path.stem)
def test_a_recorded_conversation_gives_one_record_cut_anywhere(path: Path) -> None:
    dice = random.Random(6)
    bodies = list(bodies_of(json.loads(path.read_text(encoding="utf-8"))))
    assert bodies, "the fixture keeps its bodies elsewhere now"
    for body in bodies:
        for _ in range(5):
            cuts = [dice.randrange(len(body) + 1) for _ in range(dice.randrange(9))]
            same_either_way([HEAD, *(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces_of(body, cuts) if p)])


HEAD_LINES = (
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200 OK",
    b"HTTP/1.0 204 No Content",
    b"HTTP/1.1 100 Continue",
    b"Content-Type: text/event-stream",
    b"Transfer-Encoding: chunked",
    b"Content-Length: 7",
    b"Content-Length: x",
    b"Connection: close",
    b"no colon",
    b"",
)


@given(
    lines=st.lists(
        st.tuples(st.sampled_from(HEAD_LINES), st.sampled_from([b"\r\n", b"\r\n", b"\n"])), max_size=6
    ),
    data=st.data(),
)
@settings(max_examples=500)
def test_a_head_that_comes_whole_is_read_as_one_that_comes_in_bytes(
    lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    first = data.draw(st.sampled_from([b"", b"X"])) + b"HTTP/1.1 200 OK\r\n"
    head = first + b"".join(line + end for line, end in lines) + b"\r\n"
    content = head + b"7\r\ndata: a\r\n0\r\n\r\n"
    cuts = data.draw(st.lists(st.integers(0, 2) | st.integers(0, len(content)), max_size=3))
    same_either_way(pieces_of(content, cuts))


TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["", " word", '"', "\\", "\n", "a\r\n\r\nb", "é", "漢", "\U0001f600", "\ud800", "\x7f", "\x00"]
    ),
)
CHANNELS = st.sampled_from(["content", "reasoning", "reasoning_content", "text", "arguments"])


@st.composite
def events(draw: st.DrawFn) -> bytes:
    """The data of one event: mostly a token of one of the forms servers use, sometimes anything else."""
    kind = draw(st.sampled_from(["token"] * 6 + ["role", "finish", "usage", "error", "odd", "torn"]))
    text = draw(TEXTS)
    channel = draw(CHANNELS)
    delta: dict[str, object] = {channel: text}
    if channel == "arguments":
        delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}
    choice: dict[str, object] = {"index": 0, "delta": delta, "finish_reason": None}
    if channel == "text":
        choice = {"index": 0, "text": text, "finish_reason": None}
    body: dict[str, object] = {"id": "cmpl-1", "choices": [choice], "usage": None}
    if kind == "role":
        delta["role"] = "assistant"
    elif kind == "finish":
        choice["finish_reason"] = draw(st.sampled_from(["stop", "length", "abort"]))
    elif kind == "usage":
        body["usage"] = {"prompt_tokens": draw(st.integers(0, 9)), "completion_tokens": 3}
    elif kind == "error":
        body["error"] = {"message": text}
    elif kind == "odd":
        return draw(st.sampled_from([b"[DONE]", b"{", b"[1]", b"", b'{"object":"error"}', b'"content":"a"']))
    data = json.dumps(body, ensure_ascii=draw(st.booleans()), separators=draw(SEPARATORS)).encode(
        "utf-8", "surrogatepass"
    )
    if kind == "torn":
        at = draw(st.integers(0, len(data)))
        data = (
            data[:at]
            + draw(st.sampled_from([b'"', b"\\", b"\xff", b"\xc0\x80", b"\x01", b"", b"{"]))
            + data[at:]
        )
    return data


SEPARATORS = st.sampled_from([(",", ":"), (", ", ": ")])
FRAMES = st.sampled_from(
    [b"data: %s\n\n"] * 8
    + [
        b"data:%s\n\n",
        b"data: %s\r\n\r\n",
        b"data: %s\r\r",
        b": ping\n\ndata: %s\n\n",
        b"data: %s\n: ping\n\n",
    ]
    + [b"event: error\ndata: %s\n\n", b"id: 1\ndata: %s\n\n", b"data: %s\ndata: \n\n", b"data: %s\n\n\n"]
    + [b"\xef\xbb\xbfdata: %s\n\n", b"data: %s\n", b"%s\n\n"]
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """A whole answer: events in frames, frames in chunks that may be cut anywhere else."""
    said = draw(st.lists(events(), min_size=1, max_size=5))
    order = draw(st.lists(st.sampled_from(said), max_size=12))
    frames = [draw(FRAMES) % data for data in order]
    body = b"".join(frames)
    if draw(st.booleans()):
        parts = frames
    else:
        parts = pieces_of(body, draw(st.lists(st.integers(0, len(body)), max_size=6)))
    size = draw(st.sampled_from([b"%x\r\n", b"%X\r\n", b"%x;a=b\r\n", b"%x\n", b"0%x\r\n"]))
    chunks = b"".join(size % len(part) + part + b"\r\n" for part in parts if part)
    return (
        HEAD
        + chunks
        + draw(st.sampled_from([b"0\r\n\r\n", b"0\r\nT: 1\r\n\r\n", b"0\r\n\r\nmore", b"", b"zz\r\n"]))
    )


@given(content=answers(), data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_answer_cut_anywhere_gives_one_record(content: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=8))
    same_either_way(pieces_of(content, cuts))
    same_either_way([HEAD, *content.removeprefix(HEAD).splitlines(keepends=True)])


@given(
    data=events(),
    texts=st.lists(st.binary(max_size=8) | st.sampled_from([b"b", b" a word"]), max_size=20),
    at_once=st.integers(1, 4),
)
@settings(max_examples=300, deadline=None)
def test_whatever_stands_in_the_hole_of_a_form_is_recognised_only_when_it_is_a_token(
    data: bytes, texts: list[bytes], at_once: int
) -> None:
    event = ServerEvent("", data)
    form = form_of(event, read_event(event))
    if form is None:
        return
    stream = [form.before + text + form.after for text in (b"a", *texts)]
    chunks = [chunk(one) for one in stream]
    reads = [b"".join(chunks[first : first + at_once]) for first in range(1, len(chunks), at_once)]
    same_either_way([HEAD, chunks[0], *reads])


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def token(text: str) -> bytes:
    data = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}, ensure_ascii=False)
    return f"data: {data}\n\n".encode()


@pytest.mark.parametrize("text", [" word", "漢字", "é", '\\"', "line\n", "\U0001f600"])
def test_the_second_token_of_a_stream_is_not_decoded(text: str) -> None:
    attempt = Attempt(reused=False)
    attempt.take(HEAD + chunk(token("first")), 1)
    assert attempt.steady is not None
    assert [attempt.steady.tokens_of_read(chunk(token(text)) * count) for count in (1, 2, 5)] == [1, 2, 5]
    assert attempt.steady.tokens(token(text) * 3, 0) == (3, 3 * len(token(text)))


class Watched(Attempt):
    """Keeps the times of the reads that were looked at closely."""

    def __init__(self) -> None:
        super().__init__(reused=False)
        self.closely: list[int] = []

    def _take_other(self, data: bytes, at_ns: int) -> bool:
        self.closely.append(at_ns)
        return super()._take_other(data, at_ns)


def test_a_plain_token_of_a_length_seen_before_is_only_dated() -> None:
    attempt = Watched()
    for at_ns, text in enumerate(["first", " a", " b", "\u00e9", " word", " c", " four"]):
        attempt.take((b"" if at_ns else HEAD) + chunk(token(text)), at_ns)
    closely = [0] if IS_NATIVE else [0, 1, 3, 4]
    assert attempt.closely == closely, "the first; in Python also that of each length, and what is not plain"
    assert list(attempt.reply.token_ns) == list(range(7))


@pytest.mark.parametrize(
    "odd",
    [
        chunk(token("")),
        chunk(token("b\\")),
        chunk(token("bc").replace(b"bc", b'b"')),
        chunk(token("bc").replace(b"bc", b"b\x01")),
        chunk(token("bc").replace(b"bc", b"\xc3b")),
        chunk(token("bc").replace(b"index", b"yndex")),
        chunk(token("bc").replace(b"}}]}", b"}}],")),
        b"3a\r\n" + chunk(token("bc"))[4:],
        chunk(b"x" * (len(token("bc")))),
        b"x" * len(chunk(token(""))),
        b"0\r\n\r\n",
        b"",
    ],
)
def test_a_read_as_long_as_a_token_that_is_none_is_looked_at_closely(odd: bytes) -> None:
    known = [chunk(token(text)) for text in ("a", "bc", "de", "f", "", "gh", "b\\", "ij")]
    same_either_way([HEAD, *known, odd, *known, odd, b"0\r\n\r\n"])


def test_an_answer_of_too_many_bytes_is_refused_also_where_its_tokens_are_only_dated() -> None:
    attempt = Attempt(reused=False)
    read = chunk(token("a"))
    for data in (HEAD, read, read):
        attempt.take(data, 1)
    attempt.read_bytes = ANSWER_BYTES_MAX - len(read)
    assert attempt.take(read, 2) is False
    with pytest.raises(Fault, match="more than"):
        attempt.take(read, 3)
    assert list(attempt.reply.token_ns) == [1, 1, 2]


def test_a_read_that_ends_inside_an_event_is_followed_by_a_decoded_one() -> None:
    attempt = Attempt(reused=False)
    whole = chunk(token("a"))
    attempt.take(HEAD + whole + whole[:9], 1)
    assert attempt.steady is None
    attempt.take(whole[9:] + whole[:-2], 2)  # this chunk lacks its end
    assert attempt.steady is None
    attempt.take(whole[-2:], 3)
    assert attempt.steady is not None
    assert list(attempt.reply.token_ns) == [1, 2, 2]


@pytest.mark.parametrize(
    "middle",
    [
        b"40\r\n" + token("b") + b"\r\n",
        b"%x\r\n%s\r\n" % (len(token("b")) + 1, token("b")),
        chunk(token("b").replace(b"index", b"yndex")),
        chunk(token("b") * 2),
        chunk(token("b").replace(b'"b"', b'"b""')),
        chunk(b": ping\n\n"),
        chunk(token("b"))[:-2],
        b"",
    ],
)
def test_one_odd_chunk_among_several_of_a_read_is_seen(middle: bytes) -> None:
    good = chunk(token("a"))
    same_either_way([HEAD, good, good + middle + good, good])
    same_either_way([HEAD, good, middle + good, good])


@pytest.mark.parametrize(
    "before", [b"event: error\n", b": a comment without an end", b"data: ", b"data: {}\n", b"x"]
)
def test_a_token_after_the_beginning_of_another_event_is_not_taken_for_one(before: bytes) -> None:
    same_either_way([HEAD + chunk(token("a")), chunk(before), chunk(token("b")), chunk(token("c"))])


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"text":"a","x\\"content":"b"}]}',
        b'{"choices":[{"text":"a","note":"\\"content\\": \\"b"}]}',
        b'{"choices":[{"text":"a","text":"b"}]}',
        b'{"choices":[{"delta":{"role":"assistant","content":"a"}}]}',
        b'{"choices":[{"delta":{"content":"","reasoning":"a"}}]}',
        b'{"choices":\n[{"text":"a"}]}',
        b'{"text":"b","choices":[{"text":"a"}]}',
    ],
)
def test_a_form_learned_from_an_odd_event_still_tells_the_truth(data: bytes) -> None:
    texts = [
        b"",
        b"b",
        b'"',
        b"\\",
        b'\\"',
        b'","finish_reason":"stop',
        b'"},"error":"x',
        b"\xc3",
        b"\xed\xa0\x80",
        b"\n",
    ]
    lines = b"data: " + data.replace(b"\n", b"\ndata: ") + b"\n\n"
    holes = [data.replace(b'"a"', b'"' + text + b'"').replace(b'"b"', b'"' + text + b'"') for text in texts]
    same_either_way([HEAD + chunk(lines), *(chunk(b"data: " + one + b"\n\n") for one in holes)])


def test_the_tokens_of_a_server_that_repeats_the_role_are_not_decoded_either() -> None:
    event = ServerEvent("", b'{"choices":[{"delta":{"role":"assistant","content":"a"}}]}')
    assert form_of(event, read_event(event)) is not None


def test_a_stream_that_never_repeats_itself_is_not_learned_for_ever() -> None:
    reply = Reply(is_stream=True)
    for number in range(100):
        reply.feed(token("a").replace(b'"index": 0', b'"index": %d' % number), number)
    assert (reply.chunks, reply._lessons_left) == (100, 0)


def test_an_event_reader_knows_when_it_holds_nothing_of_a_next_event() -> None:
    reader = EventReader()
    seen = []
    for piece in (
        b"data: a\n\n",
        b"d",
        b"ata: a",
        b"\n",
        b"\r\n",
        b": ping\n",
        b"\n",
        b"data: a\r\n\r",
        b"\n",
    ):
        reader.feed(piece)
        seen.append(reader.is_between_events)
    assert seen == [True, False, False, False, True, False, True, False, True]


@pytest.mark.parametrize("size", [1, 9, 15, 16, 255, 256, 4095, 4096, 65535])
def test_a_read_of_whole_chunks_is_their_bodies_however_their_size_is_written(size: int) -> None:
    reader, body = ResponseReader(), b"x" * size
    reader.feed(HEAD)
    assert head_of_chunk(len(chunk(body))) == b"%x\r\n" % size
    assert reader.feed(chunk(body)) == body
    assert reader.feed(b"%X\r\n%s\r\n" % (size, body) * 3) == body * 3


@pytest.mark.parametrize("size", [0, 1, 5, 21])
def test_no_chunk_takes_so_few_bytes_or_the_number_an_extra_digit_skips(size: int) -> None:
    assert head_of_chunk(size) == {0: b"", 1: b"", 5: b"", 21: b""}[size]
