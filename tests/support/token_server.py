"""Enough of an OpenAI-compatible server for loopback: models `m` and `lora`, a token every TOKEN_S."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN_S = 0.15
MODELS = ("m", "lora")


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TokenServer

    def do_GET(self) -> None:
        models = [{"id": name, "max_model_len": 1000} for name in self.server.models]
        known = {"/v1/models": {"data": models}}
        self._answer(200 if self.path in known else 404, known.get(self.path, {}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((dict(self.headers), asked))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.server.is_silent:
            self.server.hang()
            return
        for _ in range(asked["max_tokens"] - 1):
            self._chunk('{"choices":[{"text":"a","finish_reason":null}]}')
            time.sleep(TOKEN_S)
        self._chunk('{"choices":[{"text":"b","finish_reason":"length"}]}')
        usage = {"prompt_tokens": len(asked["prompt"]), "completion_tokens": asked["max_tokens"]}
        self._chunk(json.dumps({"choices": [], "usage": usage}))
        self._chunk("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: str) -> None:
        body = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))

    def _answer(self, status: int, body: object) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the base class names it so)
        pass


class TokenServer(ThreadingHTTPServer):
    """`asked` holds the headers and the body of every request; a silent one begins answers and hangs."""

    daemon_threads = True

    def __init__(self, models: tuple[str, ...], *, is_silent: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.models = models
        self.is_silent = is_silent
        self.asked: list[tuple[dict[str, str], dict[str, Any]]] = []
        self._ends = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def hang(self) -> None:
        while not self._ends:
            time.sleep(0.05)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was stopped in the middle closes its connection: that is what is tested."""

    def server_close(self) -> None:
        self._ends = True
        super().server_close()


@contextmanager
def token_server(models: tuple[str, ...] = ("m",), *, is_silent: bool = False) -> Iterator[TokenServer]:
    server = TokenServer(models, is_silent=is_silent)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
