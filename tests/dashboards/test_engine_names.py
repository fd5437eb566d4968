"""Boards and rules read what the recorded pages of both engines show, names and labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from board_names import expressions, missing

PAGES = Path(__file__).parents[1] / "fixtures" / "metrics"
RECORDED = {"vllm": "vllm-0.32-loaded.txt", "lmdeploy": "lmdeploy-0.18.txt"}


@pytest.mark.parametrize("engine", RECORDED)
def test_everything_that_is_read_of_an_engine_is_on_its_page(engine: str) -> None:
    asked = list(expressions(engine))
    assert len(asked) >= 10
    assert missing((PAGES / RECORDED[engine]).read_text("utf-8"), asked, engine) == []


def test_a_name_or_a_label_that_is_not_there_is_found() -> None:
    page = (PAGES / RECORDED["vllm"]).read_text("utf-8")
    asked = ['sum by (job, model_name) (vllm:cache_config_info{engine="0"})', "vllm:num_requests_runing"]
    assert missing(page, asked, "vllm") == [
        "vllm:cache_config_info has no model_name",
        "vllm:num_requests_runing: vllm:num_requests_runing",
    ]


def test_one_of_two_names_is_enough_where_a_rule_knows_both() -> None:
    page = (PAGES / RECORDED["vllm"]).read_text("utf-8")
    assert missing(page, ["vllm:kv_cache_usage_perc or vllm:gpu_cache_usage_perc"], "vllm") == []
    assert missing(page, ["vllm:this or vllm:that"], "vllm") != []
