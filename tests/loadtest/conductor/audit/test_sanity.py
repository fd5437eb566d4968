"""One answer as it should be, and with each thing wrong that has spoilt a load test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loadtest.access import Access
from loadtest.audit import Check, Level
from loadtest.conductor.audit.sanity import Kind, is_worth_another_try, sanity_checks, sanity_plan
from loadtest.conductor.audit.sanity_facts import SanityFacts, TlsFacts
from loadtest.origin import Origin, parse_origin

HTTP = parse_origin("http://127.0.0.1:8000")
HTTPS = parse_origin("https://127.0.0.1:8443")
KIND = Kind(model="tiny", engine="vllm", endpoint="completions")
PLAN = sanity_plan(KIND, "run", None)
TLS = TlsFacts(version="TLSv1.3", cipher="AES", expires_in_s=90 * 86_400.0)
GOOD = SanityFacts(
    status=200,
    http_version="HTTP/1.1",
    content_type="text/event-stream; charset=utf-8",
    ttft_s=0.05,
    e2e_s=0.205,
    chunks_of_reads=(1,) * 32,
    finish_reason="length",
    done=True,
    clean_end=True,
    input_tokens=16,
    output_tokens=32,
)


def checked(facts: SanityFacts, origin: Origin = HTTP) -> dict[str, Check]:
    return {check.name: check for check in sanity_checks(facts, PLAN, origin)}


def test_a_good_answer_is_green_in_everything() -> None:
    found = checked(GOOD)
    assert list(found) == ["answer", "protocol", "stream", "buffering", "lengths"]
    assert {check.level for check in found.values()} == {"ok"}
    assert found["answer"].said == "first token after 50 ms, then 200 tokens/s to a lone stream"
    assert found["lengths"].said == "16 prompt tokens and 32 output tokens, as asked"


def test_a_server_that_refuses_ignore_eos_is_told_of_with_the_key_that_leaves_it_out() -> None:
    refused = checked(replace(GOOD, status=400, error="unknown field ignore_eos"))["answer"]
    assert (refused.level, refused.exit_code) == ("red", 2)
    assert "set `ignore_eos: false` in the scenario" in refused.sentence
    other = checked(replace(GOOD, status=400, error="unknown field seed"))["answer"]
    assert "ignore_eos" not in other.sentence
    assert "ignore_eos" not in sanity_plan(replace(KIND, ignore_eos=False), "run", None).body


@pytest.mark.parametrize(
    ("name", "seen", "level", "said"),
    [
        ("answer", {"status": None, "error": "Connection refused"}, "red", "gave none: Connection refused"),
        (
            "answer",
            {"status": 307, "location": "http://elsewhere/v1"},
            "red",
            "HTTP 307 to http://elsewhere/v1",
        ),
        ("answer", {"status": 302}, "red", "HTTP 302 to nowhere"),
        ("answer", {"status": 401, "error": "bad key"}, "red", "HTTP 401: bad key"),
        ("answer", {"status": 404, "error": "no model"}, "red", "HTTP 404: no model"),
        ("answer", {"status": 400, "error": "ignore_eos?"}, "red", "HTTP 400: ignore_eos?"),
        ("answer", {"status": 503, "error": "full"}, "red", "HTTP 503: full"),
        ("answer", {"content_type": "text/html"}, "red", "it is text/html, no event stream"),
        ("answer", {"error": "engine died"}, "red", "the stream says engine died"),
        ("answer", {"done": False}, "red", "[DONE] is missing"),
        ("answer", {"finish_reason": None}, "red", "its finish reason is missing"),
        ("answer", {"clean_end": False}, "red", "the connection broke"),
        ("answer", {"chunks_of_reads": ()}, "red", "it holds no token"),
        ("answer", {"timed_out": True}, "amber", "no whole answer within 10 s"),
        ("protocol", {"http_version": "HTTP/1.0"}, "amber", "HTTP/1.0"),
        ("buffering", {"chunks_of_reads": (32,)}, "amber", "32 of 32 chunks came in one read"),
        ("buffering", {"chunks_of_reads": (32,), "e2e_s": 0.01}, "skipped", "too fast to tell"),
        ("buffering", {"chunks_of_reads": (1, 1)}, "skipped", "too few to tell"),
        ("lengths", {"output_tokens": None}, "amber", "no usage"),
        ("lengths", {"input_tokens": 17}, "amber", "16 prompt tokens were sent and 17 counted"),
        ("lengths", {"output_tokens": 3, "finish_reason": "stop"}, "amber", "ended by itself after 3 of 32"),
        ("lengths", {"output_tokens": 8, "finish_reason": "length"}, "amber", "clipped them to 8"),
        ("lengths", {"output_tokens": 64}, "amber", "64 output tokens where 32 were the limit"),
    ],
)
def test_what_is_wrong_with_an_answer_is_named(
    name: str, seen: dict[str, Any], level: Level, said: str
) -> None:
    check = checked(replace(GOOD, **seen))[name]
    assert check.level == level
    assert said in check.said
    assert (check.fix != "") == (level in ("amber", "red"))


def test_only_a_server_that_is_not_there_is_exit_3() -> None:
    assert checked(replace(GOOD, status=None, error="refused"))["answer"].exit_code == 3
    assert checked(replace(GOOD, status=401))["answer"].exit_code == 2


def test_several_tokens_in_a_chunk_are_told_and_are_no_fault() -> None:
    stream = checked(replace(GOOD, chunks_of_reads=(1,) * 16))["stream"]
    assert (stream.level, stream.figures["tokens_per_chunk"]) == ("ok", 2.0)
    assert "2.0 tokens each" in stream.said


@pytest.mark.parametrize(
    ("tls", "access", "level", "said"),
    [
        (TLS, Access(), "ok", "TLSv1.3, AES, certificate valid for 90 days"),
        (replace(TLS, expires_in_s=86_400.0), Access(), "amber", "valid for 1 days"),
        (replace(TLS, expires_in_s=None), Access(insecure=True), "amber", "not verified"),
    ],
)
def test_a_certificate_is_told_and_an_unverified_one_warned_of(
    tls: TlsFacts, access: Access, level: Level, said: str
) -> None:
    check = checked(replace(GOOD, tls=tls), replace(HTTPS, access=access))["TLS"]
    assert check.level == level
    assert said in check.said


def test_a_request_is_tried_again_only_for_reasons_of_the_moment() -> None:
    again = {
        status: is_worth_another_try(replace(GOOD, status=status)) for status in (200, 401, 404, 429, 503)
    }
    assert again == {200: False, 401: False, 404: False, 429: True, 503: True}
    assert is_worth_another_try(SanityFacts(error="reset"))
    assert not is_worth_another_try(SanityFacts(error="silence", timed_out=True))


def words(prompt: Any) -> int:
    """A tokenizer of a template of three tokens and one for each word."""
    return len((prompt if isinstance(prompt, str) else prompt[0]["content"]).split()) + 3


def test_a_prompt_of_words_is_counted_by_the_servers_tokenizer() -> None:
    chat = sanity_plan(replace(KIND, endpoint="chat"), "run", words)
    assert (chat.path, chat.input_tokens) == ("/v1/chat/completions", 11)
    assert sanity_plan(replace(KIND, endpoint="chat"), "run", None).input_tokens is None


def test_lmdeploy_is_sent_no_token_ids() -> None:
    plan = sanity_plan(replace(KIND, engine="lmdeploy"), "run", words)
    assert isinstance(plan.body["prompt"], str)
    assert isinstance(PLAN.body["prompt"][0], int)


def test_what_every_request_of_the_scenario_carries_the_first_one_carries_too() -> None:
    kind = replace(KIND, extra_body={"ignore_eos": False}, extra_headers={"X-Team": "a"})
    plan = sanity_plan(kind, "run", None)
    assert (plan.body["ignore_eos"], plan.headers) == (False, {"X-Team": "a"})
    early = replace(GOOD, output_tokens=3, finish_reason="stop")
    (lengths,) = [check for check in sanity_checks(early, plan, HTTP) if check.name == "lengths"]
    assert (lengths.level, lengths.said) == ("ok", "16 prompt tokens and 3 output tokens, of at most 32")
