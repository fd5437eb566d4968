"""The twin as a server: OpenAI's API and vLLM's /metrics over an engine whose latency emerges from load.

`python -m estimator.twin.server --profile tiny --port 8000`. It speaks as vLLM 0.32 does, and as there a
client that disconnects frees its blocks at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from estimator.spec import SpecError
from estimator.twin.ask import Ask, AskError, bad_json, parse_ask, parse_tokenize
from estimator.twin.engine import Engine
from estimator.twin.profile import TwinProfile, read_profile
from estimator.twin.realtime import EngineLoop, Ticket
from estimator.twin.telemetry import Telemetry
from estimator.twin.wire import StreamWire, compact_json, text_of, whole_answer

VERSION: Final = "0.32.0+twin"
BODY_BYTES_MAX: Final = 16 * 2**20
KEEP_ALIVE_S: Final = 5.0
"""vLLM's front end (uvicorn) closes idle connections after 5 s; clients must cope with that."""
STOP_S: Final = 0.25
"""How long open streams may go on after a signal; aiohttp waits this long twice."""
EXIT_USAGE: Final = 2
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TwinServer:
    """The HTTP side of one simulated server."""

    def __init__(self, profile: TwinProfile) -> None:
        self.profile = profile
        self.engine = Engine(profile.limits)
        self.telemetry = Telemetry(self.engine, profile)
        self.loop = EngineLoop(self.engine, profile.step_cost, self.telemetry)
        self._started_s = int(time.time())

    def app(self) -> web.Application:
        """The application; its engine steps while it runs."""
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[_errors_as_vllm])
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.cleanup_ctx.append(self._stepping)
        return app

    async def _stepping(self, _: web.Application) -> Any:
        task = asyncio.create_task(self.loop.run())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return _answer({"version": VERSION})

    async def _metrics(self, _: web.Request) -> web.Response:
        page, content_type = self.telemetry.page()
        return web.Response(body=page, headers={"Content-Type": content_type})

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self.profile.served_model_name,
            "object": "model",
            "created": self._started_s,
            "owned_by": "vllm",
            "root": self.profile.served_model_name,
            "parent": None,
            "max_model_len": self.profile.max_model_len,
            "permission": [],
        }
        return _answer({"object": "list", "data": [card]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        tokens = parse_tokenize(await _json(request), model=self.profile.served_model_name)
        limit = self.profile.max_model_len
        return _answer({"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": None})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        profile = self.profile
        ask = parse_ask(
            await _json(request),
            chat=chat,
            model=profile.served_model_name,
            max_model_len=profile.max_model_len,
        )
        answer_id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(8)}"
        news = asyncio.Event()
        tickets: list[Ticket] = []
        try:
            for index, prompt_tokens in enumerate(ask.prompts_tokens):
                lengths = (prompt_tokens, ask.output_tokens)
                tickets.append(self.loop.submit(f"{answer_id}-{index}", lengths, news))
            if ask.stream:
                return await self._stream(request, ask, answer_id, tickets)
            return await self._whole(ask, answer_id, tickets)
        finally:
            for ticket in tickets:
                self.loop.withdraw(ticket)

    async def _stream(
        self, request: web.Request, ask: Ask, answer_id: str, tickets: Sequence[Ticket]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        model = self.profile.served_model_name
        wire = StreamWire(ask, answer_id=answer_id, model=model, created_s=int(time.time()))
        role = wire.role()
        open_choices = dict(enumerate(tickets))
        with contextlib.suppress(ConnectionResetError):  # the client is gone: its requests are withdrawn
            while open_choices:
                await _news(tickets)
                for index, ticket in list(open_choices.items()):
                    first = ticket.taken_tokens
                    fresh = ticket.take()
                    if not fresh:
                        continue
                    if role:
                        await response.write(role)
                        role = b""
                    if ticket.finished:
                        del open_choices[index]
                    chunk = wire.tokens(index, text_of(first, fresh), first + fresh, last=ticket.finished)
                    await response.write(chunk)
            await response.write(wire.end([ticket.taken_tokens for ticket in tickets]))
            await response.write_eof()
        return response

    async def _whole(self, ask: Ask, answer_id: str, tickets: Sequence[Ticket]) -> web.Response:
        while not all(ticket.finished for ticket in tickets):
            await _news(tickets)
        counts = [ticket.take() for ticket in tickets]
        body = whole_answer(
            ask,
            [text_of(0, count) for count in counts],
            answer_id=answer_id,
            model=self.profile.served_model_name,
            created_s=int(time.time()),
            output_tokens=counts,
        )
        return _answer(body)


async def _news(tickets: Sequence[Ticket]) -> None:
    """Waits for the next token of any of them; they share one event."""
    await tickets[0].news.wait()
    tickets[0].news.clear()


def _answer(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        body=compact_json(body), status=status, headers=headers, content_type="application/json"
    )


async def _json(request: web.Request) -> Any:
    if request.content_type != "application/json":
        raise AskError(
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            param=None,
            kind="Bad Request",
        )
    try:
        return json.loads(await request.read())
    except json.JSONDecodeError as error:
        raise bad_json(error.pos, error.msg) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise bad_json(0, "the body is not UTF-8 JSON") from error


@web.middleware
async def _errors_as_vllm(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except AskError as error:
        return _answer(error.body(), status=error.status)
    except SpecError as error:
        return _answer(AskError(str(error), param=None).body(), status=400)
    except web.HTTPException as error:
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _answer({"detail": error.reason}, status=error.status, headers=allow)


def runner_of(server: TwinServer) -> web.AppRunner:
    """aiohttp's runner as the twin needs it: a client's disconnect cancels its handler."""
    return web.AppRunner(
        server.app(),
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=STOP_S,
    )


async def serve(profile: TwinProfile, host: str, port: int, *, exit_with_stdin: bool) -> None:
    """Serves until SIGTERM, SIGINT or, where asked for, the end of stdin. OSError when it cannot bind."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    runner = runner_of(TwinServer(profile))
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        bound = runner.addresses[0][1]
        shown = f"[{host}]" if ":" in host else host
        print(f"twin ready on http://{shown}:{bound} model={profile.served_model_name}", flush=True)
        if exit_with_stdin:
            threading.Thread(target=_until_stdin_ends, args=(loop, stop), daemon=True).start()
        await stop.wait()
    finally:
        await runner.cleanup()


def _until_stdin_ends(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    # os.read, not sys.stdin: a daemon thread inside a buffered read would hold its lock at exit.
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stop.set)


def main(arguments: Sequence[str] | None = None, *, program: str | None = None) -> int:
    """Command line; returns the exit code. 2 for a wrong profile or flag, or an address in use."""
    flags = _parser(program).parse_args(arguments)
    changes = {name: getattr(flags, name) for name in OVERRIDES if getattr(flags, name) is not None}
    try:
        profile = replace(read_profile(flags.profile), **changes)
        asyncio.run(serve(profile, flags.host, flags.port, exit_with_stdin=flags.exit_with_stdin))
    except SpecError as error:
        return _refuse(str(error))
    except (OSError, OverflowError) as error:
        return _refuse(f"cannot serve on {flags.host}:{flags.port}: {error}; choose another --port or --host")
    return 0


OVERRIDES: Final = ("num_gpu_blocks", "block_size", "max_num_seqs", "max_model_len", "served_model_name")


def _parser(program: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program or "python -m estimator.twin.server",
        description="A simulated vLLM whose latency and saturation emerge from its scheduler.",
        allow_abbrev=False,
    )
    parser.add_argument("--profile", default="tiny", help="a file of configs/engines (default: tiny)")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default: loopback only)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--num-gpu-blocks-override", dest="num_gpu_blocks", type=int, metavar="N")
    for name in OVERRIDES[1:-1]:
        parser.add_argument("--" + name.replace("_", "-"), type=int, metavar="N")
    parser.add_argument("--served-model-name", metavar="NAME")
    parser.add_argument("--exit-with-stdin", action="store_true", help="stop when stdin is closed")
    return parser


def _refuse(sentence: str) -> int:
    print(f"twin: {sentence}", file=sys.stderr)
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
