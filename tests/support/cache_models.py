"""Models as the caches of their layers, the flags of runs and what vLLM 0.32 answered, read from a fixture.

The layers are written as patterns and how often each follows; so these tests need no reader of configs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from estimator.catalog import read_gpu
from estimator.engine_spec import EngineSpec, SpeculativeSpec
from estimator.held import InFlight
from estimator.memory import EngineLimits
from estimator.model import (
    Attention,
    Cache,
    CompressedAttention,
    IndexerKeys,
    LatentAttention,
    Layer,
    ModelSpec,
    Quantisation,
    RecurrentState,
)
from estimator.spec import GpuSpec
from estimator.vllm_cache.defaults import limits
from estimator.vllm_cache.layout import KvLayout, kv_layout

FIXTURE: Final = Path(__file__).parents[1] / "fixtures" / "oracle" / "cache_layouts.json"
CACHES: Final[Mapping[str, type[Any]]] = {
    kind.__name__: kind
    for kind in (Attention, LatentAttention, IndexerKeys, CompressedAttention, RecurrentState)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One start of vLLM: what it was given, what it answered, what requests held."""

    model: ModelSpec
    gpu: GpuSpec
    engine: EngineSpec
    answers: Mapping[str, Any]
    held: Sequence[Mapping[str, Any]]

    @property
    def limits(self) -> EngineLimits:
        return limits(self.model, self.gpu, self.engine)

    @property
    def layout(self) -> KvLayout:
        return kv_layout(self.model, self.gpu, self.engine, self.limits)

    @property
    def in_flight(self) -> InFlight:
        resolved = self.limits
        tokens = resolved.max_num_batched_tokens
        return InFlight(steps=resolved.in_flight_tokens // tokens, chunk_tokens=tokens)


def runs() -> dict[str, Run]:
    """Every run of the fixture, by name."""
    facts = json.loads(FIXTURE.read_text(encoding="utf-8"))
    models = {name: _model(name, body) for name, body in facts["models"].items()}
    return {name: _run(models[name.split("|")[0]], body) for name, body in facts["runs"].items()}


def model_of(*layers: Layer, **changes: Any) -> ModelSpec:
    """A model of these layers; what else a ModelSpec asks for is of no weight here."""
    facts: dict[str, Any] = {
        "name": "a model",
        "architecture": "AForCausalLM",
        "model_type": "a",
        "dtype": "bfloat16",
        "quantisation": None,
        "hidden_size": 4096,
        "intermediate_size": 4096,
        "vocab_size": 32000,
        "attention_heads": 64,
        "context_tokens_max": 2**24,
        "tie_word_embeddings": False,
    }
    return ModelSpec(layers=layers, **(facts | changes))


def layer(*caches: Cache) -> Layer:
    return Layer(caches=caches)


def _model(name: str, body: Mapping[str, Any]) -> ModelSpec:
    said = body["kv_cache_dtype"]
    return model_of(
        *_layers(body["layers"], body["patterns"]),
        draft_layers=_layers(body["draft_layers"], body["patterns"]),
        quantisation=said and Quantisation(method="modelopt", scheme="fp8", kv_cache_dtype=said),
        name=name,
        **{key: body[key] for key in ("architecture", "model_type", "dtype", "attention_heads")},
    )


def _layers(order: Iterable[Sequence[int]], patterns: Sequence[Any]) -> tuple[Layer, ...]:
    made = [layer(*(CACHES[cache["is"]](**_without(cache)) for cache in caches)) for caches in patterns]
    return tuple(made[pattern] for pattern, count in order for _ in range(count))


def _without(cache: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cache.items() if key != "is"}


def _run(model: ModelSpec, body: Mapping[str, Any]) -> Run:
    flags = dict(body["arguments"])
    gpu, asked = read_gpu(flags.pop("gpu")), flags.pop("speculative", None)
    return Run(
        model=model,
        gpu=gpu,
        engine=EngineSpec(**flags, speculative=asked and SpeculativeSpec(**asked)),
        answers=body["answers"],
        held=body["held"],
    )


def written(model: ModelSpec) -> dict[str, Any]:
    """A model as the fixture has it: the other way round."""
    patterns: list[list[dict[str, Any]]] = []

    def number(one: Layer) -> int:
        caches = [{"is": type(cache).__name__, **_told(cache)} for cache in one.caches]
        if caches not in patterns:
            patterns.append(caches)
        return patterns.index(caches)

    def order(layers: Iterable[Layer]) -> list[list[int]]:
        return [[pattern, len(list(same))] for pattern, same in groupby(map(number, layers))]

    return {
        **{key: getattr(model, key) for key in ("architecture", "model_type", "dtype", "attention_heads")},
        "kv_cache_dtype": model.quantisation and model.quantisation.kv_cache_dtype,
        "layers": order(model.layers),
        "draft_layers": order(model.draft_layers),
        "patterns": patterns,
    }


def _told(cache: Cache) -> dict[str, Any]:
    """The fields that say something."""
    return {key: value for key, value in asdict(cache).items() if value is not None and value is not False}
