"""Which matrices of a checkpoint are quantised and how: vLLM's rules for module names.

A checkpoint names modules as they were trained (q_proj, experts.0.up_proj); the engine merges them
(qkv_proj, experts). A merged module follows its parts. Source: vLLM 0.32 layers/quantization
(utils/quant_utils.py is_layer_skipped, modelopt.py is_layer_excluded, utils/config_utils.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import translate
from functools import lru_cache
from typing import Final

from estimator.model import Matrix, Quantisation
from estimator.spec import SpecError

ROOTS: Final = (
    "",
    "model.",
    "language_model.model.",
    "model.language_model.",
    "language_model.",
    "backbone.",
    "thinker.model.",
)
"""What checkpoints put before `layers.0...` and `lm_head`."""
FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
    "in_proj_qkvz": ("in_proj_qkv", "in_proj_z"),
    "in_proj_ba": ("in_proj_b", "in_proj_a"),
}
"""packed_modules_mapping of vLLM's models: merged module -> its names in the checkpoint."""
EXPERTS: Final = re.compile(r"^(.*\bexperts)\.")
EXPERT_PARTS: Final = (".0.gate_proj", ".0.up_proj", ".0.down_proj")
HEAD: Final = "lm_head"
REGEX: Final = "re:"
EXPRESSION_MAX: Final = 2_000
NESTED_REPEAT: Final = re.compile(r"[*+}][^()]*\)[*+{]")
Match = Callable[[str], bool]
"""Whether a pattern matches a module's path, given from `layers.` on."""


def _rooted(module: str) -> tuple[str, ...]:
    return tuple(root + module for root in ROOTS)


def _exact(patterns: Iterable[str]) -> Match:
    names = frozenset(patterns)
    expert_names = tuple(name for name in names if "experts" in name)

    def match(module: str) -> bool:
        if module.endswith("experts"):
            return any(module in name for name in expert_names)
        return not names.isdisjoint(_rooted(module))

    return match


def _inside(patterns: Iterable[str]) -> Match:
    wanted = tuple(patterns)

    def match(module: str) -> bool:
        paths = "\n".join(_rooted(module))
        return any(pattern in paths for pattern in wanted)

    return match


def _globs(patterns: Iterable[str]) -> Match:
    """ModelOpt's: a name without a star may stand anywhere in a path; with one it is a glob of the whole.

    A star right after a name ("layers.0*") covers the name itself and what lies below it.
    Source: vLLM 0.32 quantization/modelopt.py apply_vllm_mapper and is_layer_excluded.
    """
    listed: list[str] = []
    for pattern in patterns:
        is_tree = pattern.endswith("*") and not pattern.endswith(".*")
        listed += [pattern[:-1], pattern[:-1] + ".*"] if is_tree else [pattern]
    inside = _inside(pattern for pattern in listed if "*" not in pattern)
    starred = _expressions((pattern, translate(pattern)) for pattern in listed if "*" in pattern)
    return lambda module: inside(module) or starred(module)


def _named(patterns: Iterable[str]) -> Match:
    """compressed-tensors': an exact name, or `re:` and an expression that matches from the start."""
    listed = tuple(patterns)
    names = frozenset(pattern for pattern in listed if not pattern.startswith(REGEX))
    marked = [pattern.removeprefix(REGEX) for pattern in listed if pattern.startswith(REGEX)]
    expressions = _expressions((pattern, pattern) for pattern in marked)
    return lambda module: not names.isdisjoint(_rooted(module)) or expressions(module)


def _expressions(patterns: Iterable[tuple[str, str]]) -> Match:
    """(pattern as written, regular expression). One that begins with anything needs no root before it."""
    floating: list[re.Pattern[str]] = []
    rooted: list[re.Pattern[str]] = []
    for written, expression in patterns:
        (floating if written.startswith(("*", ".*")) else rooted).append(_compiled(expression))

    def match(module: str) -> bool:
        return any(one.match(module) for one in floating) or any(
            one.match(path) for one in rooted for path in _rooted(module)
        )

    return match


def _compiled(expression: str) -> re.Pattern[str]:
    """Raises SpecError for one that is broken or, as only an attack is, slow: repeated inside a repeat."""
    try:
        compiled = re.compile(expression)
    except (re.error, RecursionError, OverflowError):
        compiled = None
    if compiled is None or len(expression) > EXPRESSION_MAX or NESTED_REPEAT.search(expression):
        raise SpecError(f"quantization_config names modules by a broken expression: {expression[:60]}")
    return compiled


KEPT_RULES: Final[Mapping[str, Callable[[Iterable[str]], Match]]] = {
    "fp8": _exact,
    "deepseek_v4_fp8": _exact,
    "modelopt": _globs,
    "modelopt_mixed": _globs,
    "compressed-tensors": _named,
    "mxfp4": _named,
    "gptq": _named,
    "awq": _inside,
}
"""How each method reads its list of modules that stay as they are."""


class SchemeOf:
    """The scheme of a matrix under its layer's prefix; None: it stays in its own dtype."""

    def __init__(self, quantisation: Quantisation | None) -> None:
        self._quantisation = quantisation
        self._seen: dict[str, str | None] = {}
        if quantisation is None:
            return
        self._kept = KEPT_RULES[quantisation.method](quantisation.kept)
        self._exact = dict(quantisation.schemes_by_module)
        self._rules = [
            (_named((pattern,)), scheme)
            for pattern, scheme in quantisation.schemes_by_module
            if pattern.startswith(REGEX)
        ]

    def __call__(self, prefix: str, matrix: Matrix) -> str | None:
        if not matrix.quantised and not matrix.name.endswith(HEAD):
            return None
        return self.module(prefix, matrix)

    def module(self, prefix: str, matrix: Matrix) -> str | None:
        """The scheme of the module that `matrix` belongs to, be it a bias of it."""
        if self._quantisation is None:
            return None
        name = prefix + matrix.name
        if name not in self._seen:
            self._seen[name] = self._found(name)
        return self._seen[name]

    def _found(self, name: str) -> str | None:
        assert self._quantisation is not None
        paths = checkpoint_modules(name)
        if self._quantisation.kept and (self._kept(paths[0]) or all(map(self._kept, paths[1:] or paths))):
            return None
        listed = self._listed(paths)
        if listed is None and (not name.endswith(HEAD) or self._quantisation.method == "modelopt"):
            listed = self._quantisation.scheme
        return None if listed == "plain" else listed

    def _listed(self, paths: tuple[str, ...]) -> str | None:
        for path in paths:
            for name in _rooted(path) if self._exact else ():
                if name in self._exact:
                    return self._exact[name]
            for matches, scheme in self._rules:
                if matches(path):
                    return scheme
        return None


@lru_cache(maxsize=8)
def scheme_of(quantisation: Quantisation | None) -> SchemeOf:
    """One SchemeOf a checkpoint, kept: a table of what-ifs asks for the same names in every row."""
    return SchemeOf(quantisation)


def checkpoint_modules(name: str) -> tuple[str, ...]:
    """The engine's module, then the checkpoint's modules merged in it."""
    experts = EXPERTS.match(name)
    if experts:
        return (experts[1], *(experts[1] + part for part in EXPERT_PARTS))
    module, _, last = name.rpartition(".")
    return (name, *(f"{module}.{part}" for part in FUSED.get(last, ())))
