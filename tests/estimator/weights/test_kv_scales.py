"""Scalars beside attention layers, which each quantisation method makes or leaves out."""

from __future__ import annotations

import pytest

from estimator.model import Attention, IndexerKeys, LatentAttention, Quantisation
from estimator.weights.kv_scales import scale_bytes

GROUPED = Attention(kv_heads=8, head_size=128, head_size_v=128)
LATENT = LatentAttention(latent_size=512, rope_size=64)
KEYS = IndexerKeys(head_size=128)


@pytest.mark.parametrize(
    ("method", "kv_cache_dtype", "grouped", "latent"),
    [
        ("fp8", None, 8, 0),
        ("modelopt", None, 8, 8),
        ("modelopt_mixed", None, 0, 0),
        ("modelopt_mixed", "fp8", 8, 0),
        ("compressed-tensors", None, 18, 0),
        ("awq", None, 0, 0),
        ("gptq", None, 0, 0),
        ("mxfp4", None, 0, 0),
    ],
)
def test_which_attention_layers_carry_scales_is_the_methods_choice(
    method: str, kv_cache_dtype: str | None, grouped: int, latent: int
) -> None:
    quantisation = Quantisation(method=method, scheme="q", kv_cache_dtype=kv_cache_dtype)
    assert scale_bytes((GROUPED,), quantisation) == grouped
    assert scale_bytes((LATENT, KEYS), quantisation) == latent


def test_an_unquantised_checkpoint_has_none() -> None:
    assert scale_bytes((GROUPED, LATENT), None) == 0
