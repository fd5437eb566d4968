"""What one streaming answer says of a server before it is loaded. Pure checks over what was seen of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from estimator.errors import EXIT_UNREACHABLE
from estimator.spec import EngineName
from loadtest.audit import Check
from loadtest.conductor.audit.sanity_facts import SanityFacts, SanityPlan
from loadtest.origin import Origin
from loadtest.scenario import PATHS, Endpoint
from loadtest.workers.sse import GOOD_FINISHES
from loadtest.workload.prompts import Draw, Messages, Tokenize, chat_messages, request_body, token_prompt

INPUT_TOKENS: Final = 16
OUTPUT_TOKENS: Final = 32
WORDS: Final = ("time", "year", "people", "way", "day", "man", "thing", "woman")
TRANSIENT: Final = frozenset({429, 500, 502, 503, 504})
TRIES: Final = 3
BUFFERED_CHUNKS: Final = 8
BUFFERED_S: Final = 0.05
"""An engine needs longer than this for so many steps; one read with all of them was held back on the way."""
EXPIRES_SOON_S: Final = 14 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What the load's requests have in common, and so has the one that goes before them."""

    model: str
    engine: EngineName
    endpoint: Endpoint
    ignore_eos: bool = True
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    extra_headers: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    """Where the scenario's own lies, if it has one: what it counts is compared with the server's usage."""


def sanity_plan(kind: Kind, run_id: str, tokenize: Tokenize | None) -> SanityPlan:
    """A short request of that kind; `tokenize` counts the prompt of words, where the server can be asked."""
    prompt, input_tokens = _prompt(kind, run_id, tokenize)
    return SanityPlan(
        path=PATHS[kind.endpoint],
        body={
            **request_body(kind.model, prompt, OUTPUT_TOKENS, ignore_eos=kind.ignore_eos),
            **kind.extra_body,
        },
        headers=kind.extra_headers,
        tokenizer=kind.tokenizer,
        input_tokens=input_tokens,
        output_tokens=OUTPUT_TOKENS,
    )


def _prompt(
    kind: Kind, run_id: str, tokenize: Tokenize | None
) -> tuple[list[int] | str | Messages, int | None]:
    if kind.endpoint == "completions" and kind.engine == "vllm":
        rng = random.Random(run_id)  # noqa: S311  (a prompt, no secret)
        drawn = Draw(input_tokens=INPUT_TOKENS, output_tokens=OUTPUT_TOKENS, rng=rng)
        return token_prompt(drawn, run_id, 0, 0), INPUT_TOKENS
    messages = chat_messages(WORDS)
    prompt = messages if kind.endpoint == "chat" else str(messages[0]["content"])
    return prompt, None if tokenize is None else tokenize(prompt)


def is_worth_another_try(facts: SanityFacts) -> bool:
    """A server may turn one request away for reasons of the moment, or drop it; a silent one stays silent."""
    return facts.status in TRANSIENT or (facts.status is None and not facts.timed_out)


def sanity_checks(facts: SanityFacts, plan: SanityPlan, origin: Origin) -> tuple[Check, ...]:
    """The answer itself first; where there was no good one, nothing more can be said."""
    answer = _answer(facts, plan, origin)
    tls = [_tls(facts, origin)] if origin.scheme == "https" else []
    if answer.level != "ok":
        return (*tls, answer)
    return (*tls, answer, _protocol(facts), _stream(facts), _buffering(facts), _usage(facts, plan))


def _answer(facts: SanityFacts, plan: SanityPlan, origin: Origin) -> Check:
    name, words = "answer", facts.error or "no word"
    if facts.timed_out:
        said = f"no whole answer within {plan.limit_s:g} s ({facts.chunks} chunks came)"
        return Check(
            name=name, level="amber", said=said, fix="wait until the server is idle, or read its log"
        )
    if facts.status is None:
        return Check(
            name=name,
            level="red",
            said=f"{origin} gave none: {words}",
            fix="start the server or correct --host",
            exit_code=EXIT_UNREACHABLE,
        )
    if facts.status != 200:
        return _refused(facts, origin)
    faults = _stream_faults(facts)
    if faults:
        fix = "each request of the load would fail so: look at what stands before the engine"
        return Check(name=name, level="red", said=f"HTTP 200, but {'; '.join(faults)}", fix=fix)
    first_ms = (facts.ttft_s or 0.0) * 1000
    speed = facts.tokens_per_s
    return Check(
        name=name,
        level="ok",
        said=f"first token after {first_ms:,.0f} ms"
        + ("" if speed is None else f", then {speed:,.0f} tokens/s to a lone stream"),
        figures={"ttft_s": facts.ttft_s or 0.0, "tokens_per_s": speed or 0.0},
    )


def _refused(facts: SanityFacts, origin: Origin) -> Check:
    name, status, words = "answer", facts.status, facts.error or "no word"
    if status in range(300, 400):
        fix = "redirects are refused, for they would carry the key away: give --host the right address"
        return Check(name=name, level="red", said=f"HTTP {status} to {facts.location or 'nowhere'}", fix=fix)
    if status in (401, 403):
        fix = "set ULLAGE_API_KEY to the server's key"
    elif status == 404:
        fix = f"{origin} has no such path or model: correct --host or --model"
    elif "ignore_eos" in words:
        fix = "set `ignore_eos: false` in the scenario; answers may then end before their planned length"
    elif status in TRANSIENT:
        fix = f"it turned a lone request away {TRIES} times: read its log"
    else:
        fix = "the server does not take this request: read its words"
    return Check(name=name, level="red", said=f"HTTP {status}: {words}", fix=fix)


def _stream_faults(facts: SanityFacts) -> Sequence[str]:
    """Why the load's reader would not call this answer a good one."""
    if not facts.content_type.lower().startswith("text/event-stream"):
        return [f"it is {facts.content_type or 'of no type'}, no event stream"]
    if facts.error is not None:
        return [f"the stream says {facts.error}"]
    found = []
    if facts.finish_reason not in GOOD_FINISHES:
        found.append(f"its finish reason is {facts.finish_reason or 'missing'}")
    if not facts.done:
        found.append("[DONE] is missing")
    if not facts.clean_end:
        found.append("the connection broke before the end")
    if not facts.chunks:
        found.append("it holds no token")
    return found


def _protocol(facts: SanityFacts) -> Check:
    if facts.http_version != "HTTP/1.1":
        fix = "every request opens a connection of its own: let the proxy speak HTTP/1.1"
        return Check(name="protocol", level="amber", said=facts.http_version or "unknown", fix=fix)
    return Check(name="protocol", level="ok", said="HTTP/1.1")


def _stream(facts: SanityFacts) -> Check:
    tokens = facts.output_tokens or facts.chunks
    each = tokens / max(facts.chunks, 1)
    role = "a role chunk first, " if facts.has_role_chunk else ""
    several = "" if each < 1.5 else f", {each:.1f} tokens each: gaps are those between chunks"
    return Check(
        name="stream",
        level="ok",
        said=f"{role}{tokens} tokens in {facts.chunks} chunks{several}",
        figures={"tokens_per_chunk": each},
    )


def _buffering(facts: SanityFacts) -> Check:
    """An engine sends a token a step; many at once, after a long time, were held back by a proxy."""
    name, reads = "buffering", len(facts.chunks_of_reads)
    most = max(facts.chunks_of_reads, default=0)
    if facts.chunks < BUFFERED_CHUNKS:
        return Check(name=name, level="skipped", said=f"{facts.chunks} chunks are too few to tell")
    if (facts.e2e_s or 0.0) < BUFFERED_S:
        return Check(name=name, level="skipped", said="the answer came too fast to tell")
    if most > facts.chunks / 2:
        fix = "the first token is dated too late: turn the proxy's buffering off"
        said = f"{most} of {facts.chunks} chunks came in one read"
        return Check(name=name, level="amber", said=said, fix=fix)
    return Check(name=name, level="ok", said=f"{facts.chunks} chunks in {reads} reads")


def _usage(facts: SanityFacts, plan: SanityPlan) -> Check:
    """Are prompts and answers as long as they are meant to be, by the server's own count?"""
    name, asked, counted = "lengths", plan.output_tokens, facts.output_tokens
    if counted is None or facts.input_tokens is None:
        fix = "let it take stream_options.include_usage: tokens cannot be counted without"
        return Check(name=name, level="amber", said="the answer has no usage", fix=fix)
    if plan.input_tokens is not None and facts.input_tokens != plan.input_tokens:
        said = f"{plan.input_tokens} prompt tokens were sent and {facts.input_tokens} counted"
        fix = "something rewrites the prompt"
        if plan.tokenizer is not None:
            fix = f"{plan.tokenizer} is not this model's tokenizer or chat template"
        fix += ": prompts will not be of the length the scenario says"
        return Check(name=name, level="amber", said=said, fix=fix)
    if counted < asked and facts.finish_reason == "length":
        said = f"{asked} output tokens were asked for and the server clipped them to {counted}"
        return Check(name=name, level="amber", said=said, fix="raise the server's own limit of max_tokens")
    if counted < asked and plan.body.get("ignore_eos"):
        said = f"the answer ended by itself after {counted} of {asked} tokens"
        fix = (
            "ignore_eos is not honoured: answers will be shorter than planned, and the run not signed; "
            "set `ignore_eos: false` in the scenario if they may be"
        )
        return Check(name=name, level="amber", said=said, fix=fix)
    if counted > asked:
        said = f"usage tells of {counted} output tokens where {asked} were the limit"
        return Check(name=name, level="amber", said=said, fix="do not trust this server's token counts")
    prompt = "" if plan.input_tokens is None else f"{facts.input_tokens} prompt tokens and "
    how = "as asked" if counted == asked else f"of at most {asked}"
    return Check(name=name, level="ok", said=f"{prompt}{counted} output tokens, {how}")


def _tls(facts: SanityFacts, origin: Origin) -> Check:
    if facts.tls is None:
        return Check(name="TLS", level="skipped", said="no handshake")
    said = f"{facts.tls.version}, {facts.tls.cipher}"
    if origin.is_unverified:
        fix = "nothing will be signed off: name the server's CA with --ca-file instead of --insecure"
        return Check(name="TLS", level="amber", said=f"{said}, the certificate is not verified", fix=fix)
    left_s = facts.tls.expires_in_s
    if left_s is None:
        return Check(name="TLS", level="ok", said=said)
    valid = f"{said}, certificate valid for {left_s / 86_400:,.0f} days"
    if left_s < EXPIRES_SOON_S:
        return Check(name="TLS", level="amber", said=valid, fix="renew it")
    return Check(name="TLS", level="ok", said=valid)
