"""What a server may do to one request, by the number of the fault, and how that request must end."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fault_server import (
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    Drip,
    Hang,
    Reset,
    Script,
    Wait,
    chunk,
    event,
    events,
    plain,
)

from loadtest.records import Outcome
from loadtest.scenario import Timeouts

LIMITS: Final = Timeouts(connect_s=1.0, first_token_s=3.0, between_tokens_s=3.0, total_s=8.0)
QUICK: Final = Timeouts(connect_s=1.0, first_token_s=0.3, between_tokens_s=0.3, total_s=0.6)
"""For a server that says nothing: the test waits as long."""
PLANNED: Final = 3


def token(text: str = "a", finish: str = "null") -> str:
    return f'{{"choices":[{{"index":0,"text":"{text}","finish_reason":{finish}}}]}}'


def delta(fields: str, finish: str = "null", usage: str = "") -> str:
    return f'{{"choices":[{{"index":0,"delta":{{{fields}}},"finish_reason":{finish}}}]{usage}}}'


def usage(tokens: object = 3, prompt: object = 8) -> str:
    return f'"usage":{{"prompt_tokens":{prompt},"completion_tokens":{tokens}}}'


USAGE: Final = f'{{"choices":[],{usage()}}}'
END: Final = (USAGE, "[DONE]")
TOKENS: Final = (token("a"), token("b"), token("c", '"length"'))
GOOD: Final = STREAM_HEAD + events(*TOKENS, *END) + LAST_CHUNK
HTML: Final = b"<html><body>502 Bad Gateway</body></html>"
ERROR: Final = (
    '{"error":{"message":"EngineCore encountered an issue","type":"InternalServerError","code":500}}'
)
SSE_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def stream(*data: str) -> bytes:
    return STREAM_HEAD + events(*data) + LAST_CHUNK


def single_bytes(content: bytes) -> tuple[bytes, ...]:
    return tuple(content[at : at + 1] for at in range(len(content)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A fault, what the server does, and how the request must end."""

    fault: str
    does: str
    says: Script
    outcome: Outcome
    words: str = ""
    """What the row's error must tell."""
    status: int | None = 200
    chunks: int = 0
    """Token events whose times are kept."""
    at_least: bool = False
    """More of them may come: how many fit into a time is up to the machine."""
    tokens: int | None = None
    tls: bool = False
    limits: Timeouts = LIMITS


def ok(fault: str, does: str, says: Script, chunks: int = 3) -> Case:
    return Case(fault=fault, does=does, says=says, outcome="ok", chunks=chunks, tokens=3)


def refused(fault: str, status: str, outcome: Outcome, body: bytes = b"no", *headers: str) -> Case:
    words = body.decode()[:20]
    says = (plain(status, body, "application/json", *headers),)
    number = int(status.split()[0])
    return Case(fault=fault, does=status, says=says, outcome=outcome, words=words, status=number)


def failed(fault: str, does: str, says: Script, outcome: Outcome, words: str = "", chunks: int = 0) -> Case:
    tokens = 3 if any(isinstance(step, bytes) and event(USAGE) in step for step in says) else None
    return Case(fault=fault, does=does, says=says, outcome=outcome, words=words, chunks=chunks, tokens=tokens)


def silent(fault: str, does: str, says: Script, outcome: Outcome, chunks: int, status: int | None) -> Case:
    return Case(
        fault=fault,
        does=does,
        says=says,
        outcome=outcome,
        words="time limit",
        chunks=chunks,
        status=status,
        limits=QUICK,
        at_least=True,
    )


CHUNKED: Final = SSE_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ONE: Final = STREAM_HEAD + events(token())
ROLE: Final = delta('"role":"assistant","content":""')
BOMB: Final = gzip.compress(gzip.compress(bytes(10**6)))
MANY_HEADERS: Final = b"".join(b"X-%d: y\r\n" % n for n in range(10_000))

TABLE: Final[Sequence[Case]] = (
    failed("F01", "an error frame, then the end", (stream(token(), ERROR),), "stream_error", "EngineCore", 1),
    refused("F01", "500 Internal Server Error", "http_5xx", b'{"error":"EngineDeadError"}'),
    silent("F02", "a token, then nothing while the connection stays", (ONE, Hang()), "stall_gap", 1, 200),
    refused("F04", "500 Internal Server Error", "http_5xx", b"CUDA out of memory " * 100),
    refused("F05", "503 Service Unavailable", "http_503_admission", b"queue full"),
    refused("F06", "429 Too Many Requests", "http_429", b"slow down", "Retry-After: 1"),
    refused(
        "F06", "429 Too Many Requests", "http_429", b"slow down", "Retry-After: Wed, 21 Oct 2099 07:28:00 GMT"
    ),
    refused("F06", "429 Too Many Requests", "http_429", b"slow down", "Retry-After: \x80soon"),
    refused("F06", "429 Too Many Requests", "http_429", b"slow down", "Retry-After: 1000000000"),
    refused("F07", "401 Unauthorized", "http_4xx", b'{"error":"invalid key"}'),
    refused("F07", "403 Forbidden", "http_4xx", b'{"error":"forbidden"}'),
    refused("F08", "404 Not Found", "http_4xx", b"The model `x` does not exist."),
    refused("F09", "400 Bad Request", "http_4xx", b"maximum context length is 2048"),
    failed("F10", "an error frame before any token", (stream(ERROR),), "stream_error", "EngineCore"),
    failed(
        "F10",
        "an error frame between tokens",
        (stream(token(), ERROR, token(), *END),),
        "stream_error",
        "EngineCore",
        2,
    ),
    failed(
        "F10",
        "an error frame after a whole answer",
        (stream(*TOKENS, USAGE, ERROR, "[DONE]"),),
        "stream_error",
        "EngineCore",
        3,
    ),
    failed(
        "F11",
        "`event: error`",
        (ONE + chunk(b"event: error\ndata: engine died\n\n") + LAST_CHUNK,),
        "stream_error",
        "engine died",
        1,
    ),
    failed(
        "F12", "200 with a proxy's page", (plain("200 OK", HTML, "text/html"),), "bad_payload", "Bad Gateway"
    ),
    failed(
        "F12",
        "200 with JSON that is no stream",
        (plain("200 OK", b'{"choices":[]}'),),
        "bad_payload",
        "choices",
    ),
    failed(
        "F12",
        "a page inside an event stream",
        (STREAM_HEAD + chunk(b"data: <html>\n\n") + LAST_CHUNK,),
        "bad_payload",
        "<html>",
    ),
    failed("F13", "a clean end without [DONE]", (stream(*TOKENS, USAGE),), "truncated", "truncated", 3),
    failed(
        "F14",
        "[DONE] without a finish reason",
        (stream(token(), token(), *END),),
        "truncated",
        "truncated",
        2,
    ),
    failed(
        "F15",
        "FIN inside an event",
        (STREAM_HEAD + events(token()) + b"80\r\ndata: {", Close()),
        "truncated",
        "truncated",
        1,
    ),
    failed("F15", "FIN inside the headers", (STREAM_HEAD[:40], Close()), "truncated", "inside its headers"),
    failed(
        "F15",
        "RST in the stream",
        (ONE, Wait(0.1), Reset()),
        "reset_midstream",
        "ConnectionResetError [errno 104]",
        1,
    ),
    silent(
        "F16",
        "half-open: no byte more, no FIN",
        (STREAM_HEAD + events(token(), token()), Hang()),
        "stall_gap",
        2,
        200,
    ),
    silent("F17", "headers never come", (Hang(),), "stall_ttft", 0, None),
    silent("F17", "headers come, tokens do not", (STREAM_HEAD, Hang()), "stall_ttft", 0, 200),
    silent(
        "F18",
        "a byte now and then, tokens among them",
        (STREAM_HEAD, Drip(events(token()), 0.05)),
        "deadline",
        2,
        200,
    ),
    silent(
        "F18",
        "a byte of the headers now and then",
        (b"HTTP/1.1 200 OK\r\n", Drip(b"a", 0.05)),
        "stall_ttft",
        0,
        200,
    ),
    ok(
        "F20",
        "`Connection: close`",
        (GOOD.replace(b"\r\nTransfer", b"\r\nConnection: close\r\nTransfer"), Close()),
    ),
    ok(
        "F21",
        "characters of several bytes, a byte a chunk",
        (
            STREAM_HEAD,
            *map(
                chunk,
                single_bytes(
                    event(token("a"))
                    + event(token("\N{SMILING FACE WITH OPEN MOUTH}é"))
                    + event(token("€", '"stop"'))
                    + event(USAGE)
                    + event("[DONE]")
                ),
            ),
            LAST_CHUNK,
        ),
    ),
    ok("F22", "every byte of the answer by itself", single_bytes(GOOD)),
    ok(
        "F23",
        "all events in one chunk",
        (STREAM_HEAD + chunk(b"".join(map(event, (*TOKENS, *END)))) + LAST_CHUNK,),
    ),
    ok("F24", "two tokens in one event", (stream(token("a"), token("b c", '"length"'), *END),), 2),
    ok(
        "F25",
        "the role first, by itself",
        (stream(ROLE, *(delta('"content":"a"'),) * 2, delta('"content":"a"', '"stop"'), *END),),
    ),
    ok(
        "F26",
        "`reasoning` before content",
        (
            stream(
                ROLE,
                delta('"reasoning":"hm"'),
                delta('"content":"a"'),
                delta('"content":"a"', '"stop"'),
                *END,
            ),
        ),
    ),
    ok(
        "F26",
        "`reasoning_content` before content",
        (
            stream(
                ROLE,
                delta('"reasoning_content":"hm"'),
                delta('"content":"a"'),
                delta('"content":"a"', '"stop"'),
                *END,
            ),
        ),
    ),
    ok(
        "F27",
        "tool calls and no content",
        (
            stream(
                ROLE,
                *(delta('"tool_calls":[{"index":0,"function":{"arguments":"{"}}]'),) * 3,
                delta("", '"tool_calls"'),
                *END,
            ),
        ),
    ),
    Case(fault="F28", does="no usage", says=(stream(*TOKENS, "[DONE]"),), outcome="ok", chunks=3),
    Case(
        fault="F28",
        does="`usage: null`",
        says=(stream(*TOKENS, '{"choices":[],"usage":null}', "[DONE]"),),
        outcome="ok",
        chunks=3,
    ),
    ok(
        "F28",
        "usage on every chunk",
        (
            stream(
                *(delta('"content":"a"', "null", f",{usage(n)}") for n in (1, 2)),
                delta('"content":"a"', '"stop"', f",{usage()}"),
                "[DONE]",
            ),
        ),
    ),
    ok(
        "F28",
        "usage in the last content chunk",
        (stream(*TOKENS[:2], delta('"content":"c"', '"length"', f",{usage()}"), "[DONE]"),),
    ),
    ok(
        "F28",
        "usage in a chunk of empty text",
        (
            stream(
                *TOKENS,
                f'{{"choices":[{{"index":0,"delta":{{}},"finish_reason":null}}],{usage()}}}',
                "[DONE]",
            ),
        ),
    ),
    Case(
        fault="F29",
        does="usage tells twice the tokens",
        says=(stream(*TOKENS, f'{{"choices":[],{usage(6)}}}', "[DONE]"),),
        outcome="ok",
        chunks=3,
        tokens=6,
    ),
    Case(
        fault="F30",
        does="the model stops early",
        says=(stream(token(), token("b", '"stop"'), f'{{"choices":[],{usage(2)}}}', "[DONE]"),),
        outcome="short_eos",
        chunks=2,
        tokens=2,
    ),
    refused("F31", "400 Bad Request", "http_4xx", b"ignore_eos is not supported"),
    failed(
        "F34",
        "a gzip answer",
        (SSE_HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB,),
        "bad_payload",
        "gzip-encoded",
    ),
    failed(
        "F34",
        "a br answer",
        (SSE_HEAD + b"Content-Encoding: br\r\nContent-Length: 3\r\n\r\nabc",),
        "bad_payload",
        "br-encoded",
    ),
    failed(
        "F35",
        "a content length that is none",
        (SSE_HEAD + b"Content-Length: many\r\n\r\n",),
        "bad_payload",
        "not a content length",
    ),
    failed(
        "F35",
        "a content length that is too long",
        (SSE_HEAD + b"Content-Length: 9999\r\n\r\n" + event(token()), Close()),
        "truncated",
        "truncated",
        1,
    ),
    failed("F35", "a chunk size that is none", (CHUNKED + b"zz\r\n",), "bad_payload", "not a chunk size"),
    failed(
        "F35",
        "a header of 70,000 bytes",
        (SSE_HEAD + b"X: " + b"y" * 70_000, Hang()),
        "bad_payload",
        "more than 65536 bytes",
    ),
    failed(
        "F35",
        "10,000 headers",
        (SSE_HEAD + MANY_HEADERS + b"\r\n", Hang()),
        "bad_payload",
        "more than 65536 bytes",
    ),
    Case(
        fault="F35",
        does="another protocol",
        says=(b"SSH-2.0-OpenSSH_9.6\r\n",),
        outcome="bad_payload",
        words="not an HTTP/1 status line",
        status=None,
    ),
    ok(
        "F36",
        "100 Continue and 103 before the answer",
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + GOOD,),
    ),
    ok(
        "F36",
        "HTTP/1.0, ended by FIN",
        (SSE_HEAD.replace(b"1.1", b"1.0") + b"\r\n" + b"".join(map(event, (*TOKENS, *END))), Close()),
    ),
    ok("F36", "trailers", (STREAM_HEAD + events(*TOKENS, *END) + b"0\r\nX-Checksum: 1\r\n\r\n",)),
    refused("F37", "307 Temporary Redirect", "bad_payload", b"moved", "Location: http://127.0.0.1:9/"),
    refused("F37", "301 Moved Permanently", "bad_payload", b"moved", "Location: http://127.0.0.1:9/"),
    Case(
        fault="F45",
        does="a certificate nobody trusts",
        says=(GOOD,),
        outcome="tls",
        words="certificate",
        status=None,
        tls=True,
    ),
    failed(
        "F62",
        "LMDeploy's finish reason `abort`",
        (stream(token(), token("", '"abort"'), *END),),
        "aborted",
        "aborted",
        2,
    ),
    failed(
        "F62",
        "LMDeploy's finish reason `error`",
        (stream(token(), token("", '"error"'), *END),),
        "aborted",
        "aborted",
        2,
    ),
    ok(
        "F64",
        "ANSI, NUL and `</script>` as tokens",
        (stream(token("\\u001b[2J\\u0000"), token("</script>"), token("\\ud800", '"stop"'), *END),),
    ),
    ok(
        "F64",
        "a token of 10 MB",
        (STREAM_HEAD + events(token("x" * 10**7)) + events(*TOKENS[1:], *END) + LAST_CHUNK,),
    ),
    failed(
        "F64",
        "such words as an error",
        (stream('{"error":{"message":"\\u001b[2J</script>\\u0000\\ud800' + "x" * 9000 + '"}}'),),
        "stream_error",
        "</script>",
    ),
)
