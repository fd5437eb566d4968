"""Estimate -> readable text of 100 columns, or a dict for machines. Pure."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from estimator.estimate import VERSIONS, Estimate
from estimator.held import Held
from estimator.kv_group import KvGroup
from estimator.memory import Ledger
from estimator.spec import Interval, Lengths
from estimator.units import format_bytes
from loadtest.reporter.buffer import BUFFER_RATIO, safe_limit

WIDTH: Final = 100
KEPT_TEXT: Final = f"{1 - BUFFER_RATIO:g}"
NAME_WIDTH: Final = 17
VALUE_WIDTH: Final = 13
RANGE_WIDTH: Final = 26
KINDS: Final = {
    "full": "every token",
    "window": "the last {reach} tokens",
    "chunk": "the current {reach} tokens",
    "state": "{blocks} a request, whatever its length",
    "cross": "the encoder's {reach} tokens",
}
"""What a group keeps, in words."""


def estimate_text(answer: Estimate) -> str:
    """The whole answer for a person, every number with its arithmetic or its source."""
    parts = (_title(answer), _ledger(answer), _cache(answer), _requests(answer), _notes(answer))
    return "\n\n".join("\n".join(part) for part in parts)


def estimate_dict(answer: Estimate) -> dict[str, Any]:
    """The same for a machine: plain JSON types, bytes, tokens and requests as the names say.

    The figures at the top are the likely ones; `intervals` holds their ranges.
    """
    budget, prediction = answer.budget, answer.prediction
    blocks_per_request = sum(group.headline_blocks for group in budget.groups)
    ranges = {
        "num_blocks": budget.blocks,
        "kv_cache_bytes": budget.ledger.kv_bytes,
        "n_guaranteed": answer.n_guaranteed,
        "n_sustained": answer.n_sustained,
        "n_saturation": answer.n_saturation,
        "n_safe": n_safe(answer),
    }
    return {
        "model": answer.model.name,
        "gpu": answer.gpu.name,
        "engine": asdict(answer.engine) | asdict(budget.limits),
        "num_blocks": int(budget.blocks.likely),
        "bytes_per_block": list(budget.bytes_per_block),
        "block_size": budget.limits.block_size,
        "blocks_per_request": blocks_per_request,
        "min_bytes_one_request": blocks_per_request * max(budget.bytes_per_block),
        "kv_cache_size_tokens": None if answer.headline is None else answer.headline.cache_tokens,
        "max_concurrency": None if answer.headline is None else answer.headline.max_concurrency,
        "weight_bytes": [int(ledger.line("weights").size_bytes.likely) for ledger in budget.ledgers],
        "ledger": _ledger_dict(budget.ledger),
        "stages": [_ledger_dict(ledger) for ledger in budget.ledgers],
        "groups": [asdict(group) for group in budget.groups],
        "reserved_blocks": budget.reserved_blocks,
        "source": budget.source,
        "workload": asdict(prediction.workload),
        "held_blocks": asdict(prediction.held),
        "n_guaranteed": int(answer.n_guaranteed.likely),
        "n_sustained": int(answer.n_sustained.likely),
        "n_saturation": answer.n_saturation.likely,
        "n_slots": prediction.n_slots,
        "n_safe": int(n_safe(answer).likely),
        "limited_by": prediction.limited_by,
        "assumptions": list(budget.cautions),
        "intervals": {name: asdict(interval) for name, interval in ranges.items()},
    }


def _ledger_dict(ledger: Ledger) -> dict[str, Any]:
    return {
        "total_bytes": ledger.total_bytes,
        "lines": [
            {"name": line.name, "source": line.source, "size_bytes": asdict(line.size_bytes)}
            for line in ledger.lines
        ],
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


def _title(answer: Estimate) -> list[str]:
    engine = answer.engine
    gpus = engine.tp * engine.pp
    facts = (
        f"{answer.model.name} on {f'{gpus} x ' if gpus > 1 else ''}{answer.gpu.name}",
        VERSIONS[engine.engine],
        f"max_model_len {answer.budget.limits.max_model_len:,}",
        f"KV cache {answer.budget.stored_as}",
    )
    return wrapped("", " | ".join(facts))


def _ledger(answer: Estimate) -> list[str]:
    budget = answer.budget
    stages, ledger = len(budget.ledgers), budget.ledger
    where = "Memory of a GPU"
    if stages > 1:
        where = f"GPU of stage {budget.ledgers.index(ledger) + 1} of {stages}"
    rows = row(where, "likely", "from", "range", indent="")
    for line in ledger.lines:
        size = line.size_bytes
        rows += row(line.name, format_bytes(size.likely), line.source, _range(size, format_bytes))
    return rows + row("= total", format_bytes(ledger.total_bytes), "what CUDA reports")


def _cache(answer: Estimate) -> list[str]:
    budget = answer.budget
    block_bytes = budget.bytes_per_block[budget.ledgers.index(budget.ledger)]
    kv_bytes = format_bytes(budget.ledger.kv_bytes.likely)
    division = "--num-gpu-blocks-override" if budget.source == "flags" else f"{kv_bytes} / a block"
    rows = ["KV cache of a GPU", *(row for group in _alike(budget.groups) for row in _group(*group))]
    rows += row("bytes per block", format_bytes(block_bytes), _one_id(budget.groups))
    rows += row("blocks", _count(budget.blocks.likely), division, _range(budget.blocks, _count))
    if budget.reserved_blocks:
        rows += row("usable blocks", _count(answer.pool.usable_blocks), "all but the reserved one")
    return rows


def _alike(groups: Sequence[KvGroup]) -> list[tuple[KvGroup, int]]:
    """Groups of the same shape once, with how many of them there are."""
    counts = Counter(groups)
    return list(counts.items())


def _group(group: KvGroup, times: int) -> list[str]:
    what = KINDS[group.kind].format(reach=f"{group.reach_tokens:,}", blocks=group.state_blocks)
    each = f"{f'{times} x ' if times > 1 else ''}{group.layers:,} layers"
    page = f", page {format_bytes(group.page_bytes)}" if group.page_bytes else ""
    return row(each, f"{group.block_size:,} tokens", f"a block{page}; {what}")


def _one_id(groups: Sequence[KvGroup]) -> str:
    if len(groups) == 1:
        return f"one block id: a page in each of {groups[0].layers:,} layers"
    return f"one block id, for any of {len(groups)} tables"


def _requests(answer: Estimate) -> list[str]:
    prediction = answer.prediction
    held, workload, usable = prediction.held, prediction.workload, _count(answer.pool.usable_blocks)
    shape = (
        f"{lengths_text(workload.input_tokens)} input + {lengths_text(workload.output_tokens)} output tokens"
    )
    guaranteed, saturation, safe = answer.n_guaranteed, answer.n_saturation, n_safe(answer)
    slots = "unknown" if prediction.n_slots is None else f"{prediction.n_slots:,}"
    return [
        f"Requests at once, each of {shape}, before any load test",
        *row(
            "N_guaranteed",
            _count(guaranteed.likely),
            _promise(held, answer.pool.usable_blocks),
            _range(guaranteed, _count),
        ),
        *row(
            "N_sustained",
            _count(answer.n_sustained.likely),
            "mixed phases: 1% chance of a preemption an hour",
            _range(answer.n_sustained, _count),
        ),
        *row(
            "N_saturation",
            _tenths(saturation.likely),
            f"{usable} / {held.mean_blocks:,.2f} on average; then a queue",
            _range(saturation, _tenths),
        ),
        *row("N_slots", slots, "max_num_seqs"),
        *row(
            "N_safe",
            _count(safe.likely),
            f"floor({KEPT_TEXT} x min({_count(guaranteed.likely)}, {slots}))",
            _range(safe, _count),
        ),
    ]


def _promise(held: Held, usable: int) -> str:
    """The arithmetic of N_guaranteed: which of its bounds decided."""
    count = held.guaranteed(usable)
    each = f"/ {held.longest_blocks:,} blocks each; no preemption"
    if count == usable // held.longest_blocks:
        return f"{usable:,} {each}"
    if count == (usable - held.in_flight_blocks) // held.longest_blocks:
        return f"({usable:,} - {held.in_flight_blocks:,} for prompts in flight) {each}"
    worst = max(held.longest_blocks, held.prefill_blocks)
    if count == usable // worst:
        return f"{usable:,} / {worst:,} blocks each while its prompt is read; no preemption"
    return f"1 + ({usable:,} - {held.admission_blocks:,} to be let in) {each}"


def _notes(answer: Estimate) -> list[str]:
    notes: list[str] = []
    if answer.headline is not None:
        max_model_len = answer.budget.limits.max_model_len
        notes += wrapped(
            "vLLM will log: ",
            f"GPU KV cache size: {answer.headline.cache_tokens:,} tokens; Maximum concurrency for "
            f"{max_model_len:,} tokens per request: {answer.headline.max_concurrency:.2f}x. It counts every "
            "request at max_model_len, and the null block as if it could be used: one block too high.",
        )
    for caution in answer.budget.cautions:
        notes += wrapped("Caution: ", caution + ".")
    return notes


def row(name: str, value: str, text: str, spread: str = "", indent: str = "  ") -> list[str]:
    """Name, value, range and the reason, the last wrapped under itself."""
    start = f"{indent + name:<{NAME_WIDTH + 2}}{value:>{VALUE_WIDTH}}{spread:>{RANGE_WIDTH}}  "
    return textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start))


def _range(interval: Interval, show: Callable[[float], str]) -> str:
    return "" if interval.is_exact else f"{show(interval.low)} to {show(interval.high)}"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _tenths(number: float) -> str:
    return f"{number:,.1f}"


def lengths_text(lengths: Lengths) -> str:
    return (
        f"{lengths.longest:,}" if lengths.kind == "constant" else f"{lengths.shortest:,}-{lengths.longest:,}"
    )


def wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=label, subsequent_indent=" " * len(label))
