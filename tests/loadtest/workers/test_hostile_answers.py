"""Answers no honest server gives: they end in an outcome, take little memory and store nothing that bites."""

from __future__ import annotations

import json

import pytest

from loadtest.origin import ApiKey
from loadtest.records import ERROR_BYTES_MAX
from loadtest.workers.attempt import ANSWER_BYTES_MAX, Attempt, Fault
from loadtest.workers.http1 import BadResponse, ResponseReader
from loadtest.workers.reply import FINISH_REASON_CHARS, Reply, plain_text, told
from loadtest.workers.sse import EventReader, EventTooLarge, ServerEvent, read_event

TOKEN = b'data: {"choices":[{"text":"a"}]}\n\n'
KEY = "sk-CANARY-5b1f0c2e9d7a4f36"


@pytest.mark.parametrize(
    "line", [b"data: x", b"data:\n", b": ping\n"], ids=["one line", "empty data", "comments"]
)
def test_an_event_without_an_end_is_refused_before_it_fills_the_memory(line: bytes) -> None:
    reader = EventReader(event_bytes_max=1000)
    with pytest.raises(EventTooLarge):
        feed_all(reader, [line] * 1000)


def test_events_that_end_may_go_on_for_longer_than_one_event_may_be() -> None:
    feed_all(EventReader(event_bytes_max=1000), [b": " + b"x" * 900 + b"\n\n"] * 10)


def feed_all(reader: EventReader, pieces: list[bytes]) -> None:
    for piece in pieces:
        reader.feed(piece)


@pytest.mark.parametrize("kind", [b"text/event-stream", b"text/html"])
def test_an_answer_longer_than_any_we_ask_for_is_refused(kind: bytes) -> None:
    attempt = Attempt(reused=False)
    attempt.take(b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\n\r\n" % kind, 1)
    for _ in range(3):
        attempt.take(b": " + bytes(ANSWER_BYTES_MAX // 4) + b"\n\n", 2)
    with pytest.raises(Fault, match="more than") as refused:
        attempt.take(bytes(ANSWER_BYTES_MAX // 4), 2)
    assert refused.value.outcome == "bad_payload"


def test_nothing_read_between_the_halves_of_a_line_end_changes_nothing() -> None:
    reader = EventReader()
    events = [
        event for piece in (b"data: a\r", b"", b"\ndata: b\r", b"\n\r\n") for event in reader.feed(piece)
    ]
    assert events == [ServerEvent("", b"a\nb")]


def test_an_event_named_error_is_one_also_when_it_is_not_json() -> None:
    said = read_event(ServerEvent("error", b"engine died"))
    assert (said.error, said.unreadable) == ("engine died", False)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "no more memory"}},
        {"error": "no more memory"},
        {"object": "error", "message": "no more memory", "code": 500},  # vLLM before 0.10, LMDeploy
    ],
)
def test_every_shape_of_error_gives_its_message(body: dict[str, object]) -> None:
    assert read_event(ServerEvent("", json.dumps(body).encode())).error == "no more memory"


@pytest.mark.parametrize(
    "delta", [{"tool_calls": []}, {"content": None}, {"content": 5}, {"role": "assistant"}, {}]
)
def test_a_delta_without_text_or_tool_call_is_no_token(delta: dict[str, object]) -> None:
    assert not read_event(ServerEvent("", json.dumps({"choices": [{"delta": delta}]}).encode())).has_token


@pytest.mark.parametrize("count", [True, -1, 2**31, 10**30, 1.0, "8", None])
def test_a_usage_that_is_no_count_was_not_seen(count: object) -> None:
    data = json.dumps({"usage": {"completion_tokens": count, "prompt_tokens": 3}}).encode()
    said = read_event(ServerEvent("", data))
    assert (said.input_tokens, said.output_tokens) == (3, None)


def test_a_sign_of_life_without_data_is_no_fault() -> None:
    reply = Reply(is_stream=True)
    reply.feed(b"data:\n\n" + TOKEN, 1)
    assert (reply.chunks, reply.unreadable) == (1, None)


def test_a_finish_reason_of_the_server_is_kept_short_and_plain() -> None:
    reply = Reply(is_stream=True)
    reason = json.dumps("\x1b[2J\ud800" + "x" * 1000)
    reply.feed(b'data: {"choices":[{"text":"a","finish_reason":%s}]}\n\n' % reason.encode(), 1)
    kept = told(reply.finish_reason, None, FINISH_REASON_CHARS) or ""
    assert len(kept) == 40
    assert kept.isprintable()


@pytest.mark.parametrize("before", ["", "x" * 20, "x" * 39, "x" * 495, "\0\r\n"])
def test_no_part_of_our_key_is_left_where_words_are_cut(before: str) -> None:
    key = ApiKey(KEY)
    for chars_max in (FINISH_REASON_CHARS, ERROR_BYTES_MAX):
        kept = told(f"{before}{KEY} was wrong", key, chars_max) or ""
        assert KEY[:4] not in kept
        assert len(kept) <= chars_max
    assert told(None, key) is None


@pytest.mark.parametrize(
    "answer",
    [
        f"{KEY}\r\n\r\n",
        f"HTTP/9.9 {KEY}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\n{'x' * 60}{KEY}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{KEY}\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Encoding: {KEY}\r\nContent-Type: text/event-stream\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_named_and_not_quoted(answer: str) -> None:
    with pytest.raises(Fault) as found:
        Attempt(reused=False).take(answer.encode(), 1)
    assert KEY[:12].lower() not in str(found.value).lower()


@pytest.mark.parametrize(
    "text", ["\x1b[31mred\x07", "nul\0", "lone \ud800", "\N{RIGHT-TO-LEFT OVERRIDE}", "a\r\nb\tc"]
)
def test_a_servers_words_are_harmless_once_stored(text: str) -> None:
    plain = plain_text(text)
    assert plain.isprintable()
    assert plain.encode("utf-8")


def test_a_servers_words_are_cut_to_bytes_and_never_inside_a_character() -> None:
    plain = plain_text("€" * 1000)
    assert len(plain.encode()) <= ERROR_BYTES_MAX
    assert set(plain) == {"€"}


def test_a_key_that_a_server_repeats_is_blotted_out() -> None:
    assert ApiKey("sk-CANARY").blotted_out("bad key sk-CANARY, sk-CANARY") == "bad key ***, ***"


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"HTTP/1.1 99999 OK\r\n",
        b"HTTP/1.1 000 OK\r\n",
        b"HTTP/1.7 200 OK\r\n",
        HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0x1f\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1_0\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 16 + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 40_000,
    ],
)
def test_numbers_that_only_python_would_take_are_refused(content: bytes) -> None:
    with pytest.raises(BadResponse):
        ResponseReader().feed(content)


def test_bytes_after_the_answer_are_noticed_and_are_no_part_of_it() -> None:
    reader = ResponseReader()
    assert reader.feed(HEAD + b"Content-Length: 1\r\n\r\nabHTTP/1.1 200 OK\r\n") == b"a"
    assert (reader.complete, reader.has_extra_bytes) == (True, True)
