"""The text of an answer, for the conversation that repeats it: from its bytes, once it has ended."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from loadtest.workers.answer import KEPT_BYTES_MAX, answer_text
from loadtest.workers.attempt import Attempt


def chunk(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


def test_what_was_said_is_joined_and_what_was_thought_is_not() -> None:
    stream = (
        chunk(role="assistant", content="") + chunk(reasoning_content="hm") + chunk(content="Gr\u00fcezi")
    )
    stream += chunk(content=" wohl") + chunk(tool_calls=[{"index": 0}]) + chunk(content=None)
    stream += b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\ndata: [DONE]\n\n'
    assert answer_text(stream) == "Gr\u00fcezi wohl"


def test_text_completions_are_read_too() -> None:
    assert answer_text(b'data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[{"text":"b"}]}\n\n') == "ab"


@given(st.binary(max_size=200))
def test_no_stream_of_bytes_is_an_error(stream: bytes) -> None:
    assert isinstance(answer_text(stream), str)
    assert isinstance(answer_text(b"data: " + stream + b"\n\n"), str)


@given(texts=st.lists(st.text(max_size=8), min_size=1, max_size=20), cut=st.integers(1, 40))
def test_an_attempt_that_keeps_text_has_all_of_it_however_the_reads_were_cut(
    texts: list[str], cut: int
) -> None:
    body = b"".join(chunk(content=text) for text in texts) + b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)
    answer, attempt = head + body, Attempt(reused=False, keeps_text=True)
    for number, start in enumerate(range(0, len(answer), cut)):
        attempt.take(answer[start : start + cut], number)
    assert attempt.clean_end
    assert attempt.reply.text() == "".join(texts)


def test_an_attempt_keeps_nothing_unless_it_is_asked_to() -> None:
    body = chunk(content="a")
    attempt = Attempt(reused=False)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)
    attempt.take(head + body, 1)
    assert attempt.reply.text() == ""


def test_so_much_is_kept_and_no_more() -> None:
    attempt = Attempt(reused=False, keeps_text=True)
    attempt.take(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", 0)
    one = chunk(content="a" * 100_000)
    for number in range(100):
        attempt.take(one, number)
    assert attempt.reply.kept is not None
    assert len(attempt.reply.kept) <= KEPT_BYTES_MAX + len(one)


def test_tokens_that_are_only_dated_elsewhere_are_kept_too() -> None:
    """One read, one HTTP chunk, one token, of a form seen before: the way of almost every token."""
    events = [chunk(content=f"w{number} ") for number in range(10, 20)]
    attempt = Attempt(reused=False, keeps_text=True)
    attempt.take(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n", 0
    )
    for at_ns, event in enumerate(events):
        attempt.take(b"%x\r\n%s\r\n" % (len(event), event), at_ns)
    assert attempt.reply.text() == "".join(f"w{number} " for number in range(10, 20))
    assert attempt.reply.chunks == len(events)
