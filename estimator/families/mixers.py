"""The recurrent layers of hybrid models: what each keeps for a sequence and the matrices it is made of.

Source: vLLM 0.32 model_executor/layers/mamba (mamba_mixer.py, mamba_mixer2.py, short_conv.py, gdn/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from estimator.families.parts import linear, norm
from estimator.fields import Fields, shown
from estimator.model import CacheDtype, Matrix, Part, RecurrentState
from estimator.spec import SpecError, UnsupportedModel
from estimator.units import ceil_div

STATE_DTYPES: Final = ("auto", "float32", "bfloat16", "float16")


def with_defaults(fields: Fields, defaults: Mapping[str, Any], **fixed: bool) -> Fields:
    """The fields with what the model's Hugging Face config class fills in where a key is absent.

    fixed: what vLLM's class does whatever the config says (tie_word_embeddings).
    """
    given = {key: value for key, value in fields.values.items() if value is not None}
    return replace(fields, values={**defaults, **given, **fixed})


def state_dtype(fields: Fields, key: str, *, default: str = "auto") -> CacheDtype:
    """The dtype of the recurrent state that the config asks for under `key`."""
    named = fields.word(key, default=default)
    if named not in STATE_DTYPES:
        raise UnsupportedModel(
            f"not yet supported: {key} {shown(named)}; known are {', '.join(STATE_DTYPES)}"
        )
    return cast(CacheDtype, named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixer:
    """A recurrent layer: its state and its matrices."""

    state: RecurrentState
    matrices: tuple[Matrix, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """The sizes of a Mamba2 layer, however a config spells them. gated_norm: its norm has weights."""

    heads: int
    head_size: int
    groups: int
    state_size: int
    conv_kernel: int
    conv_bias: bool = True
    bias: bool = False
    gated_norm: bool = True
    state_dtype: CacheDtype = "auto"


def mamba2(hidden: int, sizes: Mamba2, *, name: str = "mixer") -> Mixer:
    """Source: vLLM mamba_mixer2.py MambaMixer2. A single group of B and C is on every rank."""
    inner, grouped = sizes.heads * sizes.head_size, sizes.groups * sizes.state_size
    if sizes.heads % sizes.groups != 0:
        raise SpecError(f"{sizes.heads} Mamba heads do not share {sizes.groups} groups evenly")
    group = Part(rows=grouped, kv_heads=sizes.groups)
    conv = (Part(rows=inner), group, group)
    projected = (Part(rows=inner), *conv, Part(rows=sizes.heads))
    return Mixer(
        state=RecurrentState(
            mixer="mamba2",
            heads=sizes.heads,
            head_size=sizes.head_size,
            groups=sizes.groups,
            state_size=sizes.state_size,
            conv_kernel=sizes.conv_kernel,
            state_dtype=sizes.state_dtype,
            prefill_checkpoint=True,
        ),
        matrices=(
            *_merged(f"{name}.conv1d", conv, sizes.conv_kernel, bias=sizes.conv_bias, quantised=False),
            *_merged(f"{name}.in_proj", projected, hidden, bias=sizes.bias),
            norm(f"{name}.A", sizes.heads, split="output", element_bytes=4),
            norm(f"{name}.D", sizes.heads, split="output"),
            norm(f"{name}.dt_bias", sizes.heads, split="output"),
            *linear(f"{name}.out_proj", hidden, inner, "input", bias=sizes.bias),
            *((norm(f"{name}.norm", inner, split="output"),) if sizes.gated_norm else ()),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1:
    """The sizes of a Mamba layer. inner_norms: whether dt, B and C are normalised with weights (Jamba)."""

    inner: int
    state_size: int
    conv_kernel: int
    time_step_rank: int
    conv_bias: bool = True
    bias: bool = False
    inner_norms: bool = False


def mamba1(hidden: int, sizes: Mamba1, *, name: str = "mixer") -> Mixer:
    """Source: vLLM mamba_mixer.py MambaMixer; it hands no quantisation to its linear layers."""
    inner, rank, state = sizes.inner, sizes.time_step_rank, sizes.state_size
    norms = (("dt_layernorm", rank), ("b_layernorm", state), ("c_layernorm", state))
    return Mixer(
        state=RecurrentState(
            mixer="mamba1",
            heads=inner,
            head_size=1,
            groups=1,
            state_size=state,
            conv_kernel=sizes.conv_kernel,
        ),
        matrices=(
            *linear(
                f"{name}.conv1d", inner, sizes.conv_kernel, "output", bias=sizes.conv_bias, quantised=False
            ),
            *linear(f"{name}.in_proj", (inner, inner), hidden, "output", bias=sizes.bias, quantised=False),
            *linear(f"{name}.x_proj", rank + 2 * state, inner, "input", quantised=False),
            *linear(f"{name}.dt_proj", inner, rank, "output", bias=True, quantised=False),
            replace(norm(f"{name}.A", inner, split="output", element_bytes=4), columns=state),
            norm(f"{name}.D", inner, split="output"),
            *linear(f"{name}.out_proj", hidden, inner, "input", bias=sizes.bias, quantised=False),
            *(norm(f"{name}.{of}", size) for of, size in norms if sizes.inner_norms),
        ),
    )


def time_step_rank(fields: Fields, key: str) -> int:
    """The rank of the time-step projection; "auto" is a sixteenth of the hidden size."""
    if fields.values.get(key, "auto") == "auto":
        return ceil_div(fields.size("hidden_size"), 16)
    return fields.size(key)


def gated_delta_net(fields: Fields, *, interleaved: bool) -> Mixer:
    """A Gated DeltaNet layer of Qwen3-Next (interleaved) or Qwen3.5.

    Source: vLLM gdn/qwen_gdn_linear_attn.py QwenGatedDeltaNetAttention.
    """
    hidden, name = fields.size("hidden_size"), "linear_attn"
    key_heads, value_heads = fields.size("linear_num_key_heads"), fields.size("linear_num_value_heads")
    key_size, value_size = fields.size("linear_key_head_dim"), fields.size("linear_value_head_dim")
    kernel = fields.size("linear_conv_kernel_dim", least=2, most=1024)
    if value_heads % key_heads != 0:
        raise SpecError(f"linear_num_value_heads {value_heads} is no multiple of {key_heads} key heads")
    keys, values = key_heads * key_size, value_heads * value_size
    qkvz = (2 * keys + 2 * values,) if interleaved else (keys, keys, values, values)
    return Mixer(
        state=RecurrentState(
            mixer="gdn",
            heads=value_heads,
            head_size=value_size,
            groups=key_heads,
            state_size=key_size,
            conv_kernel=kernel,
            state_dtype="auto" if interleaved else state_dtype(fields, "mamba_ssm_dtype"),
        ),
        matrices=(
            *linear(f"{name}.conv1d", 2 * keys + values, kernel, "output", quantised=False),
            *linear(f"{name}.in_proj_qkvz", qkvz, hidden, "output"),
            *linear(
                f"{name}.in_proj_ba", 2 * value_heads if interleaved else (value_heads,) * 2, hidden, "output"
            ),
            norm(f"{name}.dt_bias", value_heads, split="output"),
            norm(f"{name}.A_log", value_heads, split="output", element_bytes=4),
            norm(f"{name}.norm", value_size),
            *linear(f"{name}.out_proj", hidden, values, "input"),
        ),
    )


def short_conv(hidden: int, kernel: int, *, bias: bool, name: str = "conv") -> Mixer:
    """A gated short convolution; its last inputs are all its state. Source: vLLM short_conv.py ShortConv."""
    return Mixer(
        state=RecurrentState(
            mixer="short_conv", heads=hidden, head_size=1, groups=1, state_size=1, conv_kernel=kernel
        ),
        matrices=(
            *linear(f"{name}.conv", hidden, kernel, "output", bias=bias, quantised=False),
            *linear(f"{name}.in_proj", (hidden,) * 3, hidden, "output", bias=bias),
            *linear(f"{name}.out_proj", hidden, hidden, "input", bias=bias),
        ),
    )


def _merged(
    name: str, parts: tuple[Part, ...], columns: int, *, bias: bool, quantised: bool = True
) -> tuple[Matrix, ...]:
    weight = Matrix(name=name, parts=parts, columns=columns, split="output", quantised=quantised)
    return (weight, replace(weight, name=f"{name}.bias", columns=1, quantised=False)) if bias else (weight,)
