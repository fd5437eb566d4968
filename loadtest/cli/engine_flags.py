"""The flags a server is started with, by vLLM's and LMDeploy's own names; shared by commands that predict.

Some take several values separated by commas: `ullage estimate` then prints one row for each combination.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from itertools import product
from typing import Any, Final

import click

from estimator.catalog import configs_folder, find_model, names
from estimator.engine_spec import DRAFT_METHODS, EngineSpec, SpeculativeSpec
from estimator.hf_config import read_model
from estimator.spec import SpecError

COUNT: Final = click.IntRange(min=1)
SUFFIXES: Final = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
"""vLLM's own: 8k is 8,000 and 8K is 8,192 (utils/argparse_utils.py human_readable_int)."""


class Size(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A whole number, with vLLM's suffixes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip()
        scale = SUFFIXES.get(text[-1:], 1)
        digits = text[:-1] if text[-1:] in SUFFIXES else text
        try:
            size = round(float(digits) * scale) if scale > 1 else int(digits)
        except (ValueError, OverflowError):
            size = 0
        if size < 1:
            self.fail(f"{text!r} is not a size; write a whole number, 8k (8,000) or 8K (8,192)", param, ctx)
        return size


def catalog_names(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Completes names of configs/models or configs/gpus; what stands before a comma is kept."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        done, comma, begun = incomplete.rpartition(",")
        known = names(kind, configs_folder())
        return [f"{done}{comma}{name}" for name in known if name.lower().startswith(begun.lower())]

    return complete


class Several(click.ParamType):  # type: ignore[type-arg]
    """One value, or several separated by commas."""

    def __init__(self, of: click.ParamType) -> None:  # type: ignore[type-arg]
        self.of = of
        self.name = f"{of.name}[,...]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",") if part.strip()]
        if not parts:
            self.fail("give at least one value", param, ctx)
        return tuple(dict.fromkeys(self.of.convert(part, param, ctx) for part in parts))


SIZE: Final = Size()
VARIED: Final = ("gpu", "tp", "kv_cache_dtype", "max_model_len")
"""Options that may name several values, in the order of the table's columns."""
FLAGS: Final = (
    click.option(
        "--gpu",
        type=Several(click.STRING),
        shell_complete=catalog_names("gpus"),
        help="From `ullage gpus`, such as h100-80gb.",
    ),
    click.option("--engine", type=click.Choice(["vllm", "lmdeploy"]), default="vllm", show_default=True),
    click.option("--tensor-parallel-size", "--tp", "tp", type=Several(COUNT), default="1", show_default=True),
    click.option("--pipeline-parallel-size", "--pp", "pp", type=COUNT, default=1, show_default=True),
    click.option("--decode-context-parallel-size", "--dcp", "dcp", type=COUNT, default=1, show_default=True),
    click.option("--enable-expert-parallel", is_flag=True, help="Divide experts, not their matrices."),
    click.option(
        "--max-model-len",
        "--session-len",
        "max_model_len",
        type=Several(SIZE),
        help="Tokens of a request. Default: what the model was made for.",
    ),
    click.option("--max-num-seqs", "--max-batch-size", "max_num_seqs", type=COUNT, help="Default: by GPU."),
    click.option(
        "--max-num-batched-tokens",
        "--max-prefill-token-num",
        "max_num_batched_tokens",
        type=SIZE,
        help="Default: the engine's own for this GPU.",
    ),
    click.option(
        "--block-size",
        "--cache-block-seq-len",
        "block_size",
        type=COUNT,
        help="Tokens a block. Default: what the attention kernels need.",
    ),
    click.option("--kv-cache-dtype", type=Several(click.STRING), default="auto", show_default=True),
    click.option(
        "--gpu-memory-utilization",
        "--cache-max-entry-count",
        "gpu_memory_utilization",
        type=float,
        help="Default: 0.92 of all (vLLM), 0.8 of what the weights leave (LMDeploy).",
    ),
    click.option("--kv-cache-memory-bytes", type=SIZE, help="Exactly this for the KV cache of each GPU."),
    click.option("--num-gpu-blocks-override", type=COUNT, help="Exactly this many blocks."),
    click.option("--enforce-eager", is_flag=True, help="No CUDA graphs."),
    click.option("--enable-prefix-caching/--no-enable-prefix-caching", default=True, show_default=True),
    click.option("--disable-hybrid-kv-cache-manager", is_flag=True, help="Windows are kept in full."),
    click.option("--async-scheduling/--no-async-scheduling", default=True, show_default=True),
    click.option("--mamba-ssm-cache-dtype", default="auto", show_default=True),
    click.option(
        "--speculative-config", help='JSON, such as {"method": "mtp", "num_speculative_tokens": 1}.'
    ),
    click.option("--load-format", default="auto", show_default=True),
    click.option(
        "--backend",
        type=click.Choice(["turbomind", "pytorch"]),
        default="turbomind",
        show_default=True,
        help="LMDeploy's.",
    ),
    click.option(
        "--quant-policy",
        type=click.Choice(["0", "4", "8"]),
        default="0",
        show_default=True,
        help="LMDeploy's KV cache bits (0: 16).",
    ),
)


def engine_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the flags, in the order they stand here."""
    for flag in reversed(FLAGS):
        command = flag(command)
    return command


def combinations(options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The options of each row: every combination of the values given."""
    values = [options[name] or (None,) for name in VARIED]
    return [{**options, **dict(zip(VARIED, row, strict=True))} for row in product(*values)]


def single(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the one server meant. Raises SpecError where several values are given."""
    for name in VARIED:
        if options[name] is not None and len(options[name]) > 1:
            flag = "--" + name.replace("_", "-")
            raise SpecError(f"{flag} takes one value here, got {', '.join(map(str, options[name]))}")
    return combinations(options)[0]


def engine_from(options: Mapping[str, Any]) -> EngineSpec:
    """EngineSpec of one row's options. Raises SpecError with the fix."""
    named = {field.name: options[field.name] for field in fields(EngineSpec) if field.name in options}
    named["quant_policy"] = int(options["quant_policy"])
    return EngineSpec(**named, speculative=_speculative(options["speculative_config"]))


def _speculative(text: str | None) -> SpeculativeSpec | None:
    if text is None:
        return None
    try:
        asked = json.loads(text)
        method, tokens = asked["method"], asked["num_speculative_tokens"]
        layers = _draft_layers(asked.get("model")) if method in ("draft_model",) else 1
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise SpecError(
            "--speculative-config must be JSON with method and num_speculative_tokens, such as "
            f'{{"method": "mtp", "num_speculative_tokens": 1}}; methods are {", ".join(DRAFT_METHODS)}'
        ) from None
    if isinstance(method, str) and method.endswith("_mtp"):  # vLLM takes a name a family, and means the same
        method = "mtp"
    if not isinstance(tokens, int) or isinstance(tokens, bool) or not isinstance(method, str):
        raise SpecError("--speculative-config: method must be text and num_speculative_tokens a whole number")
    return SpeculativeSpec(method=method, num_speculative_tokens=tokens, draft_layers=layers)


def _draft_layers(model: str | None) -> int:
    if model is None:
        raise SpecError("--speculative-config: name the draft's `model` (a config.json, a folder or a name)")
    return len(read_model(find_model(model)).layers)
