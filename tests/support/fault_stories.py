"""Whole runs with a fault in them: what the server does, and what the run must say of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fault_cases import TABLE, Case
from fault_runs import CANARY, LOAD, Outcome, begin, good, server_of, sign_off, twin, wait_for_stage
from fault_server import (
    ANY,
    LAST_CHUNK,
    STREAM_HEAD,
    FaultServer,
    Hang,
    Live,
    Reset,
    Script,
    Wait,
    events,
    listening,
    plain,
)


def metrics(server: FaultServer) -> bytes:
    """A vLLM's page: whoever is being answered runs, and nobody waits."""
    return (
        b'vllm:num_requests_running{engine="0"} %d\nvllm:num_requests_waiting{engine="0"} 0\n'
        b'vllm:num_preemptions_total{engine="0"} 0\n' % server.at_work[LOAD]
    )


def page(generated: int | None = None) -> Script:
    more = b"" if generated is None else b"vllm:generation_tokens_total %d\n" % generated
    return (Live(lambda server: plain("200 OK", metrics(server) + more, "text/plain")),)


ALL_IS_WELL: Final = page()
HOSTILE: Final = "\\u001b[2J</script><script>alert(1)</script>\\u0000\\ud800 " + CANARY
NO_IGNORE_EOS: Final = b'{"error":{"message":"ignore_eos is not supported"}}'
KEY_ECHO: Final = b'{"error":"invalid key ' + CANARY.encode() + b'"}'


@dataclass(frozen=True, kw_only=True)
class Story:
    """A run, and its end. `words` must be told on the last line, or on the error stream."""

    faults: tuple[str, ...]
    tells: str
    play: Callable[[Path], Outcome]
    exit_code: int
    status: str | None
    """None: the run must not begin."""
    words: tuple[str, ...]


def nothing_wrong(home: Path) -> Outcome:
    with server_of(good(), metrics=(ALL_IS_WELL,)) as (_, host):
        return sign_off(home, host)


def engine_dies(home: Path) -> Outcome:
    """SIGKILL in the second level; `killed_ns` is when."""
    stages = [{"users": 4, "hold_s": 5}, {"users": 8, "hold_s": 45}]
    with twin(home) as server:
        run = begin(home, server.host, stages=stages, output_tokens={"kind": "constant", "tokens": 64})
        wait_for_stage(run, 2)
        time.sleep(1.5)  # what began in the first level ends as it should
        server.kill()
        killed_ns = time.perf_counter_ns()
        return run.ended(fault_ns=killed_ns)


def engine_hangs(home: Path) -> Outcome:
    """/metrics and new connections go on, tokens do not: neither of what has begun, nor of what comes."""
    half = (STREAM_HEAD + events('{"choices":[{"index":0,"text":"a","finish_reason":null}]}'), Hang())
    limits = {"first_token_s": 1.0, "between_tokens_s": 1.0}
    with server_of(*[good()] * 60, *[half] * 4, (Hang(),), metrics=(ALL_IS_WELL,)) as (_, host):
        return sign_off(home, host, timeouts=limits, stages=[{"users": 4, "hold_s": 45}])


def counters_begin_again(home: Path) -> Outcome:
    pages = [page(100), page(200), page(300), page(5)]
    with server_of(good(), metrics=tuple(pages)) as (_, host):
        return sign_off(home, host)


def anything_goes_wrong(home: Path) -> Outcome:
    """Every fault of a single request but a lying usage, and hostile words, in turn."""
    cases: Sequence[Case] = [
        case for case in TABLE if not case.tls and len(case.says) < 9 and case.fault != "F29"
    ]
    hostile = (STREAM_HEAD + events(f'{{"error":{{"message":"{HOSTILE}"}}}}') + LAST_CHUNK,)
    small = [
        case.says for case in cases if sum(len(step) for step in case.says if isinstance(step, bytes)) < 10**6
    ]
    answers = [good(), hostile, good(), *small] * 20
    limits = {"first_token_s": 0.5, "between_tokens_s": 0.5, "total_s": 1.0}
    with server_of(*answers, metrics=(ALL_IS_WELL,)) as (server, host):
        return sign_off(home, host, timeouts=limits, stages=[{"users": 6, "hold_s": 6}]).seen_by(server)


def refuses(answer: bytes) -> Callable[[Path], Outcome]:
    """Only the requests of the load: the one before it was taken."""

    def play(home: Path) -> Outcome:
        with server_of((answer,), metrics=(ALL_IS_WELL,)) as (server, host):
            return sign_off(home, host, stages=[{"users": 4, "hold_s": 45}]).seen_by(server)

    return play


def refuses_from_the_first(answer: bytes) -> Callable[[Path], Outcome]:
    def play(home: Path) -> Outcome:
        with server_of((answer,), first=(answer,), metrics=(ALL_IS_WELL,)) as (server, host):
            return sign_off(home, host, audit=True).seen_by(server)

    return play


def sends_elsewhere(*, from_the_first: bool) -> Callable[[Path], Outcome]:
    """The other origin must see nothing: neither key nor request."""

    def play(home: Path) -> Outcome:
        elsewhere = FaultServer({ANY: [good()]})
        with listening(elsewhere) as other:
            moved = (
                plain("307 Temporary Redirect", b"moved", "text/plain", f"Location: {other}/v1/completions"),
            )
            page = (plain("302 Found", b"", "text/plain", f"Location: {other}/metrics"),)
            first = moved if from_the_first else None
            with server_of(moved, first=first, metrics=(page,)) as (_, host):
                return sign_off(home, host, audit=from_the_first).seen_by(elsewhere)

    return play


def other_model(home: Path) -> Outcome:
    with server_of(good()) as (server, host):
        return sign_off(home, host, "--model", "other").seen_by(server)


def too_long(home: Path) -> Outcome:
    with server_of(good()) as (server, host):
        return sign_off(home, host, input_tokens={"kind": "constant", "tokens": 5000}).seen_by(server)


def models_refused(home: Path) -> Outcome:
    server = FaultServer({ANY: [(plain("401 Unauthorized", KEY_ECHO),)]})
    with listening(server) as origin:
        return sign_off(home, str(origin)).seen_by(server)


def odd_tokens(home: Path) -> Outcome:
    """Prompts a quarter longer, answers half as long as planned, and one in five without a usage."""
    short = good(prompt=20, told=2, sent=2)
    with server_of(*[*[short] * 4, good(told=None)] * 200, metrics=(ALL_IS_WELL,)) as (_, host):
        return sign_off(home, host)


def usage_lies(home: Path) -> Outcome:
    with server_of(good(told=8), metrics=(ALL_IS_WELL,)) as (_, host):
        return sign_off(home, host)


def metrics_of_all_kinds(home: Path) -> Outcome:
    """A page a second, each broken in its own way."""
    kinds: list[Script] = [
        (Reset(),),
        (plain("404 Not Found", b"no page"),),
        (plain("401 Unauthorized", KEY_ECHO),),
        (plain("200 OK", b"<html>hello</html>", "text/html"),),
        (Wait(5.0), *page()),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n", *[b"# " + b"x" * 2**20] * 20),
        (plain("200 OK", b"\x1f\x8b", "text/plain", "Content-Encoding: gzip"),),
        (Live(lambda server: plain("200 OK", metrics(server)[:-4], "text/plain")),),
    ]
    with server_of(good(), metrics=tuple(kinds * 4)) as (_, host):
        return sign_off(home, host, stages=[{"users": 4, "hold_s": 15}])


def slows_down(home: Path) -> Outcome:
    fast, slow = good(), good(gap_s=0.15)
    with server_of(*[fast] * 110, slow, metrics=(ALL_IS_WELL,)) as (_, host):
        return sign_off(home, host, stages=[{"users": 4, "hold_s": 12}])


STORIES: Final[Sequence[Story]] = (
    Story(
        faults=(), tells="nothing is wrong", play=nothing_wrong, exit_code=0, status="PASS", words=("PASS",)
    ),
    Story(
        faults=("F01",),
        tells="the server is killed",
        play=engine_dies,
        exit_code=3,
        status="VOID",
        words=("the server died", "the last level that held is 4 users"),
    ),
    Story(
        faults=("F02",),
        tells="the engine hangs while the API answers",
        play=engine_hangs,
        exit_code=3,
        status="VOID",
        words=("generated nothing", "it hangs"),
    ),
    Story(
        faults=("F03",),
        tells="the server restarts",
        play=counters_begin_again,
        exit_code=3,
        status="VOID",
        words=("the server restarted",),
    ),
    Story(
        faults=(
            "F05",
            "F06",
            "F10",
            "F12",
            "F13",
            "F14",
            "F15",
            "F16",
            "F20",
            "F21",
            "F23",
            "F35",
            "F62",
            "F64",
        ),
        tells="one fault after the other, 429 and 503 among them",
        play=anything_goes_wrong,
        exit_code=1,
        status="FAIL",
        words=("FAIL",),
    ),
    Story(
        faults=("F07",),
        tells="401, and the key in the answer",
        play=refuses(plain("401 Unauthorized", KEY_ECHO)),
        exit_code=2,
        status="VOID",
        words=("refused the first 3 requests (401: ", "invalid key ***"),
    ),
    Story(
        faults=("F07",),
        tells="401 to the request before the load",
        play=refuses_from_the_first(plain("401 Unauthorized", KEY_ECHO)),
        exit_code=2,
        status=None,
        words=("HTTP 401: ", "invalid key ***", "set ULLAGE_API_KEY"),
    ),
    Story(
        faults=("F07",),
        tells="401 to the first question of all",
        play=models_refused,
        exit_code=2,
        status=None,
        words=("refuses the request (401)",),
    ),
    Story(
        faults=("F08",),
        tells="another model",
        play=other_model,
        exit_code=2,
        status=None,
        words=("it serves m",),
    ),
    Story(
        faults=("F09",),
        tells="requests longer than max_model_len",
        play=too_long,
        exit_code=2,
        status=None,
        words=("serves at most 4096 (max_model_len)",),
    ),
    Story(
        faults=("F28", "F30", "F33"),
        tells="other lengths than planned, and answers without usage",
        play=odd_tokens,
        exit_code=4,
        status="INCONCLUSIVE",
        words=("the server told no usage", "prompts had 125%", "answers had 50%"),
    ),
    Story(
        faults=("F29",),
        tells="a usage of twice the tokens",
        play=usage_lies,
        exit_code=5,
        status="VOID",
        words=("the server's usage cannot be true",),
    ),
    Story(
        faults=("F37",),
        tells="a redirect to another origin",
        play=sends_elsewhere(from_the_first=False),
        exit_code=2,
        status="VOID",
        words=("refused the first 3 requests (307: ",),
    ),
    Story(
        faults=("F31",),
        tells="ignore_eos is refused from the first request on",
        play=refuses_from_the_first(plain("400 Bad Request", NO_IGNORE_EOS)),
        exit_code=2,
        status=None,
        words=("HTTP 400: ", "ignore_eos is not supported", "set `ignore_eos: false`"),
    ),
    Story(
        faults=("F37",),
        tells="a redirect to another origin, from the first request on",
        play=sends_elsewhere(from_the_first=True),
        exit_code=2,
        status=None,
        words=("HTTP 307 to ", "redirects are refused"),
    ),
    Story(
        faults=("F38",),
        tells="/metrics broken in seven ways",
        play=metrics_of_all_kinds,
        exit_code=4,
        status="INCONCLUSIVE",
        words=("/metrics could not be read",),
    ),
    Story(
        faults=("F59",),
        tells="the server slows down to a third",
        play=slows_down,
        exit_code=4,
        status="INCONCLUSIVE",
        words=("which pace of the server is the usual one",),
    ),
)
