"""Names lead to files, and a wrong name to the right one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from estimator.catalog import configs_folder, find_model, names, read_gpu
from estimator.hf_config import read_model
from estimator.spec import SpecError
from estimator.units import GIB

GPU = (
    'memory_total_mib: 1000\nmemory_bandwidth_gb_per_s: 1\ndense_bf16_tflops: 1\ncompute_capability: "9.0"\n'
)


def write_gpu(root: Path, text: str) -> None:
    (root / "gpus").mkdir()
    (root / "gpus/mine.yaml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", names("models", configs_folder()))
def test_every_model_of_the_catalog_can_be_read(name: str) -> None:
    assert read_model(find_model(name)).name == name


@pytest.mark.parametrize("name", names("models", configs_folder()))
def test_every_model_of_the_catalog_is_a_condensed_config(name: str) -> None:
    text = find_model(name).read_text(encoding="utf-8")
    config = json.loads(text)
    assert isinstance(config["model_type"], str)
    assert [type(entry) for entry in config["architectures"]] == [str]
    # `tiny` is whole: a real vLLM loads it.
    assert name == "tiny" or not re.search(r'_token_id"|"auto_map"|"transformers_version"', text)


def test_every_model_of_the_catalog_has_its_line_in_the_readme() -> None:
    readme = (configs_folder() / "models/README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([^`]+)`", readme, re.MULTILINE) == names("models", configs_folder())


@pytest.mark.parametrize("name", names("gpus", configs_folder()))
def test_every_gpu_reports_less_memory_than_its_name_sells(name: str) -> None:
    gpu = read_gpu(name)
    sold_gb = int(name.rsplit("-", 1)[1].removesuffix("gb"))
    assert sold_gb - 4 < gpu.memory_total_bytes / GIB < sold_gb
    assert (gpu.compute_capability is not None) == (gpu.vendor == "nvidia")


@pytest.mark.parametrize("name", names("gpus", configs_folder()))
def test_every_figure_of_a_gpu_has_its_source_beside_it(name: str) -> None:
    text = (configs_folder() / f"gpus/{name}.yaml").read_text(encoding="utf-8")
    for figure in ("memory_total_mib", "memory_bandwidth_gb_per_s", "dense_bf16_tflops"):
        assert re.search(rf"^# {figure}: \S", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("h100", "h100-80gb"),
        ("H100-80GB", "h100-80gb"),
        ("l40s", "l40s-48gb"),
        ("b200", "b200-180gb"),
        ("RTX 4090", "rtx-4090-24gb"),
        ("ascend-910b", "ascend-910b-64gb"),
    ],
)
def test_a_gpu_is_found_without_its_memory_size_and_in_any_case(asked: str, found: str) -> None:
    assert read_gpu(asked).name == found


def test_a_gpu_sold_in_two_sizes_is_refused_with_both_named() -> None:
    with pytest.raises(SpecError, match="more than one size; choose a100-40gb or a100-80gb"):
        read_gpu("A100")


@pytest.mark.parametrize("asked", ["h", "rtx", "rtx-6000", "h100-8"])
def test_a_short_name_leaves_out_the_memory_size_and_nothing_else(asked: str) -> None:
    with pytest.raises(SpecError, match="did you mean"):
        read_gpu(asked)


def test_a_gpu_that_is_not_nvidias_needs_no_compute_capability(tmp_path: Path) -> None:
    write_gpu(tmp_path, "vendor: amd\n" + GPU.rsplit("compute_capability", 1)[0])
    assert read_gpu("mine", tmp_path).compute_capability is None


def test_the_hubs_spelling_finds_the_model_too() -> None:
    assert find_model("Qwen/qwen3-8b") == find_model("Qwen3-8B")


def test_a_path_wins_over_a_name(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(("asked", "meant"), [("Qwen3-9B", "Qwen3-8B"), ("llama-3-8b", "Llama-3.1-8B")])
def test_a_wrong_name_is_answered_with_the_nearest(asked: str, meant: str) -> None:
    with pytest.raises(SpecError, match=f"has no '{asked}'; did you mean .*{meant}"):
        find_model(asked)


def test_a_missing_file_is_not_taken_for_a_name() -> None:
    with pytest.raises(SpecError, match=r"there is no nowhere/config\.json"):
        find_model("nowhere/config.json")


def test_without_a_catalog_the_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="set ULLAGE_CONFIGS"):
        configs_folder({"ULLAGE_CONFIGS": str(tmp_path / "none")})


def test_the_variable_moves_the_catalog(tmp_path: Path) -> None:
    write_gpu(tmp_path, GPU)
    folder = configs_folder({"ULLAGE_CONFIGS": str(tmp_path)})
    assert read_gpu("mine", folder).memory_total_bytes == 1000 * 2**20


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (GPU + "memory: 3\n", "unknown key 'memory'"),
        (GPU.replace("memory_total_mib: 1000\n", ""), "has no memory_total_mib"),
        (GPU.replace("1000", "lots"), "its values must be numbers"),
        (GPU.replace("1000", "-1"), "memory_total_bytes must be positive"),
        (GPU.replace("9.0", "nine"), "its values must be numbers"),
        (GPU.replace('compute_capability: "9.0"\n', ""), "has no compute_capability"),
        (GPU + "vendor: acme\n", "vendor must be one of nvidia, amd, huawei, got 'acme'"),
        (GPU + "vendor: [amd]\n", "vendor must be one of"),
        (GPU + "vendor: amd\n", "compute_capability is NVIDIA's"),
        ("- 1\n", "must hold keys and values"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_gpu_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    write_gpu(tmp_path, text)
    with pytest.raises(SpecError, match=sentence):
        read_gpu("mine", tmp_path)
