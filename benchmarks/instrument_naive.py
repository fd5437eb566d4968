"""The streaming user people write first: Locust's FastHttpUser, its iter_lines, json.loads of each line."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant, events, task

BIN_NS = 10_000
SEEN: dict[str, Counter[int]] = {name: Counter() for name in ("ttft", "gap")}
BODY = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hello"}]}


class NaiveUser(FastHttpUser):
    wait_time = constant(0)

    @task
    def ask(self) -> None:
        last_ns = time.perf_counter_ns()
        first = True
        for line in self.client.iter_lines("/v1/chat/completions", method="POST", json=BODY):
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line[6:])["choices"]
            if not choices or not choices[0]["delta"].get("content"):
                continue
            now_ns = time.perf_counter_ns()
            SEEN["ttft" if first else "gap"][(now_ns - last_ns) // BIN_NS] += 1
            first, last_ns = False, now_ns


@events.quitting.add_listener
def write_seen(**_: Any) -> None:
    Path(os.environ["INSTRUMENT_OUT"]).write_text(json.dumps(SEEN))
