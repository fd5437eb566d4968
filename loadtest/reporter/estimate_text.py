"""Estimate -> readable text of 100 columns, or a dict for machines. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from estimator.estimate import VERSIONS, Estimate
from estimator.rules_of_thumb import RULES, textbook_requests
from estimator.spec import Interval, Lengths, heads_on_rank
from estimator.units import format_bytes
from loadtest.reporter.verdict import BUFFER_RATIO, safe_limit

WIDTH: Final = 100
KEPT_TEXT: Final = f"{1 - BUFFER_RATIO:g}"
NAME_WIDTH: Final = 17
VALUE_WIDTH: Final = 13
RANGE_WIDTH: Final = 26


def estimate_text(answer: Estimate) -> str:
    """The whole answer for a person, every number with its arithmetic or its source."""
    parts = (_title(answer), _ledger(answer), _cache(answer), _requests(answer), _notes(answer))
    return "\n\n".join("\n".join(part) for part in parts)


def estimate_dict(answer: Estimate) -> dict[str, Any]:
    """The same for a machine: plain JSON types, bytes and tokens and requests as the names say."""
    budget, prediction = answer.budget, answer.prediction
    return {
        "model": answer.model.name,
        "gpu": answer.gpu.name,
        "engine": asdict(answer.engine) | asdict(budget.limits),
        "ledger": {
            "total_bytes": budget.ledger.total_bytes,
            "lines": [
                {"name": line.name, "source": line.source, "size_bytes": asdict(line.size_bytes)}
                for line in budget.ledger.lines
            ],
        },
        "kv_cache": {
            "bytes_per_token": budget.bytes_per_block // budget.limits.block_size,
            "bytes_per_block": budget.bytes_per_block,
            "blocks": asdict(budget.blocks),
            "reserved_blocks": budget.reserved_blocks,
            "source": budget.source,
        },
        "workload": asdict(prediction.workload),
        "held_blocks": asdict(prediction.held),
        "n_guaranteed": asdict(answer.n_guaranteed),
        "n_saturation": asdict(answer.n_saturation),
        "n_slots": prediction.n_slots,
        "n_safe": asdict(n_safe(answer)),
        "limited_by": prediction.limited_by,
        "vllm_headline": None if answer.headline is None else asdict(answer.headline),
        "cautions": list(budget.cautions),
    }


def n_safe(answer: Estimate) -> Interval:
    """The buffer applied to what is known before a load test: memory and slots."""
    slots = answer.prediction.n_slots
    guaranteed = answer.n_guaranteed
    return Interval(
        low=safe_limit(guaranteed.low, slots),
        likely=safe_limit(guaranteed.likely, slots),
        high=safe_limit(guaranteed.high, slots),
    )


def textbook_text(free_vram_gib: float, per_request_mib: float) -> str:
    """The textbook division, with the reason not to trust it."""
    requests = textbook_requests(free_vram_gib, per_request_mib)
    rule = RULES["requests"]
    lines = [
        f"The textbook: {rule.formula}",
        *_row("requests", f"{requests:,}", f"floor({free_vram_gib:g} GiB x 1024 / {per_request_mib:g} MiB)"),
        *_row("N_safe", f"{safe_limit(requests):,}", f"floor({KEPT_TEXT} x {requests:,})"),
    ]
    return "\n".join((*lines, "", *_wrapped("It misleads: ", rule.misleads)))


def textbook_dict(free_vram_gib: float, per_request_mib: float) -> dict[str, Any]:
    """The same for a machine."""
    requests = textbook_requests(free_vram_gib, per_request_mib)
    return {
        "free_vram_gib": free_vram_gib,
        "per_request_mib": per_request_mib,
        "requests": requests,
        "n_safe": safe_limit(requests),
        "misleads": RULES["requests"].misleads,
    }


def _title(answer: Estimate) -> list[str]:
    engine = answer.engine
    facts = (
        f"{answer.model.name} on {f'{engine.tp} x ' if engine.tp > 1 else ''}{answer.gpu.name}",
        VERSIONS[engine.engine],
        f"max_model_len {answer.budget.limits.max_model_len:,}",
        f"KV cache {engine.kv_cache_dtype}",
    )
    return [" | ".join(facts)]


def _ledger(answer: Estimate) -> list[str]:
    ledger = answer.budget.ledger
    rows = _row("Memory of a GPU", "likely", "from", "range", indent="")
    for line in ledger.lines:
        size = line.size_bytes
        rows += _row(line.name, format_bytes(size.likely), line.source, _range(size, format_bytes))
    return rows + _row("= total", format_bytes(ledger.total_bytes), "what CUDA reports")


def _cache(answer: Estimate) -> list[str]:
    budget, layer = answer.budget, answer.model.cache_layers[0]
    block_size, stored = budget.limits.block_size, budget.kv_format
    token = format_bytes(budget.bytes_per_block / block_size)
    block = format_bytes(budget.bytes_per_block)
    heads = heads_on_rank(layer.kv_heads, answer.engine.tp)
    head = f"({layer.head_size} + {layer.head_size_v}) x {stored.bits / 8:g} B"
    if stored.scale_bytes:
        head = f"({head} + {stored.scale_bytes} B of scales)"
    kv_bytes = format_bytes(budget.ledger.kv_bytes.likely)
    division = "--num-gpu-blocks-override" if budget.source == "flags" else f"{kv_bytes} / {block}"
    rows = [
        "KV cache of a GPU",
        *_row("bytes per token", token, f"{answer.model.layers} layers x {heads} heads x {head}"),
        *_row("bytes per block", block, f"{block_size} tokens x {token}"),
        *_row("blocks", _count(budget.blocks.likely), division, _range(budget.blocks, _count)),
    ]
    if budget.reserved_blocks:
        rows += _row("usable blocks", _count(answer.pool.usable_blocks), "all but vLLM's null block")
    return rows


def _requests(answer: Estimate) -> list[str]:
    prediction = answer.prediction
    held, workload, usable = prediction.held, prediction.workload, _count(answer.pool.usable_blocks)
    shape = f"{_lengths(workload.input_tokens)} input + {_lengths(workload.output_tokens)} output tokens"
    guaranteed, saturation, safe = answer.n_guaranteed, answer.n_saturation, n_safe(answer)
    return [
        f"Requests at once, each of {shape}, before any load test",
        *_row(
            "N_guaranteed",
            _count(guaranteed.likely),
            f"{usable} / {held.longest_blocks:,} blocks each; no preemption",
            _range(guaranteed, _count),
        ),
        *_row(
            "N_saturation",
            _tenths(saturation.likely),
            f"{usable} / {held.mean_blocks:,.2f} on average; then a queue",
            _range(saturation, _tenths),
        ),
        *_row("N_slots", f"{prediction.n_slots:,}", "max_num_seqs"),
        *_row(
            "N_safe",
            _count(safe.likely),
            f"floor({KEPT_TEXT} x min({_count(guaranteed.likely)}, {prediction.n_slots:,}))",
            _range(safe, _count),
        ),
    ]


def _notes(answer: Estimate) -> list[str]:
    notes: list[str] = []
    if answer.headline is not None:
        max_model_len = answer.budget.limits.max_model_len
        notes += _wrapped(
            "vLLM will log: ",
            f"GPU KV cache size: {answer.headline.cache_tokens:,} tokens; Maximum concurrency for "
            f"{max_model_len:,} tokens per request: {answer.headline.max_concurrency:.2f}x. It counts every "
            "request at max_model_len, and the null block as if it could be used: one block too high.",
        )
    for caution in answer.budget.cautions:
        notes += _wrapped("Caution: ", caution + ".")
    return notes


def _row(name: str, value: str, text: str, spread: str = "", indent: str = "  ") -> list[str]:
    """Name, value, range and the reason, the last wrapped under itself."""
    start = f"{indent + name:<{NAME_WIDTH + 2}}{value:>{VALUE_WIDTH}}{spread:>{RANGE_WIDTH}}  "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _range(interval: Interval, show: Callable[[float], str]) -> str:
    return "" if interval.is_exact else f"{show(interval.low)} to {show(interval.high)}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _tenths(number: float) -> str:
    return f"{number:,.1f}"


def _lengths(lengths: Lengths) -> str:
    return (
        f"{lengths.longest:,}" if lengths.kind == "constant" else f"{lengths.shortest:,}-{lengths.longest:,}"
    )


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label))
