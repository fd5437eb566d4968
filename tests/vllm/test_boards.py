"""What boards, rules and collector read of vLLM is on the page of a real one that has served a request."""

from __future__ import annotations

import json
import urllib.request

from board_names import expressions, missing
from vllm_server import Vllm

from loadtest.collector.engine_metrics import VLLM, read_engine_page


def page_after_a_request(vllm: Vllm) -> str:
    with urllib.request.urlopen(f"{vllm.host}/v1/models", timeout=30) as answer:
        model = json.load(answer)["data"][0]["id"]
    body = json.dumps({"model": model, "prompt": "What is ullage?", "max_tokens": 8, "ignore_eos": True})
    request = urllib.request.Request(
        f"{vllm.host}/v1/completions", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()
    with urllib.request.urlopen(f"{vllm.host}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def test_every_name_and_label_that_is_read_of_vllm_is_there(vllm: Vllm) -> None:
    page = page_after_a_request(vllm)
    assert missing(page, list(expressions("vllm")), "vllm") == []
    reading = read_engine_page(page)
    assert reading.skipped_lines == 0
    assert set(VLLM) <= set(reading.signals)
