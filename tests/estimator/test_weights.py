"""Headers and arithmetic must agree to the byte, on every rank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from estimator.hf_config import model_spec
from estimator.spec import ModelSpec, SpecError, UnsupportedModel
from estimator.weights import parameter_bytes, weights_on_rank

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
FAMILIES = {
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


def tensors_of(model: ModelSpec) -> dict[str, list[int]]:
    """The names and shapes a Hugging Face checkpoint of this model has."""
    hidden, mlp = model.hidden_size, model.intermediate_size
    q, kv = model.attention_heads * model.head_size, model.kv_heads * model.head_size
    shapes = {"model.embed_tokens.weight": [model.vocab_size, hidden], "model.norm.weight": [hidden]}
    shapes["lm_head.weight"] = [model.vocab_size, hidden]
    for layer in range(model.layers):
        at = f"model.layers.{layer}."
        linears = {"q": [q, hidden], "k": [kv, hidden], "v": [kv, hidden], "o": [hidden, q]}
        for name, shape in linears.items():
            shapes[f"{at}self_attn.{name}_proj.weight"] = shape
            if model.output_bias if name == "o" else model.attention_bias:
                shapes[f"{at}self_attn.{name}_proj.bias"] = [shape[0]]
        for name, shape in {"gate": [mlp, hidden], "up": [mlp, hidden], "down": [hidden, mlp]}.items():
            shapes[f"{at}mlp.{name}_proj.weight"] = shape
            if model.mlp_bias:
                shapes[f"{at}mlp.{name}_proj.bias"] = [shape[0]]
        shapes |= {f"{at}{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
        if model.qk_norm:
            shapes |= {f"{at}self_attn.{name}_norm.weight": [model.head_size] for name in "qk"}
        shapes[f"{at}self_attn.rotary_emb.inv_freq"] = [model.head_size // 2]
    return shapes


def write_safetensors(file: Path, shapes: dict[str, list[int]], dtype: str = "BF16") -> None:
    element_bytes = {"BF16": 2, "F32": 4}[dtype]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + element_bytes * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_headers_say_what_arithmetic_says_on_every_rank(
    tmp_path: Path, family: str, tp: int, dtype: str
) -> None:
    model = model_spec({**SIZES, **FAMILIES[family]}, family)
    shapes = list(tensors_of(model).items())
    write_safetensors(tmp_path / "model-1.safetensors", dict(shapes[::2]), dtype)
    write_safetensors(tmp_path / "model-2.safetensors", dict(shapes[1::2]), dtype)
    weights = weights_on_rank(model, tp, tmp_path)
    assert weights.size_bytes == parameter_bytes(model, tp)
    assert weights.source == "headers of 2 safetensors file(s)"


def test_a_folder_without_tensors_falls_back_to_arithmetic(tmp_path: Path) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    assert weights_on_rank(model, 1, tmp_path) == weights_on_rank(model, 1)
    assert weights_on_rank(model, 1).source == "arithmetic from config.json"


def test_half_a_download_is_noticed(tmp_path: Path) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    write_safetensors(tmp_path / "model-1.safetensors", dict(list(tensors_of(model).items())[:8]))
    with pytest.raises(SpecError, match="finish the download"):
        weights_on_rank(model, 1, tmp_path)


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
        weights_on_rank(model, 1, tmp_path)


def test_fp8_blocks_may_not_be_cut_by_tensor_parallelism() -> None:
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    model = model_spec({**SIZES, **FAMILIES["qwen3"], "quantization_config": fp8}, "m")
    assert parameter_bytes(model, 1) > 0
    with pytest.raises(UnsupportedModel, match="fp8-block128 with --tp 2"):
        parameter_bytes(model, 2)


@pytest.mark.parametrize("tp", [3, 16])
def test_a_tp_that_does_not_divide_the_model_is_refused(tp: int) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    with pytest.raises(SpecError, match=f"--tp {tp} does not divide the model's 8 attention heads"):
        parameter_bytes(model, tp)


def test_the_vocabulary_is_padded_to_64_rows_as_vllm_does() -> None:
    padded, exact, more = (
        parameter_bytes(model_spec({**SIZES, **FAMILIES["qwen3"], "vocab_size": rows}, "m"), 1)
        for rows in (1000, 1024, 1025)
    )
    assert padded == exact
    assert more - exact == 2 * 64 * 256 * 2  # two tables, 64 rows of 256 elements of 2 bytes


def test_a_tensor_file_short_of_one_byte_is_noticed(tmp_path: Path) -> None:
    model = model_spec({**SIZES, **FAMILIES["qwen3"]}, "m")
    file = tmp_path / "model.safetensors"
    write_safetensors(file, tensors_of(model))
    assert weights_on_rank(model, 1, tmp_path).size_bytes == parameter_bytes(model, 1)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    with pytest.raises(SpecError, match=r"model\.safetensors is cut short"):
        weights_on_rank(model, 1, tmp_path)
