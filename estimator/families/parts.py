"""The matrices most decoders are built of, as vLLM 0.32 creates them; readers put them together.

Source: vLLM 0.32 model_executor/models (llama.py, qwen2.py, mixtral.py) and layers/linear.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from estimator.model import Attention, Matrix, Part, Split

VOCAB_PADDING: Final = 64


def linear(
    name: str,
    rows: int | tuple[int, ...],
    columns: int,
    split: Split,
    *,
    bias: bool = False,
    quantised: bool = True,
) -> tuple[Matrix, ...]:
    """A linear layer of one or several merged outputs, and its bias: kept whole unless rows are split."""
    parts = tuple(Part(rows=size) for size in ((rows,) if isinstance(rows, int) else rows))
    return _with_bias(Matrix(name=name, parts=parts, columns=columns, split=split, quantised=quantised), bias)


def norm(name: str, size: int, *, split: Split = "none", element_bytes: int = 2) -> Matrix:
    """A vector of `size` weights that is never quantised."""
    return Matrix(
        name=name,
        parts=(Part(rows=size),),
        columns=1,
        split=split,
        quantised=False,
        element_bytes=element_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The projections of a grouped-query attention layer.

    output_gate: q carries a gate of its own size beside it (Qwen3-Next). qk_norm: a norm per head of q and k.
    """

    heads: int
    kv_heads: int
    head_size: int
    head_size_v: int | None = None
    """None: as head_size."""
    bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    output_gate: bool = False

    @property
    def value_size(self) -> int:
        return self.head_size_v or self.head_size

    def cache(self, *, window_tokens: int | None = None, chunk_tokens: int | None = None) -> Attention:
        """What this layer keeps for each token."""
        return Attention(
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            head_size_v=self.value_size,
            window_tokens=window_tokens,
            chunk_tokens=chunk_tokens,
        )


def attention(hidden: int, heads: Heads, *, name: str = "self_attn") -> tuple[Matrix, ...]:
    """q, k and v merged, the output projection, and the norms of q and k.

    KV heads are replicated once tensor parallelism exceeds them.
    """
    merged = Matrix(
        name=f"{name}.qkv_proj",
        parts=(
            Part(rows=heads.heads * heads.head_size * (2 if heads.output_gate else 1)),
            Part(rows=heads.kv_heads * heads.head_size, kv_heads=heads.kv_heads),
            Part(rows=heads.kv_heads * heads.value_size, kv_heads=heads.kv_heads),
        ),
        columns=hidden,
        split="output",
    )
    output = linear(f"{name}.o_proj", hidden, heads.heads * heads.value_size, "input", bias=heads.output_bias)
    norms = ("q_norm", "k_norm") if heads.qk_norm else ()
    return (
        *_with_bias(merged, heads.bias),
        *output,
        *(norm(f"{name}.{of}", heads.head_size) for of in norms),
    )


def gated_mlp(
    hidden: int, intermediate: int, *, bias: bool = False, name: str = "mlp", quantised: bool = True
) -> tuple[Matrix, ...]:
    """gate and up merged, and down."""
    return (
        *linear(
            f"{name}.gate_up_proj",
            (intermediate, intermediate),
            hidden,
            "output",
            bias=bias,
            quantised=quantised,
        ),
        *linear(f"{name}.down_proj", hidden, intermediate, "input", bias=bias, quantised=quantised),
    )


def gated_experts(
    hidden: int, intermediate: int, experts: int, *, name: str = "mlp.experts"
) -> tuple[Matrix, ...]:
    """gate, up and down of every routed expert."""
    return (
        Matrix(
            name=f"{name}.gate_up_proj",
            parts=(Part(rows=intermediate), Part(rows=intermediate)),
            columns=hidden,
            split="output",
            experts=experts,
        ),
        Matrix(
            name=f"{name}.down_proj",
            parts=(Part(rows=hidden),),
            columns=intermediate,
            split="input",
            experts=experts,
        ),
    )


def router(hidden: int, experts: int, *, name: str = "mlp.gate", element_bytes: int = 2) -> Matrix:
    """One logit an expert; on every rank, never quantised."""
    return Matrix(
        name=name,
        parts=(Part(rows=experts),),
        columns=hidden,
        split="none",
        quantised=False,
        element_bytes=element_bytes,
    )


def vocabulary(name: str, vocab: int, hidden: int) -> Matrix:
    """An embedding or an output head: divided by rows, padded to 64 of them, not quantised."""
    return Matrix(
        name=name,
        parts=(Part(rows=vocab),),
        columns=hidden,
        split="output",
        quantised=False,
        pad_rows=VOCAB_PADDING,
    )


def _with_bias(matrix: Matrix, bias: bool) -> tuple[Matrix, ...]:
    if not bias:
        return (matrix,)
    split: Split = "output" if matrix.split == "output" else "none"
    return matrix, Matrix(
        name=f"{matrix.name}.bias", parts=matrix.parts, columns=1, split=split, quantised=False
    )
