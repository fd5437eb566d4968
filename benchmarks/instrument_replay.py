"""What a read and a request cost the load client in Python: answers of vLLM's form, without sockets.

`python benchmarks/instrument_replay.py [--streams 500 --best-of 7]`. Times are the process's own CPU, the
best of several rounds, so that other work on the machine matters less; the kernel's part is not in them. The
streams take turns, as on a wire: what one keeps has left the processor's cache when its next read comes.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time_ns
from types import SimpleNamespace
from typing import Any, Final

from locust.env import Environment

from loadtest.live_counts import LiveCounts
from loadtest.origin import Origin
from loadtest.row_file import RowWriter
from loadtest.scenario.reading import parse_scenario
from loadtest.workers.attempt import Attempt
from loadtest.workers.chat_user import ChatUser
from loadtest.workers.desk import Desk, Due, Script
from loadtest.workers.rows import ended_row, issued_row
from loadtest.workers.stream import Exchange
from loadtest.workers.watchdog import Watchdog
from loadtest.workload.asker import open_workload
from loadtest.workload.prompts import WORDS, ChatWords

TOKENS: Final = 200
ITL_NS: Final = 20_000_000
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
TEXTS: Final = {
    "English": (" word", " a", " the", " house", " of", " extraordinary", ".", " in", '\\"', "\\n"),
    "Chinese": ("的", "模型", "服务器", "。", "时间", "测试"),
}
SCENARIO: Final = {
    "name": "replay",
    "input_tokens": {"kind": "constant", "tokens": 32},
    "output_tokens": {"kind": "constant", "tokens": TOKENS},
    "stages": [{"users": 1, "hold_s": 10}],
}


def framed(data: str) -> bytes:
    body = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(body), body)


def said(stream: int, delta: str, finish: str = "null") -> bytes:
    choice = f'{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":{finish},"token_ids":null}}'
    head = (
        f'"id":"chatcmpl-{stream:016x}","object":"chat.completion.chunk","created":1795236677,"model":"tiny"'
    )
    return framed(f'{{{head},"model":"tiny","choices":[{choice}]}}')


def last(stream: int) -> bytes:
    usage = f'{{"choices":[],"usage":{{"prompt_tokens":32,"completion_tokens":{TOKENS}}}}}'
    return said(stream, '"content":"."', '"length"') + framed(usage) + framed("[DONE]") + b"0\r\n\r\n"


def heard(texts: Sequence[str], streams: int) -> tuple[float, list[Attempt]]:
    """CPU microseconds of a read of one token, and the attempts that took such reads to their end."""
    dice = random.Random(1)
    attempts = [Attempt(reused=False) for _ in range(streams)]
    for stream, one in enumerate(attempts):
        one.take(HEAD + said(stream, '"role":"assistant","content":""') + said(stream, '"content":"a"'), 1)
    spent_ns = 0
    for turn in range(1, TOKENS - 1):
        reads = [bytearray(said(stream, f'"content":"{dice.choice(texts)}"')) for stream in range(streams)]
        at_ns = turn * ITL_NS + dice.randrange(ITL_NS)
        begun_ns = process_time_ns()
        for read in reads:
            bytes(read)
        copied_ns = process_time_ns()
        for one, read in zip(attempts, reads, strict=True):
            one.take(bytes(read), at_ns)  # made just now, as os.read makes it
        spent_ns += process_time_ns() - copied_ns - (copied_ns - begun_ns)
    for stream, one in enumerate(attempts):
        end = last(stream)
        begun_ns = process_time_ns()
        one.take(end, TOKENS * ITL_NS)
        spent_ns += process_time_ns() - begun_ns
    return spent_ns / (streams * (TOKENS - 1)) / 1e3, attempts


def desk_of(folder: Path) -> tuple[Desk, ChatUser]:
    scenario = parse_scenario(SCENARIO)
    words = ChatWords(words=WORDS[:64], overhead_tokens=6)
    asker = open_workload(scenario, model="tiny", run_id="replay", worker=0, workers=1, chat=words)
    desk = Desk(
        worker=0,
        origin=Origin(scheme="http", host="127.0.0.1", port=8000),
        key=None,
        scripts={"ChatUser": Script(scenario=scenario, asker=asker, name="chat")},
        rows=RowWriter(folder / "rows.jsonl"),
        watchdog=Watchdog(scenario.timeouts, 0),
        counts=LiveCounts(scenario.limits),
        give_up=print,
    )
    environment = Environment(user_classes=[ChatUser])
    environment.create_local_runner()
    user = ChatUser(environment)
    user.desk, user.script = desk, desk.scripts["ChatUser"]
    return desk, user


def steps(desk: Desk, user: ChatUser, attempt: Attempt) -> dict[str, Callable[[], Any]]:
    """What is done for one request, beside its reads."""
    script = desk.scripts["ChatUser"]
    turn, due = desk.first(script), Due(at_ns=0)
    exchange: Any = SimpleNamespace(
        reply=attempt.reply,
        outcome="ok",
        connected_ns=None,
        sent_ns=1000,
        headers_ns=attempt.headers_ns,
        done_ns=attempt.stopped_ns,
        http_status=200,
        reused_connection=True,
        retried=False,
        error=None,
        error_type=None,
        error_number=None,
        stopped_by=None,
    )
    assert set(Exchange.__slots__) == set(vars(exchange))
    record = ended_row(desk, turn, due, exchange)
    gaps_ns = attempt.reply.sorted_gaps_ns()
    return {
        "prompt and body": lambda: desk.first(script),
        "row of the start": lambda: desk.rows.append(issued_row(desk, turn, due)),
        "an attempt": lambda: Attempt(reused=True),
        "gaps": attempt.reply.sorted_gaps_ns,
        "tally": lambda: desk.tally.add(0, gaps_ns, attempt.reply.token_ns),
        "live counts": lambda: desk.counts.add(record, gaps_ns),
        "the ended row, with the three above": lambda: ended_row(desk, turn, due, exchange),
        "row written": lambda: desk.rows.append(record),
        "watchdog": lambda: desk.watchdog.ended(record),
        "Locust told": lambda: user._tell_locust(record),  # noqa: SLF001
    }


def best_us(step: Callable[[], Any], rounds: int, times: int = 300) -> float:
    found = []
    for _ in range(rounds):
        begun_ns = process_time_ns()
        for _ in range(times):
            step()
        found.append(process_time_ns() - begun_ns)
    return min(found) / times / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--best-of", type=int, default=7)
    args = parser.parse_args()
    for language, texts in TEXTS.items():
        runs = [heard(texts, args.streams) for _ in range(args.best_of)]
        print(f"a read of one token, {language}: {min(us for us, _ in runs):.2f} us")
    attempt = runs[0][1][0]
    dice = random.Random(2)  # a gap is never the same twice
    times_ns = (int((100 + 20 * n + dice.gauss(0, 0.3)) * 1e6) for n in range(TOKENS))
    attempt.reply.token_ns = array("q", times_ns)
    with tempfile.TemporaryDirectory() as folder:
        for name, step in steps(*desk_of(Path(folder)), attempt).items():
            print(f"{name}: {best_us(step, args.best_of):.1f} us")


if __name__ == "__main__":
    main()
