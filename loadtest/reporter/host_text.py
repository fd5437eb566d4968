"""What a running server says of its KV cache, beside what we compute for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from estimator.estimate import Estimate
from estimator.spec import EngineName
from loadtest.reporter.plain import one_line

SHOWN: Final[Mapping[str, str]] = {
    "num_gpu_blocks": "blocks",
    "block_size": "block size",
    "kv_cache_size_tokens": "cache tokens",
    "kv_cache_max_concurrency": "max concurrency",
    "cache_dtype": "KV dtype",
    "gpu_memory_utilization": "utilisation",
    "enable_prefix_caching": "prefix caching",
}
"""Labels of cache_config_info and their names in the table."""


def host_dict(
    engine: EngineName | None,
    version: str | None,
    models: Mapping[str, int | None],
    config: Mapping[str, str],
    answer: Estimate | None,
) -> dict[str, Any]:
    """For a machine: the server's own words as text, and the difference in blocks where both are known."""
    blocks = _whole(config.get("num_gpu_blocks"))
    computed = None if answer is None else int(answer.budget.blocks.likely)
    return {
        "engine": engine,
        "version": version,
        "models": dict(models),
        "cache_config": dict(config),
        "num_gpu_blocks": blocks,
        "computed_blocks": computed,
        "difference_blocks": None if blocks is None or computed is None else blocks - computed,
    }


def host_text(facts: Mapping[str, Any], answer: Estimate | None) -> str:
    """The server's figures, ours beside them, and the difference."""
    lines = [f"The server says: {facts['engine'] or 'no known engine'} {facts['version'] or ''}".rstrip()]
    for name, length in facts["models"].items():
        tokens = "" if length is None else f", max_model_len {length:,}"
        lines.append(f"  serves {name}{tokens}")
    config = facts["cache_config"]
    ours = {} if answer is None else _ours(answer)
    if ours:
        lines.append(f"  {'':<16}{'server':>14}{'computed':>14}")
    for label, name in SHOWN.items():
        if label in config:
            lines.append(f"  {name:<16}{one_line(config[label]):>14}{ours.get(label, ''):>14}".rstrip())
    if not config:
        lines.append("  it shows no cache configuration in /metrics; --server-log reads its start-up output")
    if facts["difference_blocks"] is not None and answer is not None:
        low, high = answer.budget.blocks.low, answer.budget.blocks.high
        inside = "inside" if low <= facts["num_gpu_blocks"] <= high else "OUTSIDE"
        lines.append(
            f"  difference: {facts['difference_blocks']:+,} blocks, {inside} our range "
            f"({low:,.0f} to {high:,.0f})"
        )
    return "\n".join(lines)


def _ours(answer: Estimate) -> dict[str, str]:
    budget = answer.budget
    shown = {
        "num_gpu_blocks": f"{budget.blocks.likely:.0f}",
        "block_size": str(budget.limits.block_size),
        "cache_dtype": answer.engine.kv_cache_dtype,
        "gpu_memory_utilization": f"{budget.limits.memory_share:g}",
    }
    if answer.headline is not None:
        shown["kv_cache_size_tokens"] = str(answer.headline.cache_tokens)
        shown["kv_cache_max_concurrency"] = f"{answer.headline.max_concurrency:.6g}"
    return shown


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None
