"""`ullage whatif`: a finished run calibrates the twin, and the twin says what another server would do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from estimator.engine_spec import EngineSpec
from estimator.spec import SpecError
from estimator.twin.cost import ServerCost
from estimator.twin.goals import Goal
from estimator.twin.scales import carried_over
from estimator.twin.validated import SOURCE
from loadtest.cli.engine_flags import engine_flags, engine_from, single
from loadtest.cli.run_server import RunServer, changed_server, differences, server_of_run
from loadtest.reporter.observation import StageObservation
from loadtest.reporter.report import judge_run
from loadtest.reporter.run_cost import calibrated
from loadtest.reporter.run_levels import telling
from loadtest.reporter.run_what_if import (
    WhatIfPage,
    as_sure_as_data_sheets,
    as_sure_as_measured,
    foretell,
    off_by,
)
from loadtest.reporter.run_what_if_text import what_if_run_dict, what_if_run_text
from loadtest.run_folder import Manifest, RunFolder
from loadtest.scenario import parse_scenario

HARDWARE: Final = ("gpu", "tp", "pp", "dcp", "enable_expert_parallel")
"""A change of these asks for steps that nobody has measured."""
NOT_IN_THE_COST: Final = ("enforce_eager", "speculative", "backend", "async_scheduling")


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
@engine_flags
@click.option("--users", type=click.IntRange(min=1), help="Foretell this load instead of that at N_safe.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@click.pass_context
def whatif(context: click.Context, /, **options: Any) -> None:
    """What would the server of RUN_FOLDER do with other flags, or on another GPU?

    Only the flags given here change; all others are those the run was signed off with.
    """
    page = what_if_page(RunFolder.open(options["run_folder"]), _given(context, options), options["users"])
    click.echo(json.dumps(what_if_run_dict(page), indent=2) if options["as_json"] else what_if_run_text(page))


def what_if_page(folder: RunFolder, given: Mapping[str, Any], users: int | None) -> WhatIfPage:
    """Raises PlainError, one sentence, for what the run does not know."""
    manifest, verdict = folder.read_manifest(), judge_run(folder)
    scenario = parse_scenario(dict(manifest.scenario))
    before = server_of_run(manifest)
    after = changed_server(manifest, before, given)
    stages = telling(verdict.observation.stages)
    if not stages:
        raise SpecError(
            f"{manifest.run_id} has no stage without queue, preemption and faults of the client, so it does "
            "not say what a step costs: hold a lower stage"
        )
    seed = scenario.seed
    found = calibrated(before.server, stages, seed, f"the steps of {manifest.run_id}")
    is_carried = _is_other_hardware(before, after)
    goal = Goal(**{field.name: getattr(scenario.limits, field.name) for field in fields(Goal)})
    there = _carried(found.cost, before, after)
    cost_after = as_sure_as_data_sheets(there) if is_carried else as_sure_as_measured(there)
    off = off_by(found.replayed)
    cost_before = as_sure_as_measured(found.cost)
    return WhatIfPage(
        run_id=manifest.run_id,
        change=differences(before, after),
        replayed=found.replayed,
        before=foretell(replace(before.server, cost=cost_before), goal, off, seed=seed),
        after=foretell(replace(after.server, cost=cost_after), goal, off, seed=seed, users=users),
        is_carried=is_carried,
        goal=goal,
        unknown=(*_other_pool(manifest, before), *_unknown(before, after, stages, is_carried)),
    )


def _given(context: click.Context, options: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the command line, by the names of EngineSpec."""
    asked = engine_from(single(options))
    names = {"speculative_config": "speculative"}
    given = {}
    for field in (*(field.name for field in fields(EngineSpec)), "gpu", "speculative_config"):
        if context.get_parameter_source(field) is ParameterSource.COMMANDLINE:
            name = names.get(field, field)
            given[name] = single(options)["gpu"] if name == "gpu" else getattr(asked, name)
    return given


def _is_other_hardware(before: RunServer, after: RunServer) -> bool:
    if before.answer is None or after.answer is None:
        return False
    old, new = before.answer, after.answer
    return old.gpu != new.gpu or any(
        getattr(old.engine, name) != getattr(new.engine, name) for name in HARDWARE if name != "gpu"
    )


def _carried(measured: ServerCost, before: RunServer, after: RunServer) -> ServerCost:
    if before.answer is None:
        return measured
    return carried_over(measured, before.server.cost, after.server.cost)


def _other_pool(manifest: Manifest, before: RunServer) -> tuple[str, ...]:
    """The server showed a cache that the flags named do not make."""
    shown, made = manifest.server.get("num_gpu_blocks"), str(before.server.prediction.pool.blocks)
    if shown is None or shown == made:
        return ()
    return (f"which flags gave the server {shown} KV blocks: those that were named make {made}",)


def _unknown(
    before: RunServer, after: RunServer, stages: tuple[StageObservation, ...], is_carried: bool
) -> tuple[str, ...]:
    found = []
    if is_carried:
        found.append(
            "how far other hardware keeps to its data sheet: steps are scaled by the rooflines' ratio"
        )
    if before.answer is None:
        found.append("a real server: the run was of a simulated one")
    else:
        found.append(f"a GPU's steps beside the twin's, which were measured on a CPU server only ({SOURCE})")
    if len(stages) == 1:
        found.append("how a step grows with the batch: one stage of the run alone was without a queue")
    if before.answer is not None and after.answer is not None:
        found += _unknown_of_flags(before.answer.engine, after.answer.engine)
        if not after.server.n_guaranteed.is_exact:
            found.append("what start-up takes beside the weights there: N_kv has a range")
    return tuple(found)


def _unknown_of_flags(old: EngineSpec, new: EngineSpec) -> list[str]:
    found = [
        f"what --{name.replace('_', '-')} does to a step"
        for name in NOT_IN_THE_COST
        if getattr(old, name) != getattr(new, name)
    ]
    if (old.kv_cache_dtype, old.quant_policy) != (new.kv_cache_dtype, new.quant_policy):
        found.append("whether the answers stay as good with another KV cache, and its kernels as quick")
    fixed = {"num_gpu_blocks_override": "blocks", "kv_cache_memory_bytes": "bytes of KV cache"}
    for name, unit in fixed.items():
        value = getattr(new, name)
        if value is not None and value == getattr(old, name):
            found.append(
                f"what a start without --{name.replace('_', '-')} would hold: {value:,} {unit} are kept"
            )
    return found
