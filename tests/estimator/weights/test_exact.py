"""Weights by arithmetic against vLLM's own parameters: equal to the byte."""

from __future__ import annotations

import pytest
from oracle import Entry, entries

from estimator.catalog import read_gpu
from estimator.engine_spec import EngineSpec
from estimator.hf_config import model_spec
from estimator.weights.count import stage_bytes

ENTRIES = {name: entry for name, entry in entries().items() if entry.weights_reliable}


def engine_of(entry: Entry) -> EngineSpec:
    """Without speculative decoding: vLLM's figure is of the target model alone."""
    flags = {key: value for key, value in entry.arguments.items() if key not in ("gpu", "speculative")}
    return EngineSpec(**flags)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_stage_holds_the_bytes_that_vllm_allocates(name: str) -> None:
    entry = ENTRIES[name]
    capability = read_gpu(entry.arguments["gpu"]).compute_capability
    found = stage_bytes(model_spec(entry.config, entry.model), engine_of(entry), capability)
    assert found == tuple(entry.answers["param_bytes"])
