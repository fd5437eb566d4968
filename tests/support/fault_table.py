"""Faults of servers, streams and the client, and the answer to each: the source of docs/reference/faults.md.

`python tests/support/fault_table.py` prints the page. A row's answer is tested by what carries its number in
fault_cases (one request), fault_stories (a whole run), test_pages (a metrics page), test_process_faults,
test_process_limits or test_slow_disk (the client's own machine).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Fault:
    """`exit_code` is that of a run that meets it with more than a stray request; None: it harms none."""

    number: str
    happens: str
    answer: str
    exit_code: int | None
    not_yet: str | None = None
    """What the answer still lacks, and why."""


FAULTS: Final = (
    Fault(
        "F01",
        "the engine dies during the run",
        "requests end as `stream_error`, `http_5xx`, `truncated` or `connect_refused`; after 5 s of failures "
        "the load stops; VOID, and the last level that held is named",
        3,
    ),
    Fault(
        "F02",
        "the engine hangs while the API answers 200",
        "`stall_ttft` or `stall_gap`; once nobody has got a token for the longer of both limits, or for five "
        "of the p99 gaps that answers usually have where that is longer, the load stops; VOID. /health is "
        "not asked",
        3,
    ),
    Fault(
        "F03",
        "the server restarts during the run",
        "seen by its start time or by a counter that falls; VOID. No level is repeated: a server that died "
        "under a load is not signed at it ([why](../decisions/0014-no-level-is-repeated-after-a-restart.md))",
        3,
    ),
    Fault("F04", "500 for lack of GPU memory", "`http_5xx`, the server's words kept to 500 bytes", 1),
    Fault("F05", "503, the queue is full", "`http_503_admission`, not sent again; the wall is admission", 1),
    Fault(
        "F06",
        "429 with any Retry-After",
        "`http_429`; the header is not obeyed, users rest `failure_pause_s`; the wall is admission",
        1,
    ),
    Fault(
        "F07",
        "401 or 403",
        "told before the load; if only the load is refused, its third refusal ends it. The key is blotted "
        "out",
        2,
    ),
    Fault("F08", "another model name", "told before the load, with the names that are served", 2),
    Fault("F09", "requests longer than max_model_len", "told before the load, from the lengths alone", 2),
    Fault("F10", "an error event first, between or last", "`stream_error`, whatever else came", 1),
    Fault("F11", "`event: error`", "`stream_error`", 1),
    Fault("F12", "200 with a page that is no stream", "`bad_payload`, the page's first words kept", 2),
    Fault("F13", "a clean end without [DONE]", "`truncated`", 1),
    Fault("F14", "[DONE] without a finish reason", "`truncated`", 1),
    Fault("F15", "FIN or RST inside the stream", "`truncated` or `reset_midstream`; never sent again", 1),
    Fault("F16", "half-open: no byte and no FIN", "`stall_gap` at its limit; other rows are written", 1),
    Fault("F17", "headers or the first token never come", "`stall_ttft` at its limit", 1),
    Fault(
        "F18", "a byte now and then, for ever", "`deadline`, or `stall_ttft` when no token is among them", 1
    ),
    Fault(
        "F19",
        "a kept connection closed while idle",
        "sent once more, only if it was reused and no byte came; `retried`, and the clock goes on",
        None,
    ),
    Fault("F20", "`Connection: close`", "no failure: the next request connects again", None),
    Fault("F21", "a character cut by a chunk's end", "`ok`, as if it came whole", None),
    Fault("F22", "an answer cut at any byte", "the same record", None),
    Fault(
        "F23",
        "several events in one read, a buffering proxy",
        "`ok`; counted in `coalesced_reads`; the answer before the load warns; where a level breaks, most "
        "answers came so and the client was on time, the wall is network (a late API server looks the same)",
        None,
    ),
    Fault(
        "F24",
        "several tokens in one event",
        "TPOT from the usage; `first_chunk_tokens` where usage stands on every chunk, else 1, and the report "
        "says by how much TPOT may be too small then",
        None,
    ),
    Fault("F25", "a chunk with the role alone", "no token: it does not end TTFT", None),
    Fault(
        "F26",
        "`reasoning` or `reasoning_content`",
        "the first token of any channel ends TTFT; `first_output_ns` tells when the answer proper began",
        None,
    ),
    Fault("F27", "tool calls without content", "tokens like others", None),
    Fault("F28", "usage missing, null, everywhere, in odd places", "INCONCLUSIVE where over 1% tell none", 4),
    Fault("F29", "usage that cannot be true", "VOID", 5),
    Fault("F30", "answers shorter than planned", "`short_eos`; INCONCLUSIVE beyond 10% in the mean", 4),
    Fault(
        "F31",
        "ignore_eos refused, or harmful",
        "refused: told before the load, in the server's words and with the key `ignore_eos: false`, which "
        "leaves it out. Not honoured: told likewise, and F30",
        2,
    ),
    Fault(
        "F32",
        "the prefix cache holds more of the prompts than the scenario says",
        "INCONCLUSIVE: over 1% of the looked-up tokens of unique prompts, or over a tenth more than is "
        "shared; of conversations, tools, Mooncake's traces and recorded prompts not made unique the "
        "report says that it was not judged, and the share that was found",
        4,
    ),
    Fault("F33", "the server counts other prompts than planned", "INCONCLUSIVE beyond 2% in the mean", 4),
    Fault("F34", "gzip, deflate, br; bombs", "`bad_payload`: identity was asked for, nothing is unpacked", 1),
    Fault("F35", "bogus lengths, chunk sizes, headers", "`bad_payload` or `truncated`; 64 KiB of headers", 1),
    Fault("F36", "1xx, HTTP/1.0, trailers", "`ok`", None),
    Fault("F37", "a redirect", "refused everywhere: the other origin sees neither key nor request", 2),
    Fault(
        "F38",
        "/metrics 404, 401, HTML, slow, huge, cut, gzip",
        "the load goes on, each look in vain is a gap with its reason; INCONCLUSIVE",
        4,
    ),
    Fault(
        "F39",
        "metrics under other names",
        "those of vLLM 0.6 to 0.32 and of LMDeploy are known; any other figure is absent, never zero; "
        "INCONCLUSIVE where queue or preemptions are",
        4,
    ),
    Fault(
        "F40",
        "several engines behind one page",
        "summed, the fullest cache beside the mean; absent where one engine is not shown",
        None,
    ),
    Fault(
        "F41",
        "several API servers behind one address",
        "only what is counted once for a request or a token is read; restarts show by counters that fall; "
        "`n` and its like are refused",
        None,
    ),
    Fault("F42", "NaN, Inf, doubles, `_created` on /metrics", "not seen, or counted once; never zero", None),
    Fault(
        "F43",
        "more users than file descriptors",
        "the soft limit is raised; beyond the hard one it is told before the load",
        2,
    ),
    Fault("F44", "no local port is left", "`client_ports`; VOID, the client's fault by name", 5),
    Fault(
        "F45",
        "no listener, dropped SYN, no such name, TLS",
        "`connect_refused`, `connect_timeout`, `dns`, `tls`",
        3,
    ),
    Fault(
        "F48",
        "a load process is killed",
        "its requests in flight are `client_lost`, the others go on; VOID",
        5,
    ),
    Fault("F49", "a load process is held still for seconds", "VOID: it stood still, and for how long", 5),
    Fault(
        "F50",
        "the process that leads the load is killed",
        "no other outlives it by 5 s; `ullage recover` finds every row, and its report signs nothing off",
        None,
    ),
    Fault(
        "F51",
        "SIGINT, SIGTERM, SIGHUP; SIGINT twice",
        "once: what is in flight is cancelled, and the report made; twice: an end at once, every row whole",
        130,
    ),
    Fault(
        "F52",
        "requests of somebody before still run in the server",
        "the load waits for them, and is refused where they do not end",
        2,
    ),
    Fault(
        "F53",
        "the disk is full",
        "the load stops with one sentence; every whole row is read",
        2,
    ),
    Fault("F54", "the run folder is removed", "the load stops with one sentence", 2),
    Fault(
        "F55",
        "the disk stalls",
        "syncing is waited for beside the load and delays no request; where writing a row waits, the load "
        "waits with it: beyond 2 s VOID, it stood still, and below by how late requests were sent",
        5,
    ),
    Fault(
        "F56",
        "millions of requests",
        "rows go to disk one by one: the client's memory does not grow with them",
        None,
    ),
    Fault("F57", "a port is taken, or a run folder in use", "told in one sentence, the other is unharmed", 2),
    Fault("F58", "no GPU to be read", "a note, no fault", None),
    Fault("F59", "the server becomes x1.5 slower or faster in a level", "INCONCLUSIVE", 4),
    Fault("F62", "LMDeploy's `error` or `abort` as finish reason", "`aborted`; if it hangs after, F02", 1),
    Fault(
        "F63",
        "LMDeploy's limiter bounds no stream",
        "the flag is never read; more running than max_num_seqs is INCONCLUSIVE",
        4,
    ),
    Fault(
        "F64",
        "hostile words, 10 MB tokens, lone surrogates",
        "stored plain and short; pages run nothing",
        None,
    ),
)


def page() -> str:
    """The whole reference page, Markdown."""
    lines = [
        "# Faults of servers, streams and the client",
        "",
        "What Ullage does when the server, the wire or its own machine misbehaves. The outcomes are those of",
        "[rows](records.md), the exit codes those of [`ullage`](exit-codes.md), for a run that meets the",
        "fault with more than a stray request; a dash means that it harms no run, or that nobody is left to",
        "say one. Every line is tested (`tests/faults/`), nearly all over real sockets, and in all of them",
        "each request that was issued ends in exactly one outcome.",
        "",
        "| | what happens | what Ullage does | exit |",
        "|---|---|---|---|",
    ]
    for fault in FAULTS:
        code = "–" if fault.exit_code is None else str(fault.exit_code)  # noqa: RUF001
        lines.append(f"| {fault.number} | {fault.happens} | {fault.answer} | {code} |")
    if any(fault.not_yet is not None for fault in FAULTS):
        lines += ["", "## Not yet", ""]
    lines += [f"- {fault.number}: {fault.not_yet}." for fault in FAULTS if fault.not_yet is not None]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
