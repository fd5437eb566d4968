"""Bytes of weights on one tensor-parallel rank: from safetensors headers when at hand, by arithmetic if not.

Source of the arithmetic: the parameters of vLLM 0.32's own model classes, reproduced to the byte
(tests/estimator/test_oracle.py). Sharded matrices are divided by tp; norms and the biases of row-parallel
layers are kept whole; KV heads are replicated once tp exceeds them; the vocabulary is padded to 64 rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from estimator.spec import ModelSpec, SpecError, UnsupportedModel, heads_on_rank
from estimator.units import ceil_div, format_bytes

VOCAB_PADDING: Final = 64
ELEMENT_BYTES: Final = 2
"""Every unquantised parameter is bfloat16 or float16 on the GPU."""
HEADER_BYTES_MAX: Final = 100_000_000
"""The safetensors format's own limit."""
DISAGREEMENT_MAX: Final = 0.02
DTYPE_BYTES: Final = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes of parameters one rank keeps, and which way they were found."""

    size_bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One entry of a safetensors header; `end` is where its data stops, in bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    end: int

    @classmethod
    def parse(cls, entry: Any) -> Tensor:
        shape = tuple(int(size) for size in entry["shape"])
        if entry["dtype"] not in DTYPE_BYTES or min(shape, default=1) < 1:
            raise ValueError(entry)
        return cls(dtype=entry["dtype"], shape=shape, end=int(entry["data_offsets"][1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Bytes of one linear layer's weight and scales; `parts` are the row counts merged in it."""

    linear_bytes: Callable[[tuple[int, ...], int], int]
    layer_extra_bytes: int = 0
    block: int = 1
    """Rows and columns on a rank must be multiples of it."""


def _plain(parts: tuple[int, ...], columns: int) -> int:
    return ELEMENT_BYTES * sum(parts) * columns


def _fp8_block128(parts: tuple[int, ...], columns: int) -> int:
    scales = sum(ceil_div(rows, 128) for rows in parts) * ceil_div(columns, 128)
    return sum(parts) * columns + 4 * scales


def _int8_channel(parts: tuple[int, ...], columns: int) -> int:
    return sum(parts) * columns + 4 * sum(parts)


def _int4_group128(parts: tuple[int, ...], columns: int) -> int:
    weight_shape = 2 * 8  # two int64 beside each packed matrix
    return sum(parts) * columns // 2 + ELEMENT_BYTES * sum(parts) * ceil_div(columns, 128) + weight_shape


# layer_extra_bytes: the scalars that each quantisation method keeps beside an attention layer for its KV
# cache, whether or not they are used: 4 of 16 bits (fp8), 3 of 32 and 3 of 16 bits (compressed-tensors).
FORMATS: Final[Mapping[str | None, WeightFormat]] = {
    None: WeightFormat(linear_bytes=_plain),
    "fp8-block128": WeightFormat(linear_bytes=_fp8_block128, layer_extra_bytes=8, block=128),
    "int8-channel": WeightFormat(linear_bytes=_int8_channel, layer_extra_bytes=18),
    "int4-group128": WeightFormat(linear_bytes=_int4_group128, layer_extra_bytes=18, block=128),
}


def weights_on_rank(model: ModelSpec, tp: int, folder: Path | None = None) -> Weights:
    """The folder's *.safetensors headers when it has any, else arithmetic from the config.

    Raises SpecError when tp does not divide the model, or the headers do not hold what config.json describes.
    """
    computed_bytes = parameter_bytes(model, tp)
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    if not files:
        return Weights(size_bytes=computed_bytes, source="arithmetic from config.json")
    found_bytes = sum(
        _tensor_bytes_on_rank(model, tp, name, tensor)
        for file in files
        for name, tensor in read_header(file).items()
    )
    if abs(found_bytes - computed_bytes) > DISAGREEMENT_MAX * computed_bytes:
        raise SpecError(
            f"the *.safetensors beside config.json hold {format_bytes(found_bytes)} for this model and the "
            f"config describes {format_bytes(computed_bytes)}: finish the download; keep one model a folder"
        )
    return Weights(size_bytes=found_bytes, source=f"headers of {len(files)} safetensors file(s)")


def parameter_bytes(model: ModelSpec, tp: int) -> int:
    """Bytes of all parameters of a dense decoder on one of tp ranks."""
    weight_format = FORMATS[model.quantisation]
    q_rows = _share(model.attention_heads, tp, "attention heads") * model.head_size
    kv_rows = heads_on_rank(model.kv_heads, tp) * model.head_size
    mlp_rows = _share(model.intermediate_size, tp, "intermediate_size")
    hidden = model.hidden_size
    linears = (
        ((q_rows, kv_rows, kv_rows), hidden),
        ((hidden,), q_rows),
        ((mlp_rows, mlp_rows), hidden),
        ((hidden,), mlp_rows),
    )
    for parts, columns in linears:
        if any(size % weight_format.block for size in (*parts, columns)):
            raise UnsupportedModel(
                f"not yet supported: {model.quantisation} with --tp {tp}, which cuts a matrix inside a "
                f"block of {weight_format.block}"
            )
    unquantised = (
        2 * hidden
        + (2 * model.head_size if model.qk_norm else 0)
        + (q_rows + 2 * kv_rows if model.attention_bias else 0)
        + (hidden if model.output_bias else 0)
        + (2 * mlp_rows + hidden if model.mlp_bias else 0)
    )
    layer_bytes = sum(weight_format.linear_bytes(parts, columns) for parts, columns in linears)
    layer_bytes += ELEMENT_BYTES * unquantised + weight_format.layer_extra_bytes
    vocab_rows = _share(ceil_div(model.vocab_size, VOCAB_PADDING) * VOCAB_PADDING, tp, "padded vocabulary")
    tables = 1 if model.tie_word_embeddings else 2
    return model.layers * layer_bytes + ELEMENT_BYTES * (tables * vocab_rows * hidden + hidden)


def buffer_bytes(model: ModelSpec) -> int:
    """The rotary table (cos and sin for every position) and four float32 KV scales a layer."""
    return ELEMENT_BYTES * model.context_tokens_max * model.head_size + 16 * model.layers


def _share(size: int, tp: int, what: str) -> int:
    if size % tp != 0:
        raise SpecError(f"--tp {tp} does not divide the model's {size} {what}; choose a divisor")
    return size // tp


def read_header(file: Path) -> dict[str, Tensor]:
    """Tensors of one file by name. Source: the safetensors format, an 8-byte length and a JSON header.

    Raises SpecError when the file is cut short or is not safetensors.
    """
    broken = SpecError(f"{file.name} is cut short or not a safetensors file; download it again")
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(HEADER_BYTES_MAX, size - 8):
                raise broken
            header = json.loads(stream.read(length))
        tensors = {name: Tensor.parse(entry) for name, entry in header.items() if name != "__metadata__"}
    except OSError as error:
        raise SpecError(f"cannot read {file.name}: {error.strerror or error}") from None
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, IndexError):
        raise broken from None
    if size < 8 + length + max((tensor.end for tensor in tensors.values()), default=0):
        raise broken
    return tensors


def _tensor_bytes_on_rank(model: ModelSpec, tp: int, name: str, tensor: Tensor) -> int:
    if _NOT_LOADED.search(name) or (model.tie_word_embeddings and name.startswith("lm_head.")):
        return 0
    rows, elements = tensor.shape[0] if tensor.shape else 1, prod(tensor.shape)
    if tensor.dtype in ("F32", "F16", "BF16") and model.quantisation is None:
        element_bytes = ELEMENT_BYTES
    else:
        element_bytes = DTYPE_BYTES[tensor.dtype]
    if _VOCABULARY.search(name):
        elements = elements // rows * ceil_div(rows, VOCAB_PADDING) * VOCAB_PADDING
    one_column = len(tensor.shape) < 2 or tensor.shape[-1] == 1
    if "norm" in name or (_ROW_PARALLEL.search(name) and one_column):
        return elements * element_bytes
    if _KEY_OR_VALUE.search(name):
        return elements * heads_on_rank(model.kv_heads, tp) // model.kv_heads * element_bytes
    return ceil_div(elements, tp) * element_bytes


_NOT_LOADED: Final = re.compile(r"rotary_emb|\bmtp|g_idx")
_VOCABULARY: Final = re.compile(r"embed_tokens\.weight|lm_head\.weight")
_ROW_PARALLEL: Final = re.compile(r"\.(o_proj|down_proj)\.")
_KEY_OR_VALUE: Final = re.compile(r"\.[kv]_proj\.")
