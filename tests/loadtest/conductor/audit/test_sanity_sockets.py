"""What one request sees of a real server's bytes: reads, tokens, refusals, silence and TLS."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from certificates import self_signed, tls_door
from fault_server import LAST_CHUNK, STREAM_HEAD, Close, Hang, Reset, Script, Wait, events, plain, serving

from loadtest.access import Access
from loadtest.conductor.audit.sanity import Kind, sanity_checks, sanity_plan
from loadtest.conductor.audit.sanity_facts import SanityFacts, ask_once
from loadtest.origin import ApiKey, Origin, parse_origin

KIND = Kind(model="tiny", engine="vllm", endpoint="completions")
PLAN = replace(sanity_plan(KIND, "run", None), limit_s=20.0)
CANARY = "sk-CANARY"


def token(finish: str = "null") -> str:
    return f'{{"choices":[{{"index":0,"text":"a","finish_reason":{finish}}}]}}'


USAGE = '{"choices":[],"usage":{"prompt_tokens":16,"completion_tokens":32}}'
TOKENS = [token()] * 31 + [token('"length"')]


def seen(*script: Script, key: ApiKey | None = None, limit_s: float = 20.0) -> SanityFacts:
    with serving(*script) as (_, origin):
        return ask_once(origin, key, replace(PLAN, limit_s=limit_s))


def red(facts: SanityFacts, origin: Origin) -> list[str]:
    return [check.sentence for check in sanity_checks(facts, PLAN, origin) if check.level == "red"]


def test_tokens_that_come_one_by_one_are_read_one_by_one() -> None:
    paced = [step for one in TOKENS for step in (events(one), Wait(0.005))]
    facts = seen([STREAM_HEAD, *paced, events(USAGE, "[DONE]"), LAST_CHUNK])
    assert (facts.status, facts.http_version, facts.chunks) == (200, "HTTP/1.1", 32)
    assert len(facts.chunks_of_reads) > 16
    assert (facts.input_tokens, facts.output_tokens, facts.finish_reason) == (16, 32, "length")
    assert facts.done
    assert facts.clean_end
    checks = {check.name: check.level for check in sanity_checks(facts, PLAN, parse_origin("http://a"))}
    assert set(checks.values()) == {"ok"}


def test_tokens_that_were_held_back_come_in_one_read() -> None:
    facts = seen([STREAM_HEAD, Wait(0.06), events(*TOKENS, USAGE, "[DONE]") + LAST_CHUNK])
    assert max(facts.chunks_of_reads) > 16
    assert {c.name for c in sanity_checks(facts, PLAN, parse_origin("http://a")) if c.level == "amber"} == {
        "buffering"
    }


def test_a_redirect_is_refused_and_not_followed() -> None:
    with serving([plain("307 Temporary Redirect", b"", "text/plain", "Location: http://x/\x1b[31m")]) as (
        server,
        origin,
    ):
        facts = ask_once(origin, None, PLAN)
        assert len(server.requests) == 1
    (sentence,) = red(facts, origin)
    assert "HTTP 307 to http://x/" in sentence
    assert sentence.isprintable()


def test_a_server_that_repeats_the_key_does_not_get_it_shown() -> None:
    words = f'{{"error":"no such key: {CANARY}"}}'.encode()
    facts = seen([plain("401 Unauthorized", words)], key=ApiKey(CANARY))
    assert facts.error is not None
    assert "no such key: ***" in facts.error
    assert CANARY not in repr(facts)


def test_no_key_means_no_header() -> None:
    with serving([plain("401 Unauthorized")]) as (server, origin):
        ask_once(origin, None, PLAN)
        ask_once(origin, ApiKey(CANARY), PLAN)
    without, with_key = (content.lower() for _, content in server.requests)
    assert b"authorization" not in without
    assert b"authorization: bearer sk-canary" in with_key


def test_silence_ends_at_its_limit() -> None:
    facts = seen([STREAM_HEAD, events(token()), Hang()], limit_s=0.3)
    assert facts.timed_out
    assert facts.chunks == 1


def test_a_stream_that_breaks_off_is_red() -> None:
    origin = parse_origin("http://127.0.0.1:1")
    for end in (Close(), Reset()):
        assert red(seen([STREAM_HEAD, events(token()), end]), origin)


def test_a_page_of_a_proxy_is_no_stream() -> None:
    facts = seen([plain("200 OK", b"<html>502</html>", "text/html")])
    assert "it is text/html, no event stream" in red(facts, parse_origin("http://a"))[0]


def test_no_server_is_exit_3() -> None:
    with serving([Close()]) as (_, origin):
        gone = origin
    facts = ask_once(gone, None, PLAN)
    (check,) = sanity_checks(facts, PLAN, gone)
    assert (check.level, check.exit_code) == ("red", 3)


def test_a_certificate_nobody_signed_is_believed_only_by_name_or_by_insecure(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    answer = [STREAM_HEAD + events(*TOKENS, USAGE, "[DONE]") + LAST_CHUNK]
    with serving(answer) as (server, plainly), tls_door(plainly.port, key, certificate) as url:
        refused = ask_once(parse_origin(url), None, PLAN)
        assert server.requests == [], "nothing is said to a server that is not verified"
        named = ask_once(parse_origin(url, Access(ca_file=str(certificate))), None, PLAN)
        blind = ask_once(parse_origin(url, Access(insecure=True)), None, PLAN)
    assert refused.status is None
    assert "certificate verify failed" in (refused.error or "")
    assert named.status == blind.status == 200
    assert named.tls is not None
    assert blind.tls is not None
    assert 29 * 86_400 < (named.tls.expires_in_s or 0) <= 30 * 86_400
    assert blind.tls.expires_in_s is None
