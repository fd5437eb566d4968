"""A profile is data a person edits: what is wrong with it is said in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from estimator.spec import SpecError
from estimator.twin.profile import parse_profile, read_profile

TINY = Path(__file__).resolve().parents[3] / "configs/engines/tiny.yaml"


def tiny() -> dict[str, Any]:
    body: dict[str, Any] = yaml.safe_load(TINY.read_text())
    return body


def test_the_tiny_profile_is_the_cache_of_512_blocks_of_32() -> None:
    profile = read_profile("tiny")
    assert (profile.num_gpu_blocks, profile.block_size, profile.pool.usable_blocks) == (512, 32, 511)
    assert profile.served_model_name == "tiny"


def test_an_unknown_key_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"unknown key 'max_num_seq'; known are .*max_num_seqs"):
        parse_profile({**tiny(), "max_num_seq": 3})
    body = tiny()
    body["step_cost"]["fixed_ms"] = 1
    with pytest.raises(SpecError, match=r"unknown key 'step_cost.fixed_ms'; known are fixed_s"):
        parse_profile(body)


def test_a_missing_key_is_named() -> None:
    body = tiny()
    del body["block_size"]
    with pytest.raises(SpecError, match="'block_size' is missing"):
        parse_profile(body)


def test_a_wrong_type_is_named() -> None:
    with pytest.raises(SpecError, match="max_num_seqs: Input should be a valid integer"):
        parse_profile({**tiny(), "max_num_seqs": "many"})
    with pytest.raises(SpecError, match="a mapping of keys"):
        parse_profile(["tiny"])


def test_a_cache_too_small_for_one_longest_request_is_refused_as_vllm_does() -> None:
    parse_profile({**tiny(), "num_gpu_blocks": 65})
    with pytest.raises(SpecError, match="max_model_len 2048 needs 64 blocks and the cache has 63"):
        parse_profile({**tiny(), "num_gpu_blocks": 64})


def test_an_unknown_profile_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="did you mean 'tiny'"):
        read_profile("tyni")
    with pytest.raises(SpecError, match="known: none"):
        read_profile("tiny", tmp_path)


@pytest.mark.parametrize("text", ["a: [", "\t", "42", ""])
def test_a_file_that_is_no_profile_is_one_sentence_with_its_path(tmp_path: Path, text: str) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"odd\.yaml") as raised:
        read_profile("odd", tmp_path)
    assert "\n" not in str(raised.value)


def test_prefix_caching_the_policy_and_the_watermark_reach_the_scheduler() -> None:
    plain = parse_profile(tiny()).limits
    assert (plain.enable_prefix_caching, plain.policy, plain.watermark) == (False, "fcfs", 0.0)
    chosen = {"enable_prefix_caching": True, "scheduling_policy": "priority", "watermark": 0.1}
    limits = parse_profile({**tiny(), **chosen}).limits
    assert (limits.enable_prefix_caching, limits.policy, limits.watermark_blocks) == (True, "priority", 51)


def test_a_policy_that_vllm_does_not_have_is_refused() -> None:
    with pytest.raises(SpecError, match="scheduling_policy: Input should be 'fcfs' or 'priority'"):
        parse_profile({**tiny(), "scheduling_policy": "lifo"})
    with pytest.raises(SpecError, match="watermark must be a share"):
        parse_profile({**tiny(), "watermark": 1.0})


def test_cache_groups_follow_from_a_model_and_stand_in_no_file() -> None:
    with pytest.raises(SpecError, match="'groups' follows from a model; leave it out, or start with --model"):
        parse_profile({**tiny(), "groups": []})
    with pytest.raises(SpecError, match=r"unknown key 'group'; known are .*watermark$"):
        parse_profile({**tiny(), "group": []})
