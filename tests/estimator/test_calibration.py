"""What a real start taught is used again for the same settings, and for no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from estimator.calibration import (
    Settings,
    calibration_path,
    overheads_from_blocks,
    overheads_from_log,
    recall,
    remember,
)
from estimator.kv_group import full_group
from estimator.memory import KV_CACHE, EngineLimits, KvBudget, Line, Overheads, settle
from estimator.server_log import ServerLog
from estimator.spec import Interval, SpecError
from estimator.units import GIB

HERE = Settings(
    model="Qwen3-8B",
    gpu="h100-80gb",
    engine="vllm",
    version="0.32",
    tp=1,
    pp=1,
    max_num_batched_tokens=8192,
    max_num_seqs=1024,
    enforce_eager=False,
)
MEASURED = Overheads(
    activation_bytes=Interval(low=1.22 * GIB, likely=1.23 * GIB, high=1.24 * GIB),
    cuda_graph_bytes=Interval.exact(0.62 * GIB),
    non_torch_bytes=None,
    source="server log",
)


def test_what_was_learned_is_used_again_and_says_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "calibration.json"
    remember(HERE, MEASURED, path)
    found = recall(HERE, path)
    assert found == replace(MEASURED, source="calibrated (server log)")


@pytest.mark.parametrize("change", [{"tp": 2}, {"max_num_batched_tokens": 2048}, {"gpu": "l40s-48gb"}])
def test_other_settings_are_another_server(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "calibration.json"
    remember(HERE, MEASURED, path)
    assert recall(replace(HERE, **change), path) is None  # type: ignore[arg-type]


def test_a_later_lesson_replaces_the_earlier(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    remember(HERE, MEASURED, path)
    remember(replace(HERE, tp=2), MEASURED, path)
    remember(HERE, replace(MEASURED, cuda_graph_bytes=Interval.exact(7.0)), path)
    found = recall(HERE, path)
    assert found is not None
    assert found.cuda_graph_bytes == Interval.exact(7.0)
    assert recall(replace(HERE, tp=2), path) is not None


def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    for text in ("not json", "[]", '{"format": 9, "entries": []}', '{"format": 1, "entries": [{}]}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(SpecError, match="is not a calibration file of format 1"):
            remember(HERE, MEASURED, path)
        assert path.read_text(encoding="utf-8") == text


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SpecError, match="set ULLAGE_CALIBRATION"):
        remember(HERE, MEASURED, tmp_path / "file" / "calibration.json")


def test_the_file_is_where_the_user_keeps_data() -> None:
    assert calibration_path({"ULLAGE_CALIBRATION": "/a/b.json"}) == Path("/a/b.json")
    assert calibration_path({"XDG_DATA_HOME": "/data"}) == Path("/data/ullage/calibration.json")


def test_a_log_without_overheads_is_refused() -> None:
    with pytest.raises(SpecError, match="give the whole start-up output"):
        overheads_from_log(ServerLog(weights_bytes=Interval.exact(5.0)))


def budget(block_bytes: int = 1_000) -> KvBudget:
    claims = [
        Line(name=name, size_bytes=Interval.exact(size), source="test")
        for name, size in (
            ("weights", 50_000),
            ("activation peak", 8_000),
            ("CUDA graphs", 1_500),
            ("outside PyTorch", 500),
        )
    ]
    return KvBudget(
        limits=EngineLimits(
            max_model_len=64, max_num_seqs=8, max_num_batched_tokens=64, block_size=16, memory_share=0.92
        ),
        ledgers=(settle(100_000, claims, KV_CACHE, "the rest"),),
        blocks=Interval.exact(40),
        reserved_blocks=1,
        bytes_per_block=(block_bytes,),
        groups=(full_group(16),),
        stored_as="bfloat16",
        source="config",
        cautions=(),
    )


def test_a_running_servers_blocks_give_all_overheads_to_one_block() -> None:
    """50,000 are left beside the weights; 43 blocks of 1,000 leave 6,001 to 7,000 for the rest."""
    learned = overheads_from_blocks(budget(), num_gpu_blocks=43)
    assert learned.activation_bytes == Interval(low=6_001, likely=6_500.5, high=7_000)
    assert learned.cuda_graph_bytes == learned.non_torch_bytes == Interval.exact(0)


def test_more_blocks_than_fit_is_another_server() -> None:
    with pytest.raises(SpecError, match="correct --gpu"):
        overheads_from_blocks(budget(), num_gpu_blocks=51)
