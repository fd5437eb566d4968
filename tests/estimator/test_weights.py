"""Headers and arithmetic must agree to the byte, on every rank of every stage."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from estimator.engine_spec import EngineSpec
from estimator.hf_config import model_spec
from estimator.spec import SpecError, UnsupportedModel
from estimator.weights.count import stage_bytes, weights_on_rank

SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 1024,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "qwen2-tied": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "tie_word_embeddings": True,
    },
    "llama-biased": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
    },
}
BIASED = {"qwen3": "", "qwen2-tied": "qkv", "llama-biased": "qkvo"}
"""Attention projections that carry a bias."""


def tensors_of(family: str) -> dict[str, list[int]]:
    """The names and shapes a Hugging Face checkpoint of this model has."""
    hidden, mlp = SIZES["hidden_size"], SIZES["intermediate_size"]
    q, kv = (SIZES[heads] * SIZES["head_dim"] for heads in ("num_attention_heads", "num_key_value_heads"))
    shapes = {"model.embed_tokens.weight": [SIZES["vocab_size"], hidden], "model.norm.weight": [hidden]}
    shapes["lm_head.weight"] = [SIZES["vocab_size"], hidden]
    for layer in range(SIZES["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        linears = {"q": [q, hidden], "k": [kv, hidden], "v": [kv, hidden], "o": [hidden, q]}
        for name, shape in linears.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = shape
            if name in BIASED[family]:
                shapes[f"{at}self_attn.{name}_proj.bias"] = [shape[0]]
        for name, shape in {"gate": [mlp, hidden], "up": [mlp, hidden], "down": [hidden, mlp]}.items():
            shapes[f"{at}mlp.{name}_proj.weight"] = shape
            if family == "llama-biased":
                shapes[f"{at}mlp.{name}_proj.bias"] = [shape[0]]
        shapes |= {f"{at}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
        if family == "qwen3":
            shapes |= {f"{at}self_attn.{name}_norm.weight": [SIZES["head_dim"]] for name in "qk"}
        shapes[f"{at}self_attn.rotary_emb.inv_freq"] = [SIZES["head_dim"] // 2]
    return shapes


def write_safetensors(
    file: Path, shapes: dict[str, list[int]], dtype: str = "BF16", eight_bits: Collection[str] = ()
) -> None:
    element_bytes = {"BF16": 2, "F32": 4, "F8_E4M3": 1}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        kind = "F32" if name.endswith("_scale_inv") else "F8_E4M3" if name in eight_bits else dtype
        begin, end = end, end + element_bytes[kind] * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 2), (8, 1), (1, 2)])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_headers_say_what_arithmetic_says_on_every_rank(
    tmp_path: Path, family: str, tp: int, pp: int, dtype: str
) -> None:
    model, engine = model_spec({**SIZES, **FAMILIES[family]}, family), EngineSpec(tp=tp, pp=pp)
    shapes = list(tensors_of(family).items())
    write_safetensors(tmp_path / "model-1.safetensors", dict(shapes[::2]), dtype)
    write_safetensors(tmp_path / "model-2.safetensors", dict(shapes[1::2]), dtype)
    found = weights_on_rank(model, engine, tmp_path)
    assert tuple(stage.size_bytes for stage in found) == stage_bytes(model, engine)
    assert {stage.source for stage in found} == {"headers of 2 safetensors file(s)"}


def test_fp8_blocks_in_headers_are_the_arithmetics(tmp_path: Path) -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    model = model_spec({**SIZES, **FAMILIES["qwen3"], "quantization_config": fp8}, "m")
    shapes = tensors_of("qwen3")
    linears = {name: shape for name, shape in shapes.items() if name.endswith("_proj.weight")}
    scales = {f"{name}_scale_inv": [size // 128 for size in shape] for name, shape in linears.items()}
    write_safetensors(tmp_path / "model.safetensors", shapes | scales, eight_bits=linears)
    (found,) = weights_on_rank(model, EngineSpec(), tmp_path)
    assert found.size_bytes == stage_bytes(model, EngineSpec())[0]


@pytest.mark.parametrize("enable_expert_parallel", [False, True])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_experts_stored_one_by_one_are_divided_together(
    tmp_path: Path, tp: int, enable_expert_parallel: bool
) -> None:
    mixture = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    model = model_spec({**SIZES, **mixture, "num_local_experts": 6, "num_experts_per_tok": 2}, "m")
    hidden, width = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes = {
        name: shape
        for name, shape in tensors_of("qwen3").items()
        if ".mlp." not in name and "q_norm" not in name and "k_norm" not in name
    }
    for layer in range(SIZES["num_hidden_layers"]):
        block = f"model.layers.{layer}.block_sparse_moe"
        shapes[f"{block}.gate.weight"] = [6, hidden]
        for expert in range(6):
            for name, shape in {"w1": [width, hidden], "w2": [hidden, width], "w3": [width, hidden]}.items():
                shapes[f"{block}.experts.{expert}.{name}.weight"] = shape
    write_safetensors(tmp_path / "model.safetensors", shapes)
    engine = EngineSpec(tp=tp, enable_expert_parallel=enable_expert_parallel)
    (found,) = weights_on_rank(model, engine, tmp_path)
    assert found.size_bytes == stage_bytes(model, engine)[0]


def test_a_folder_without_tensors_falls_back_to_arithmetic(tmp_path: Path) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    assert weights_on_rank(model, EngineSpec(), tmp_path) == weights_on_rank(model, EngineSpec())
    assert weights_on_rank(model, EngineSpec())[0].source == "arithmetic from config.json"


def test_half_a_download_is_noticed(tmp_path: Path) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    write_safetensors(tmp_path / "model-1.safetensors", dict(list(tensors_of("qwen3").items())[:8]))
    with pytest.raises(SpecError, match="finish the download"):
        weights_on_rank(model, EngineSpec(), tmp_path)


def test_a_download_without_its_last_layer_is_noticed_on_the_stage_that_lacks_it(tmp_path: Path) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    shapes = {name: shape for name, shape in tensors_of("qwen3").items() if ".layers.1." not in name}
    write_safetensors(tmp_path / "model.safetensors", shapes)
    with pytest.raises(SpecError, match="finish the download"):
        weights_on_rank(model, EngineSpec(pp=2), tmp_path)


@pytest.mark.parametrize("name", ["mtp.layers.0.fc.weight", "model.mtp_layers.0.x", "model.layers.2.eh_proj"])
def test_layers_for_multi_token_prediction_are_not_loaded_unasked(tmp_path: Path, name: str) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    write_safetensors(tmp_path / "model.safetensors", tensors_of("qwen3") | {name: [1000]})
    (found,) = weights_on_rank(model, EngineSpec(), tmp_path)
    assert found.size_bytes == stage_bytes(model, EngineSpec())[0]


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.something_new", "visual.patch_embed.bias"])
def test_a_tensor_that_no_module_explains_is_counted_on_its_own_stage(tmp_path: Path, name: str) -> None:
    model, engine = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m"), EngineSpec(pp=2)
    write_safetensors(tmp_path / "model.safetensors", tensors_of("qwen3") | {name: [1000]})
    first, last = (stage.size_bytes for stage in weights_on_rank(model, engine, tmp_path))
    computed = stage_bytes(model, engine)
    assert (first - computed[0], last - computed[1]) == (2 * 1000, 0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        (2**63).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (7).to_bytes(8, "little") + b'{"a":1}',
        (61).to_bytes(8, "little") + b'{"a":{"dtype":"BF16","shape":[9,9],"data_offsets":[0,99999]}}',
        (60).to_bytes(8, "little") + b'{"a":{"dtype":"BF16","shape":[-9],"data_offsets":[0,99999]}}',
    ],
)
def test_a_broken_tensor_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    with pytest.raises(SpecError, match=r"model\.safetensors is cut short or not a safetensors file"):
        weights_on_rank(model, EngineSpec(), tmp_path)


def test_fp8_blocks_may_not_be_cut_by_tensor_parallelism() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    sizes = {**SIZES, "intermediate_size": 384}
    model = model_spec({**sizes, **FAMILIES["qwen3"], "quantization_config": fp8}, "m")
    assert stage_bytes(model, EngineSpec())[0] > 0
    with pytest.raises(UnsupportedModel, match=r"down_proj in fp8-block .* inside a block of 128"):
        stage_bytes(model, EngineSpec(tp=2))


@pytest.mark.parametrize("tp", [3, 16])
def test_a_tp_that_does_not_divide_the_model_is_refused(tp: int) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    with pytest.raises(SpecError, match=f"--tp {tp} does not divide the model's 8 attention heads"):
        stage_bytes(model, EngineSpec(tp=tp))


def test_more_stages_than_layers_are_refused() -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    with pytest.raises(SpecError, match="--pipeline-parallel-size 3 is not from 1 to the model's 2 layers"):
        stage_bytes(model, EngineSpec(pp=3))


def test_the_vocabulary_is_padded_to_64_rows_as_vllm_does() -> None:
    padded, exact, more = (
        stage_bytes(model_spec({**SIZES, **FAMILIES["qwen3"], "vocab_size": rows}, "m"), EngineSpec())[0]
        for rows in (1000, 1024, 1025)
    )
    assert padded == exact
    assert more - exact == 2 * 64 * 256 * 2  # two tables, 64 rows of 256 elements of 2 bytes


def test_a_tensor_file_short_of_one_byte_is_noticed(tmp_path: Path) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    file = tmp_path / "model.safetensors"
    write_safetensors(file, tensors_of("qwen3"))
    assert weights_on_rank(model, EngineSpec(), tmp_path)[0].size_bytes == stage_bytes(model, EngineSpec())[0]
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    with pytest.raises(SpecError, match=r"model\.safetensors is cut short"):
        weights_on_rank(model, EngineSpec(), tmp_path)
