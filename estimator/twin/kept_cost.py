"""Step costs kept by the server they are of: model, GPU, engine, version and the flags that matter."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from estimator.calibration import Settings, calibration_path
from estimator.engine_spec import EngineSpec
from estimator.twin.cost_file import KeptFor, MeasuredCost, read_cost


def kept_for(settings: Settings, engine: EngineSpec) -> KeptFor:
    """settings: what start-up's overheads are kept under; max_num_seqs is left out, for no step knows it."""
    speculative = engine.speculative
    return KeptFor(
        model=settings.model,
        gpu=settings.gpu,
        engine=engine.engine,
        version=settings.version,
        tp=settings.tp,
        pp=settings.pp,
        dcp=engine.dcp,
        enable_expert_parallel=engine.enable_expert_parallel,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_dtype=engine.kv_cache_dtype,
        quant_policy=engine.quant_policy,
        enforce_eager=engine.enforce_eager,
        async_scheduling=engine.async_scheduling,
        speculative=""
        if speculative is None
        else f"{speculative.method} {speculative.num_speculative_tokens}",
        backend="" if engine.engine == "vllm" else engine.backend,
    )


def kept_path(server: KeptFor, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the cost of exactly this server is kept; the digest is of all its settings."""
    digest = hashlib.sha256(json.dumps(asdict(server), sort_keys=True).encode("ascii")).hexdigest()
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{server.model}.{server.gpu}.{server.engine}").strip("-.")
    return calibration_path(environ).parent / "step-costs" / f"{words}.{digest[:8]}.yaml"


def recall_cost(server: KeptFor, environ: Mapping[str, str] = os.environ) -> MeasuredCost | None:
    """What was measured on exactly this server; None where nothing was. Raises SpecError on a bad file."""
    path = kept_path(server, environ)
    if not path.is_file():
        return None
    measured = read_cost(path)
    return measured if measured.kept_for == server else None
