"""Which modules a checkpoint leaves as they are, by each method's own rule for names."""

from __future__ import annotations

import pytest

from estimator.model import Matrix, Part, Quantisation
from estimator.spec import SpecError
from estimator.weights.schemes import SchemeOf


def matrix(name: str, *, quantised: bool = True) -> Matrix:
    return Matrix(name=name, parts=(Part(rows=8),), columns=8, split="output", quantised=quantised)


def scheme(method: str, kept: tuple[str, ...], name: str, *, layer: int = 3, **more: object) -> str | None:
    quantisation = Quantisation(method=method, scheme="q", kept=kept, **more)  # type: ignore[arg-type]
    return SchemeOf(quantisation)(f"layers.{layer}.", matrix(name))


@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("fp8", "model.layers.3.self_attn.qkv_proj"),
        ("modelopt", "model.layers.3.self_attn*"),
        ("modelopt", "model.language_model.layers.3.self_attn*"),
        ("modelopt", "*self_attn*"),
        ("modelopt", "*.self_attn.*"),
        ("modelopt", "self_attn"),
        ("compressed-tensors", r"re:.*self_attn.*"),
        ("compressed-tensors", r"re:model\.layers\.3\..*"),
        ("gptq", r"re:.*\.3\.self_attn"),
        ("awq", "self_attn"),
    ],
)
def test_a_pattern_keeps_its_module_and_no_other(method: str, pattern: str) -> None:
    assert scheme(method, (pattern,), "self_attn.qkv_proj") is None
    assert scheme(method, (pattern,), "mlp.down_proj", layer=4) == "q"


@pytest.mark.parametrize("method", ["fp8", "modelopt", "compressed-tensors", "gptq", "awq"])
def test_a_merged_module_is_kept_when_all_its_parts_are(method: str) -> None:
    parts = tuple(f"model.layers.3.self_attn.{part}_proj" for part in "qkv")
    assert scheme(method, parts, "self_attn.qkv_proj") is None
    assert scheme(method, parts[:2], "self_attn.qkv_proj") == "q"


def test_an_exact_rule_is_not_a_prefix() -> None:
    assert scheme("fp8", ("model.layers.3.mlp",), "mlp.down_proj") == "q"
    assert scheme("fp8", ("gate",), "mlp.gate_up_proj") == "q"


@pytest.mark.parametrize("method", ["fp8", "modelopt", "compressed-tensors"])
def test_experts_kept_one_by_one_are_kept_together(method: str) -> None:
    names = tuple(f"model.layers.3.mlp.experts.0.{part}_proj" for part in ("gate", "up", "down"))
    assert scheme(method, names, "mlp.experts.gate_up_proj") is None
    assert scheme(method, names, "mlp.experts.gate_up_proj", layer=4) == "q"
    assert scheme(method, names, "mlp.shared_experts.gate_up_proj") == "q"


def test_for_fp8_one_kept_expert_keeps_them_all() -> None:
    kept = ("model.layers.3.mlp.experts.7.down_proj",)
    assert scheme("fp8", kept, "mlp.experts.gate_up_proj") is None
    assert scheme("compressed-tensors", kept, "mlp.experts.gate_up_proj") == "q"


def test_layers_may_differ_in_scheme() -> None:
    listed = (
        ("model.layers.3.mlp.experts", "nvfp4"),
        ("model.layers.3.linear_attn.in_proj_qkv", "fp8"),
        ("model.layers.3.linear_attn.in_proj_z", "fp8"),
        (r"re:.*o_proj$", "int4"),
    )
    quantisation = Quantisation(method="modelopt_mixed", scheme="plain", schemes_by_module=listed)
    find = SchemeOf(quantisation)
    found = {
        name: find("layers.3.", matrix(name))
        for name in ("mlp.experts.down_proj", "linear_attn.in_proj_qkvz", "self_attn.o_proj", "mlp.down_proj")
    }
    assert list(found.values()) == ["nvfp4", "fp8", "int4", None]


def test_the_output_head_is_quantised_only_where_the_method_says_so() -> None:
    head = matrix("lm_head", quantised=False)
    assert SchemeOf(Quantisation(method="modelopt", scheme="q"))("", head) == "q"
    assert SchemeOf(Quantisation(method="modelopt", scheme="q", kept=("lm_head",)))("", head) is None
    assert SchemeOf(Quantisation(method="fp8", scheme="q"))("", head) is None
    named = Quantisation(method="modelopt_mixed", scheme="plain", schemes_by_module=(("lm_head", "q"),))
    assert SchemeOf(named)("", head) == "q"


def test_norms_are_never_quantised() -> None:
    assert SchemeOf(Quantisation(method="fp8", scheme="q"))("layers.0.", matrix("n", quantised=False)) is None


@pytest.mark.parametrize("expression", ["(((", "(a+)+b", "(.*x)*y", "(\\w{1,9}){9}z", "a" * 3_000])
def test_a_broken_or_endless_expression_is_one_sentence(expression: str) -> None:
    with pytest.raises(SpecError, match="broken expression"):
        scheme("compressed-tensors", ("re:" + expression,), "mlp.down_proj")
