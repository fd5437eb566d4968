"""python benchmarks/estimator_accuracy.py: how close we are to vLLM's own answers, by kind of cache.

Reads the whole set of answers where it lies beside the checkout, else the committed fixture. Each column of
the table is a function of one entry.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from oracle import Entry, entries

from estimator.catalog import read_gpu
from estimator.engine_spec import EngineSpec, SpeculativeSpec
from estimator.held import InFlight, held_over_life
from estimator.hf_config import model_spec
from estimator.spec import SpecError, Workload
from estimator.vllm_cache.defaults import limits
from estimator.vllm_cache.layout import headline, kv_layout, num_blocks
from estimator.weights.count import stage_bytes

CLOSE: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One entry under one column: the largest relative error; None where the model is refused."""

    error: float | None


Column = Callable[[Entry], Score | None]
"""None: the entry says nothing about this column."""


def engine_of(entry: Entry) -> EngineSpec:
    flags = {key: value for key, value in entry.arguments.items() if key not in ("gpu", "speculative")}
    asked = entry.arguments.get("speculative")
    return EngineSpec(**flags, speculative=None if asked is None else SpeculativeSpec(**asked))


def weights(entry: Entry) -> Score | None:
    """Bytes of parameters of each stage. vLLM's figure is of the target model: a draft is loaded apart."""
    if not entry.weights_reliable:
        return None
    engine = replace(engine_of(entry), speculative=None)
    gpu = read_gpu(entry.arguments["gpu"])
    try:
        found = stage_bytes(model_spec(entry.config, entry.model), engine, gpu.compute_capability)
    except SpecError:
        return Score(error=None)
    theirs = entry.answers["param_bytes"]
    return Score(error=max(abs(ours - their) / their for ours, their in zip(found, theirs, strict=True)))


def pool(entry: Entry) -> Score | None:
    """Blocks, bytes a block, blocks a request and the log line, for a given KV budget."""
    engine, gpu = engine_of(entry), read_gpu(entry.arguments["gpu"])
    theirs = entry.answers
    try:
        model = model_spec(entry.config, entry.model)
        resolved = limits(model, gpu, engine)
        layout = kv_layout(model, gpu, engine, resolved)
    except SpecError:
        return Score(error=None)
    blocks = num_blocks(layout, [entry.arguments["kv_cache_memory_bytes"]] * engine.pp)
    line = headline(layout, blocks, resolved.max_model_len)
    pairs = (
        (blocks, theirs["num_blocks"]),
        *zip(layout.bytes_per_block, theirs["bytes_per_block"], strict=True),
        (layout.blocks_per_request, theirs["blocks_per_request"]),
        (line.cache_tokens, theirs["kv_cache_size_tokens"]),
        (line.max_concurrency, theirs["max_concurrency"]),
    )
    return Score(error=max(abs(ours - their) / their for ours, their in pairs))


def held(entry: Entry) -> Score | None:
    """Mean blocks a request holds while it decodes, to the two digits that vLLM's figures have."""
    if not entry.held:
        return None
    engine, gpu = engine_of(entry), read_gpu(entry.arguments["gpu"])
    try:
        model = model_spec(entry.config, entry.model)
        resolved = limits(model, gpu, engine)
        groups = kv_layout(model, gpu, engine, resolved).groups
    except SpecError:
        return Score(error=None)
    steps = resolved.in_flight_tokens // resolved.max_num_batched_tokens
    in_flight = InFlight(steps=steps, chunk_tokens=resolved.max_num_batched_tokens)
    errors = []
    for theirs in entry.held:
        workload = Workload.constant(theirs["prompt"], theirs["output"])
        ours = round(held_over_life(groups, workload, in_flight).mean_blocks, 2)
        errors.append(abs(ours - theirs["decode_mean"]) / theirs["decode_mean"])
    return Score(error=max(errors))


COLUMNS: Final[Mapping[str, Column]] = {"pool": pool, "held": held, "weights": weights}


def cell(scores: Sequence[tuple[str, Score]]) -> str:
    """Exact, within 1%, refused, and the worst of those answered."""
    answered = [(score.error, name) for name, score in scores if score.error is not None]
    exact = sum(error == 0 for error, _ in answered)
    close = sum(error <= CLOSE for error, _ in answered)
    error, name = max(answered, default=(0.0, ""))
    worst = f", worst {100 * error:.3f}% {name}" if error else ""
    return f"{exact} exact, {close} within 1%, {len(scores) - len(answered)} refused, of {len(scores)}{worst}"


def table(found: Mapping[str, Entry]) -> list[str]:
    """One line a kind and column, and one for all."""
    lines = []
    for title, column in COLUMNS.items():
        by_kind: dict[str, list[tuple[str, Score]]] = defaultdict(list)
        for name, entry in found.items():
            score = column(entry)
            if score is not None:
                by_kind[entry.kind].append((name, score))
        lines += [f"{title:8} {kind:16} {cell(scores)}" for kind, scores in sorted(by_kind.items())]
        every = [score for scores in by_kind.values() for score in scores]
        lines.append(f"{title:8} {'all':16} {cell(every)}")
    return lines


def main() -> None:
    print("\n".join(table(entries())))


if __name__ == "__main__":
    main()
