"""The twin as a server: an engine's API and /metrics over a scheduler, so that latency emerges from load.

`TwinServer(profile, options).app()` is the whole of it; `python -m estimator.twin.server` serves one. As
in vLLM a client that disconnects frees its blocks at once.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from aiohttp import web

from estimator.spec import SpecError
from estimator.twin.answers import Entry, Gathered, Streamed, stream
from estimator.twin.ask import Ask, Rules, parse_detokenize, parse_tokenize
from estimator.twin.bodies import answer, rank_asked_for, read_json
from estimator.twin.contents import prefix_of
from estimator.twin.dialect import LMDEPLOY, VLLM, Dialect
from estimator.twin.faults import Fault
from estimator.twin.lmdeploy_ask import parse_encode
from estimator.twin.lmdeploy_limits import limits_under_lmdeploy
from estimator.twin.options import ServerOptions
from estimator.twin.profile import TwinProfile
from estimator.twin.ranks import Gate, QueueLimits, Rank
from estimator.twin.realtime import EngineLoop
from estimator.twin.refusals import AskError
from estimator.twin.scheduler import new_scheduler
from estimator.twin.speech import Endings, Speech
from estimator.twin.telemetry import Metrics, Telemetry
from estimator.twin.tokens import text_of_ids
from estimator.twin.trouble import Trouble, refuse_by
from estimator.twin.wire import Envelope

BODY_BYTES_MAX: Final = 16 * 2**20
KEEP_ALIVE_S: Final = 5.0
"""vLLM's front end (uvicorn) closes idle connections after 5 s; clients must cope with that."""
STOP_S: Final = 0.25
"""How long open streams may go on after a signal; aiohttp waits this long twice."""
DIALECTS: Final[Mapping[str, Dialect]] = {"vllm": VLLM, "lmdeploy": LMDEPLOY}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TwinServer:
    """The HTTP side of one simulated server."""

    def __init__(self, profile: TwinProfile, options: ServerOptions | None = None) -> None:
        self.profile = profile
        self.options = options = options or ServerOptions()
        if options.engine == "lmdeploy" and profile.enable_prefix_caching:
            raise SpecError("prefix caching is modelled for vLLM alone; add --no-enable-prefix-caching")
        self.dialect = DIALECTS[options.engine]
        self.ranks = tuple(self._rank(number) for number in range(options.data_parallel_size))
        self.metrics = Metrics([rank.telemetry for rank in self.ranks], self.dialect.page)
        queue_limits = QueueLimits(
            max_num_queued_reqs=options.max_num_queued_reqs,
            max_num_queued_tokens=options.max_num_queued_tokens,
        )
        self.gate = Gate(self.ranks, queue_limits, self.metrics.rejections)
        self.rules = Rules(
            model=profile.served_model_name,
            max_model_len=profile.max_model_len,
            reasoning_parser=options.reasoning_parser,
            tool_call_parser=options.tool_call_parser,
            enable_auto_tool_choice=options.enable_auto_tool_choice,
            enable_prompt_tokens_details=options.enable_prompt_tokens_details,
        )
        self._endings = Endings(options.mean_output_tokens, options.seed)
        self._trouble = Trouble(options, self.ranks, self.metrics)
        self._started_s = time.time()

    def _rank(self, number: int) -> Rank:
        profile, limits = self.profile, self.profile.limits
        engine = new_scheduler(
            limits if self.options.engine == "vllm" else limits_under_lmdeploy(limits, self.options.backend)
        )
        telemetry = Telemetry(engine, profile, self.dialect.page, number)
        loop = EngineLoop(engine, profile.step_cost, telemetry, time_scale=self.options.time_scale)
        return Rank(engine=engine, telemetry=telemetry, loop=loop)

    def app(self) -> web.Application:
        """The application; its engine steps while it runs."""
        app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[self._guard])
        routes: tuple[tuple[str, str, Handler], ...] = (
            ("GET", "/health", self._health),
            ("GET", "/ping", self._health),
            ("POST", "/ping", self._health),
            ("GET", "/version", self._version),
            ("GET", "/v1/models", self._models),
            ("*", "/metrics", self._metrics),
            ("POST", "/tokenize", self._tokenize),
            ("POST", "/detokenize", self._detokenize),
            ("POST", "/v1/encode", self._encode),
            ("POST", "/v1/completions", self._completions),
            ("POST", "/v1/chat/completions", self._chat),
        )
        for method, path, handler in routes:
            if path not in self.dialect.paths:
                continue
            app.router.add_route(method, path, handler)
        app.cleanup_ctx.append(self._stepping)
        return app

    async def _stepping(self, _: web.Application) -> Any:
        tasks = [asyncio.create_task(rank.loop.run()) for rank in self.ranks]
        if len(self.ranks) > 1:
            tasks.append(asyncio.create_task(self.gate.watch()))
        if self.dialect.gauges_every_s is not None:
            tasks.append(asyncio.create_task(self._refreshing(self.dialect.gauges_every_s)))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refreshing(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            for rank in self.ranks:
                rank.telemetry.snapshot = rank.telemetry.state()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The key first, then every refusal in the engine's own form."""
        if not self._may_pass(request):
            return answer(self.dialect.unauthorized, status=401)
        try:
            return await handler(request)
        except AskError as error:
            return answer(self.dialect.refusal(error), status=error.status)
        except SpecError as error:
            return answer(self.dialect.refusal(AskError(str(error), param=None)), status=400)
        except web.HTTPException as error:
            kept = ("Allow", "Location", "Retry-After")
            headers = {name: error.headers[name] for name in kept if name in error.headers}
            return answer({"detail": error.reason}, status=error.status, headers=headers)

    def _may_pass(self, request: web.Request) -> bool:
        key = self.options.api_key
        if key is None or request.method == "OPTIONS" or not self.dialect.is_guarded(request.path):
            return True
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(shown.encode(), key.encode())

    async def _health(self, _: web.Request) -> web.Response:
        dead = self._trouble.engine_dead
        body = self.dialect.health(not dead)
        status = 503 if dead else 200
        return web.Response(status=status) if body is None else answer(body, status=status)

    async def _version(self, _: web.Request) -> web.Response:
        return answer({"version": self.dialect.version})

    async def _metrics(self, request: web.Request) -> web.Response:
        page_prefix = ""
        for fault in self._trouble.due("metrics", request):
            self._trouble.strike(fault)
            if fault.name == "slow_metrics":
                await asyncio.sleep(fault.number)
            elif fault.name == "renamed_metrics":
                page_prefix = fault.text
        page, content_type = self.metrics.page()
        if page_prefix:
            page = page.replace(f"{self.options.engine}:".encode(), f"{page_prefix}:".encode())
        return web.Response(body=page, headers={"Content-Type": content_type})

    async def _models(self, _: web.Request) -> web.Response:
        card = self.dialect.card(self.profile, int(self._started_s))
        return answer({"object": "list", "data": [card]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        tokens, words = parse_tokenize(await read_json(request), model=self.rules.model)
        limit = self.profile.max_model_len
        return answer({"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": words})

    async def _detokenize(self, request: web.Request) -> web.Response:
        return answer(
            {"prompt": text_of_ids(parse_detokenize(await read_json(request), model=self.rules.model))}
        )

    async def _encode(self, request: web.Request) -> web.Response:
        return answer(parse_encode(await read_json(request)))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, chat=True)

    async def _generate(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        faults = self._trouble.due("generate", request)
        for fault in faults:
            self._trouble.strike(fault)
            await refuse_by(fault, request)
        if self._trouble.engine_dead:
            raise AskError(
                "EngineCore encountered an issue.", param=None, status=500, kind="InternalServerError"
            )
        body = await read_json(request)
        await asyncio.sleep(self.profile.front_end.request_s * self.options.time_scale)
        ask = self.dialect.parse(body, chat, self.rules, self.gate.check_admission)
        rank = rank_asked_for(request)
        self.gate.check_rank(rank)
        speeches = self._named([self._speech(ask, tokens, faults) for tokens in ask.prompts_tokens], ask)
        envelope = Envelope(
            answer_id=self.dialect.answer_id(chat), model=self.rules.model, created_s=int(time.time())
        )
        under_way: Streamed | Gathered = Gathered()
        if ask.stream:
            wire = self.dialect.wire(ask, speeches, envelope)
            under_way = Streamed(wire, interval=self.options.stream_interval)
        try:
            entry = Entry(answer_id=secrets.token_hex(8), max_tokens=ask.max_tokens, rank=rank)
            under_way.submit(self.gate, speeches, entry)
            if isinstance(under_way, Streamed):
                return await stream(request, under_way, faults)
            await under_way.done.wait()
        finally:
            under_way.withdraw(self.gate)
        return answer(self.dialect.whole(ask, speeches, envelope, under_way.cached_tokens))

    def _named(self, speeches: list[Speech], ask: Ask) -> list[Speech]:
        """With names for the blocks of prompt and answer, where the engine looks for known ones."""
        limits = self.profile.limits
        if not (limits.enable_prefix_caching and ask.prompts_ids):
            return speeches
        return [
            replace(said, prefix=prefix_of([*ids, *said.output_ids()], limits.block_size, ask.cache_salt))
            for said, ids in zip(speeches, ask.prompts_ids, strict=True)
        ]

    def _speech(self, ask: Ask, prompt_tokens: int, faults: Sequence[Fault]) -> Speech:
        for fault in faults:
            if fault.name == "early_eos":
                ask = replace(ask, max_tokens=max(1, min(ask.max_tokens, int(fault.number))))
                early = self._endings.speech(ask, prompt_tokens)
                return replace(early, finish_reason="stop", eos=True)
        return self._endings.speech(ask, prompt_tokens)


def runner_of(server: TwinServer) -> web.AppRunner:
    """aiohttp's runner as the twin needs it: a client's disconnect cancels its handler."""
    return web.AppRunner(
        server.app(),
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=KEEP_ALIVE_S,
        shutdown_timeout=STOP_S,
    )


if __name__ == "__main__":
    from estimator.twin.command import main

    sys.exit(main())
