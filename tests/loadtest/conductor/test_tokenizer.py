"""A server is asked once for each count: at LMDeploy a count may be an answer of its engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from pages_served import handled_by

from estimator.spec import EngineName
from loadtest.conductor.server_facts import ServerError
from loadtest.conductor.tokenizer import Tokenizer
from loadtest.origin import parse_origin
from loadtest.workload.prompts import calibrate, chat_messages


@contextmanager
def counting(status: int = 200) -> Iterator[tuple[str, list[bytes]]]:
    """Counts words in the way of either engine; yields what it was asked."""
    asked: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.loads(asked[-1])
            text = body.get("prompt") or body.get("input") or body["messages"][0]["content"]
            count = len(text.split())
            answer = json.dumps({"count": count, "length": count, "usage": {"prompt_tokens": count}}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            return

    with handled_by(Handler) as url:
        yield url, asked


def tokenizer(url: str, engine: EngineName) -> Tokenizer:
    return Tokenizer(origin=parse_origin(url), key=None, model="tiny", engine=engine)


@pytest.mark.parametrize("engine", ["vllm", "lmdeploy"])
def test_words_that_were_found_are_not_looked_for_again(engine: EngineName) -> None:
    with counting() as (url, asked):
        server = tokenizer(url, engine)
        first = calibrate(server.counter(), chat_messages)
        once = len(asked)
        assert calibrate(server.counter(), chat_messages) == first
    assert len(asked) == len(set(asked)) == once > 16


def test_what_differs_is_asked() -> None:
    tools = [{"type": "function", "function": {"name": "now"}}]
    with counting() as (url, asked):
        server = tokenizer(url, "lmdeploy")
        messages = chat_messages(["a"])
        counts = [server.counter()(messages), server.counter(tools)(messages), server.counter()("a b")]
        assert tokenizer(url, "lmdeploy").counter()("a b") == 2
    assert counts == [1, 1, 2]
    assert len(asked) == 4


def test_a_failure_is_not_kept() -> None:
    with counting(status=500) as (url, asked):
        server = tokenizer(url, "vllm")
        for _ in range(2):
            with pytest.raises(ServerError, match="answered 500"):
                server.counter()("a b")
    assert len(asked) == 2
